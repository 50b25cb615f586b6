"""Each ablation removes its idea and nothing else; the numbers that come of it, by hand."""

import argparse
import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image

import dreamer.agent
from dreamer.agent import DreamerAgent
from dreamer.envs import AgentEnv
from dreamer.evaluation import open_loop
from dreamer.rssm import State, kl_losses
from dreamer.training import train
from dreamer.utils import make_rng
from lab import effects, results

script = importlib.import_module("08_ablations")
REPO = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
OBS, ACTION = 3, 2


def make_agent(variant, stir=0.3, **changes):
    """A tiny agent of this variant, to be used within `script.without(variant)` alone. Its weights
    are moved by `stir`, so that no head is zero because it is fresh."""
    config = script.VARIANTS[variant].config(tiny_config(**changes))
    agent = DreamerAgent(OBS, ACTION, True, config)
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in agent.parameters():
            p += stir * torch.randn(p.shape, generator=rng)
    return agent


def make_batch(seed=0, reward=1.0):
    """Random rows of one episode that goes on."""
    rng, shape = np.random.default_rng(seed), (3, 6)
    nothing = np.zeros(shape, bool)
    return {
        "obs": rng.normal(size=(*shape, OBS)).astype(np.float32),
        "action": np.eye(ACTION, dtype=np.float32)[rng.integers(ACTION, size=shape)],
        "reward": (reward * rng.normal(size=shape)).astype(np.float32),
        "is_first": nothing,
        "is_last": nothing,
        "is_terminal": nothing,
    }


def tensors(batch):
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def both(idea):
    """For `parametrize`: the agent without the idea, where the effect must be there, and the full
    one, where it must not."""
    return pytest.mark.parametrize("variant", [idea, "full"])


@pytest.fixture
def package(variant):
    """The package as the variant has it; after the test it is as before."""
    with script.without(variant):
        yield


# ---------------------------------------------------------------- nothing removed


def test_the_full_agent_is_the_ordinary_one():
    config = tiny_config(evals=4)
    found = script.run_one("cartpole", "full", config)["curve"]
    plain = train("CartPole-v1", config, progress=False)
    assert found["env_steps"] == [row["step"] for row in plain.evals]
    assert found["return"] == [results.significant(row["return"]) for row in plain.evals]
    with script.without("full"):
        again = train("CartPole-v1", config, progress=False)
    weights = again.agent.state_dict()
    assert all(torch.equal(value, weights[k]) for k, value in plain.agent.state_dict().items())


def package_contents():
    modules = [module for name, module in sys.modules.items() if name.startswith("dreamer.")]
    return {m.__name__: {k: id(v) for k, v in vars(m).items() if k[:2] != "__"} for m in modules}


@pytest.mark.parametrize("variant", script.VARIANTS)
def test_every_variant_learns_dreams_and_is_gone_afterwards(variant):
    before = package_contents()
    with script.without(variant):
        agent = make_agent(variant, stir=0.0)
        weights = [p.clone() for p in agent.parameters() if p.requires_grad]
        for seed in range(3):
            metrics = agent.update(make_batch(seed))
        assert all(torch.isfinite(value) for value in metrics.values())
        moved = [p for p in agent.parameters() if p.requires_grad]
        assert any(not torch.equal(*pair) for pair in zip(weights, moved, strict=True))
        batch = make_batch(9)
        dream = open_loop(agent, batch["obs"], batch["action"], 2, seed=0)
        assert np.isfinite(dream["obs"]).all()
    assert package_contents() == before


# ---------------------------------------------------------------- the world model's ideas


@both("symlog")
def test_without_symlog_the_encoder_sees_the_observation_linearly(variant, package):
    agent = make_agent(variant)
    agent.update(make_batch())  # the norm has statistics now
    norm, obs = agent.encoder.norm, torch.tensor([[1.0, -2.0, 30.0]])
    step = norm(obs) - norm(0 * obs)
    linear = torch.allclose(norm(10 * obs) - norm(0 * obs), 10 * step, rtol=1e-4)
    assert linear == (variant == "symlog")
    torch.testing.assert_close(norm.inverse(norm(obs)), obs, rtol=1e-4, atol=1e-4)
    assert agent.critic.bins[-1] == pytest.approx(math.exp(20) - 1)  # two-hot keeps its bins


@both("two-hot")
def test_without_two_hot_heads_are_one_number_and_squared_error(variant, package):
    agent = make_agent(variant)
    feat = torch.randn(4, 12 + 3 * 4)
    removed = variant == "two-hot"
    for head in (agent.reward, agent.critic, agent.slow_critic):
        logits = head(feat)
        assert (logits.shape == (4, 1)) == removed
        if removed:
            assert torch.equal(head.predict(feat), logits[:, 0])
            assert head.loss(torch.tensor([[2.0], [-1.0]]), torch.tensor([5.0, 1.0])).tolist() == [
                9.0,
                4.0,
            ]
            targets = torch.tensor([[5.0, 2.0], [0.0, -3.0]])  # two for each prediction
            losses = head.loss(torch.tensor([[2.0], [-1.0]]), targets)
            assert losses.tolist() == [[9.0, 0.0], [1.0, 4.0]]
    fresh = make_agent(variant, stir=0.0)
    assert fresh.reward.predict(feat).tolist() == fresh.critic.predict(feat).tolist() == [0.0] * 4


@both("free bits")
def test_without_free_bits_the_kl_is_reduced_to_zero(variant, package):
    agent = make_agent(variant, stir=0.0, free_nats=1.0)
    post = torch.zeros(1, 1, 3, 4).log_softmax(-1)
    prior = torch.tensor([0.1, 0.0, 0.0, 0.0]).expand(1, 1, 3, 4).clone().requires_grad_()
    dyn, _ = kl_losses(post, prior, agent.config.free_nats)
    dyn.sum().backward()
    assert (0 < dyn.item() < 0.01 and prior.grad.abs().sum() > 0) == (variant == "free bits")
    assert (dyn.item() == 1 and prior.grad.abs().sum() == 0) == (variant == "full")


@both("unimix")
def test_without_unimix_a_class_can_become_impossible(variant, package):
    agent = make_agent(variant, unimix=0.01)
    with torch.no_grad():
        for out in (agent.rssm.post_out, agent.rssm.prior_mlp[-1], agent.actor.mlp[-1]):
            out.bias[0] = 1e4  # of the first class
    deter, embed = torch.zeros(1, 12), torch.zeros(1, 16)
    impossible = [
        agent.rssm.posterior(deter, agent.rssm.post_embed(embed))[0, 0, 1],
        agent.rssm.prior(deter)[0, 0, 1],
        agent.actor(torch.zeros(1, 24)).log_probs[0, 1],
    ]
    floors = [0.01 / 4, 0.01 / 4, 0.01 / 2]
    for log_prob, floor in zip(impossible, floors, strict=True):
        expected = 0.0 if variant == "unimix" else floor
        assert log_prob.exp().item() == pytest.approx(expected, abs=1e-5)


@both("straight-through")
def test_without_straight_through_nothing_behind_a_sample_reaches_the_encoder(variant, package):
    agent = make_agent(variant)
    batch = tensors(make_batch())
    post, feat, _, _ = agent.learn_world(batch)
    assert set(post.stoch.detach().unique().tolist()) <= {0.0, 1.0}
    agent.decoder.loss(feat, batch["obs"]).mean().backward()
    grads = [p.grad for p in agent.encoder.parameters()]
    assert all(grad is None for grad in grads) == (variant == "straight-through")
    assert agent.rssm.gru.weight.grad.abs().sum() > 0  # what does not pass a sample still learns


@both("stochastic latent")
def test_without_a_stochastic_latent_nothing_is_drawn(variant, package):
    agent = make_agent(variant)
    batch = tensors(make_batch())

    def states(seed):
        rng = make_rng(CPU, seed)
        embed = agent.encoder(batch["obs"])
        post, state = agent.rssm.observe(embed, batch["action"], batch["is_first"], rng)
        with torch.no_grad():
            dream = agent.rssm.imagine(state, lambda *_: batch["action"][:, 0], 8, rng)
        with_gradients = agent.rssm.imagine(state, lambda *_: batch["action"][:, 0], 8, rng)
        return post, dream, with_gradients

    for one, other in zip(states(1), states(2), strict=True):
        assert torch.equal(one.stoch, other.stoch) == (variant == "stochastic latent")
    post, dream, with_gradients = states(1)
    if variant == "stochastic latent":
        assert torch.equal(post.stoch.argmax(-1), post.post_logits.argmax(-1))
        assert torch.equal(dream.stoch, with_gradients.stoch.argmax(-1))
    post.stoch[..., 0].sum().backward()  # straight-through gradients stay
    assert agent.rssm.post_out.weight.grad.abs().sum() > 0


@both("memory")
def test_without_memory_the_state_knows_the_present_observation_alone(variant, package):
    agent = make_agent(variant)
    removed = variant == "memory"
    batch, other = tensors(make_batch(0)), tensors(make_batch(1))
    other["obs"][:, -1] = batch["obs"][:, -1]  # two pasts, one present

    def last_feat(batch):
        embed = agent.encoder(batch["obs"])
        post, _ = agent.rssm.observe(embed, batch["action"], batch["is_first"], make_rng(CPU, 1))
        return dreamer.agent.get_feat(post)[:, -1], post

    (feat, post), (feat_other, _) = last_feat(batch), last_feat(other)
    assert torch.equal(feat, feat_other) == removed
    present = batch["obs"].clone()
    present[:, -1] += 3.0
    assert not torch.equal(last_feat({**batch, "obs": present})[0], feat)

    # Nor do actions: the agent that acts is the one that learned.
    def acts(batch):
        state, rng = None, make_rng(CPU, 2)
        for t in range(6):
            action, state = agent.act(batch["obs"][:, t], batch["is_first"][:, t], state, rng=rng)
        return action, dreamer.evaluation.get_feat(state)

    same = all(np.array_equal(*pair) for pair in zip(acts(batch), acts(other), strict=True))
    assert same == removed

    # The prior knows where it comes from, and what was done there, or there would be no dreams.
    state = State(post.deter[:, -1], post.stoch[:, -1], batch["action"][:, -1])
    left, right = (
        agent.rssm.sequence_step(
            state.deter, state.stoch, agent.rssm.embed_action(torch.eye(2)[[i] * 3])
        )
        for i in (0, 1)
    )
    assert not torch.equal(left, right)


def test_without_memory_no_module_reads_the_memory():
    with script.without("memory"):
        readers = [
            name
            for name, module in sys.modules.items()
            if name.startswith(("dreamer.", "lab.")) and hasattr(module, "get_feat")
        ]
        assert len(readers) >= 3
        for name in readers:
            assert sys.modules[name].get_feat is script.feat_without_memory, name


@both("guesses")
def test_without_guesses_heads_learn_from_posteriors_alone(variant, package):
    agent = make_agent(variant)
    with torch.no_grad():
        *_, metrics = agent.learn_world(tensors(make_batch()))
    alone = variant == "guesses"
    c = agent.config
    expected = c.beta_obs * metrics["obs_loss"] + metrics["reward_loss"] + metrics["cont_loss"]
    expected += c.beta_dyn * metrics["dyn_loss"] + c.beta_rep * metrics["rep_loss"]
    assert (metrics["prior_reward_loss"] == 0) == (metrics["prior_cont_loss"] == 0) == alone
    assert (metrics["model_loss"].item() == pytest.approx(expected.item())) == alone


@both("KL balance")
def test_without_kl_balance_both_sides_weigh_the_same(variant, package):
    config = make_agent(variant, beta_dyn=0.5, beta_rep=0.1).config
    expected = (0.3, 0.3) if variant == "KL balance" else (0.5, 0.1)
    assert (config.beta_dyn, config.beta_rep) == pytest.approx(expected)


# ---------------------------------------------------------------- the behaviour's ideas


@both("return scale")
def test_without_return_scale_advantages_keep_their_unit(variant, package):
    agent = make_agent(variant)
    scale = agent.ret_scale.update(torch.linspace(0, 1000, 1001)).item()
    assert scale == pytest.approx(1.0 if variant == "return scale" else 900.0)
    assert agent.update(make_batch())["ret_scale"].item() == pytest.approx(
        1.0 if variant == "return scale" else agent.ret_scale.scale().item()
    )


@both("replay value")
def test_without_replay_value_the_loss_is_that_of_model_and_dreams(variant, package):
    metrics = make_agent(variant, replay_value_weight=0.3).update(make_batch())
    dreams = metrics["model_loss"] + metrics["actor_loss"] + metrics["critic_loss"]
    rest = metrics["loss"].item() - dreams.item()
    weight = 0.0 if variant == "replay value" else 0.3
    assert metrics["replay_value_loss"].item() > 1
    assert rest == pytest.approx(weight * metrics["replay_value_loss"].item(), abs=1e-3)


@both("slow critic")
def test_without_the_slow_critic_its_weights_do_not_matter(variant, package):
    def critic_loss(moved):
        agent = make_agent(variant, slow_weight=1.0)
        with torch.no_grad():
            for p in agent.slow_critic.parameters():
                p += moved * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        return agent.update(make_batch())["critic_loss"].item()

    assert (critic_loss(0.0) == critic_loss(1.0)) == (variant == "slow critic")


# ---------------------------------------------------------------- the tasks


def rollout(spec, steps=300, seed=3):
    """obs (T, O) and reward (T,) of one fixed sequence of actions."""
    env = AgentEnv(spec)
    rng, rows, episode = np.random.default_rng(0), [], 0
    obs, reward = env.reset(seed), 0.0
    for _ in range(steps):
        rows.append((obs, reward))
        obs, reward, terminated, truncated = env.step(env.random_action(rng))
        if terminated or truncated:
            episode += 1
            obs, reward = env.reset(seed + episode), 0.0
    obs, reward = (np.array(column) for column in zip(*rows, strict=True))
    return obs, reward


@pytest.mark.parametrize(
    ("task", "plain", "seen"),
    [("cartpole-blind", "CartPole-v1", [0, 2]), ("pendulum-blind", "Pendulum-v1", [0, 1])],
)
def test_blind_tasks_hide_the_velocities_and_nothing_else(task, plain, seen):
    (obs, reward), (all_obs, same_reward) = rollout(script.TASKS[task].env), rollout(plain)
    np.testing.assert_array_equal(obs, all_obs[:, seen])
    np.testing.assert_array_equal(reward, same_reward)


@pytest.mark.parametrize("scale", [0.01, 100.0, 10_000.0])
def test_scaled_tasks_scale_the_reward_and_nothing_else(scale):
    task = script.TASKS[f"pendulum-x{scale:g}"]
    (obs, reward), (same_obs, plain) = rollout(task.env), rollout("Pendulum-v1")
    np.testing.assert_allclose(reward, scale * plain, rtol=1e-5)
    np.testing.assert_array_equal(obs, same_obs)
    assert task.scale == scale


def test_glitches_are_rare_large_and_repeatable():
    spec = script.TASKS["cartpole-glitches"].env
    (obs, reward), (plain, same_reward) = rollout(spec, 2500), rollout("CartPole-v1", 2500)
    wrong = obs != plain
    assert 0.005 < wrong.mean() < 0.015
    np.testing.assert_allclose(obs[wrong], 1000 * plain[wrong], rtol=1e-5)
    np.testing.assert_array_equal(reward, same_reward)
    np.testing.assert_array_equal(rollout(spec, 2500)[0], obs)


def test_settings_are_those_of_the_committed_runs_and_of_the_numbered_scripts():
    committed = json.loads((REPO / "assets" / "results" / "ablations.json").read_text())["runs"]
    ours = [run for run in committed if run["variant"] in script.VARIANTS]
    assert ours
    for run in ours:
        assert run["config"] == script.settings(run["task"], run["variant"], run["seed"], False)
    for name, task in script.TASKS.items():
        own = {"steps": task.steps, "action_repeat": 1, "seed": 3}
        assert script.config_of(name, "full", 3) == dataclasses.replace(task.script.CONFIG, **own)
        assert set(task.ideas) < set(script.VARIANTS)
    changed = dataclasses.asdict(script.config_of("pendulum", "free bits", 0))
    full = dataclasses.asdict(script.config_of("pendulum", "full", 0))
    assert {k for k in full if full[k] != changed[k]} == {"free_nats"}


def flags(base, **changes):
    values = {"seeds": [0, 1], "smoke": True, "fresh": False, "base": base, "jobs": 1}
    return argparse.Namespace(**{**values, **changes})


def test_runs_are_ordered_by_seed_and_have_folders_of_their_own(tmp_path):
    pytest.importorskip("stable_baselines3")
    variants = [*script.VARIANTS, *script.METHODS]
    cells = script.make_cells(flags(tmp_path), list(script.TASKS), variants)
    planned = sum(1 + len(task.ideas + task.methods) for task in script.TASKS.values())
    assert [cell.seed for cell in cells] == [0] * planned + [1] * planned
    assert len({cell.folder for cell in cells}) == len(cells)
    assert len({json.dumps(cell.config) for cell in cells}) == len(cells)
    cell = cells[1]
    assert (cell.task, cell.variant, cell.name) == ("cartpole", "symlog", "cartpole/symlog")
    assert cell.command[1:] == [
        "--run",
        "cartpole",
        "symlog",
        "0",
        "--out",
        str(tmp_path),
        "--smoke",
    ]


# ---------------------------------------------------------------- one run's numbers


def test_error_by_length_by_hand():
    """Rows 0..CONTEXT+1 of one dimension, half of the windows at -1 and half at 1: spread 1."""
    obs = np.ones((2, script.CONTEXT + 2, 1), np.float32)
    obs[1] = -1
    guess = np.array([[[1.0], [2.0]], [[-1.0], [0.0]]], np.float32)
    assert script.error_by_length(obs, guess) == [0.0, 1.0]
    assert script.error_by_length(obs, np.zeros((2, 1, 1))) == [1.0, 1.0]
    two = np.concatenate([obs, 10 * obs], -1)  # a large dimension counts no more than a small one
    assert script.error_by_length(two, np.zeros((2, 1, 2))) == [1.0, 1.0]


def test_unseen_windows_are_whole_and_from_many_episodes():
    obs, action = script.unseen_windows()
    assert obs.shape == (script.WINDOWS, script.CONTEXT + script.HORIZON, 3)
    assert action.shape == (*obs.shape[:2], 1)
    assert len(np.unique(obs[:, 0], axis=0)) == script.WINDOWS
    np.testing.assert_allclose((obs[..., :2] ** 2).sum(-1), 1, rtol=1e-5)


def test_returns_are_in_the_tasks_own_units(monkeypatch):
    config = tiny_config(evals=4)
    plain = script.run_one("pendulum-x100", "full", config)
    monkeypatch.setitem(
        script.TASKS, "unscaled", dataclasses.replace(script.TASKS["pendulum-x100"], scale=1.0)
    )
    raw = script.run_one("unscaled", "full", config)
    np.testing.assert_allclose(
        100 * np.array(plain["curve"]["return"]), raw["curve"]["return"], rtol=1e-3
    )
    assert plain["curve"]["env_steps"][-1] == 60 and plain["return"] == plain["curve"]["return"][-1]
    assert plain["minutes"] > 0 and plain["cpu_minutes"] > 0 and plain["dream_error"] is None


def test_model_free_methods_get_the_scaled_rewards(monkeypatch):
    """Of the same seed, as long as nothing has been learned, returns are the same in the task's
    own units."""
    pytest.importorskip("stable_baselines3")
    config = script.settings("pendulum-x100", "sac", 0, smoke=True)
    config["hyperparameters"]["n_timesteps"] = 50  # SAC learns from step 100 on
    found = script.run_method("pendulum-x100", config)
    task = dataclasses.replace(script.TASKS["pendulum-x100"], scale=1.0, env="Pendulum-v1")
    monkeypatch.setitem(script.TASKS, "pendulum-x100", task)
    plain = script.run_method("pendulum-x100", config)
    assert found["curve"]["env_steps"] == plain["curve"]["env_steps"] == [50]
    assert found["return"] == pytest.approx(plain["return"], rel=1e-3) and found["return"] < -100


def test_a_run_that_breaks_down_is_a_result(monkeypatch):
    calls = []

    def breaks(self, batch, update=DreamerAgent.update):
        calls.append(1)
        metrics = update(self, batch)
        return {**metrics, "loss": metrics["loss"] * (math.nan if len(calls) > 6 else 1)}

    monkeypatch.setattr(DreamerAgent, "update", breaks)
    result = script.run_one("cartpole", "full", tiny_config(evals=10))
    assert 0 < len(result["curve"]["return"]) < 7
    assert result["dream_error"] is None


# ---------------------------------------------------------------- what the runs say


def run(task, variant, seed, returns, dream_error=None):
    return {
        "task": task,
        "variant": variant,
        "seed": seed,
        "config": {},
        "cpu": "Some CPU",
        "minutes": 2.0,
        "cpu_minutes": 3.0,
        "curve": {"env_steps": list(range(len(returns))), "return": returns},
        "dream_error": dream_error,
    }


def make_data(seeds=5):
    """Two tasks: random policy at 0 and -10, threshold at 100 and 0. Without memory the score of
    'a' falls by 0.5 to 0.54, without symlog nothing changes but by luck, of either sign."""
    runs = []
    for seed in range(seeds):
        luck = (-1) ** seed * 10
        runs += [
            run("a", "full", seed, [50, 100], [0.1] * 60),
            run("a", "memory", seed, [0, 50 - 2 * seed], [0.3 + 0.01 * seed] * 60),
            run("a", "symlog", seed, [50 + luck, 100 + luck], [0.1] * 60),
            run("b", "full", seed, [-10, 0]),
            run("b", "memory", seed, [0, 10 + seed]),
        ]
    told = {"why": "so", "config": {"steps": 50}, "methods": [], "scale": 1.0}
    return {
        "ideas": {"symlog": "no symlog", "memory": "no memory"},
        "tasks": {
            "a": {"title": "Task A", "ideas": ["symlog", "memory"], "threshold": 100, **told}
            | {"random_return": 0.0},
            "b": {"title": "Task B", "ideas": ["memory"], "threshold": 0, **told}
            | {"random_return": -10.0},
        },
        "dreams": {"task": "a", "guesses": {"constant": [0.5] * 60, "mean": [0.4] * 60}},
        "scales": ["a", "b"],
        "runs": runs,
    }


def test_scores_by_hand():
    data = make_data(1)
    assert effects.scores(data, "a", "full") == {0: 0.75}
    assert effects.scores(data, "a", "memory") == {0: 0.25}
    assert effects.scores(data, "b", "full") == {0: 0.5}
    assert effects.scores(data, "b", "symlog") == {}
    data["runs"][0]["curve"]["return"] = [50]  # broke down: the other half counts as random
    assert effects.scores(data, "a", "full") == {0: 0.25}


def test_effects_by_hand():
    found = effects.effects(make_data(), "memory")
    a, b, dreams = found["a"], found["b"], found[effects.DREAMS]
    half = 2.776 * np.sqrt(0.00025 / 5)  # of -0.50 to -0.54: t for four degrees of freedom
    assert (a.low, a.high) == pytest.approx((-0.52 - half, -0.52 + half), abs=1e-5)
    assert a.mean == pytest.approx(-0.52) and a.seeds == 5
    assert b.mean == pytest.approx(1 / 2 + 0.6) and b.sign == 1
    assert dreams.mean == pytest.approx(0.22) and dreams.sign == 1
    quiet = effects.effects(make_data(), "symlog")
    assert quiet["a"].sign == 0 and quiet["a"].low < 0 < quiet["a"].high and "b" not in quiet


def test_only_seeds_of_both_are_compared():
    data = make_data()
    data["runs"] = [r for r in data["runs"] if (r["variant"], r["seed"]) != ("full", 3)]
    effect = effects.effects(data, "memory")["a"]
    assert effect.seeds == 4
    assert effect.mean == pytest.approx(-(0.5 + 0.51 + 0.52 + 0.54) / 4)
    assert effect.sign == 0  # too few to say


def test_sentences_say_what_the_intervals_say():
    data = make_data()
    assert effects.sentence(data, "memory") == (
        "removing it costs 0.52 on Task A; gains 1.10 on Task B; "
        "raises the error of 15-step dreams by 0.22."
    )
    assert effects.sentence(data, "symlog") == "nothing measurable here."
    for r in data["runs"]:  # worse without symlog on A, dreams as good as before
        if (r["task"], r["variant"]) == ("a", "symlog"):
            r["curve"]["return"] = [40, 80 + r["seed"]]
    assert effects.sentence(data, "symlog") == (
        "removing it costs 0.14 on Task A; nothing measurable in the rest."
    )
    data["runs"] = [r for r in data["runs"] if (r["task"], r["variant"]) != ("b", "memory")]
    assert effects.sentence(data, "memory") == (
        "removing it costs 0.52 on Task A; raises the error of 15-step dreams by 0.22; "
        "1 of 3 not measured yet."
    )
    for seeds in (0, 1, 4):
        assert effects.sentence(make_data(seeds), "memory") == "not measured yet with 5 seeds."


def test_table_by_hand():
    head, full, symlog, memory = effects.rows(make_data())
    assert head == ["Idea", "Task A", "Task B", "Dream error, 15 steps"]
    assert full[1:] == ["0.75", "0.50", "0.10"]
    assert symlog == ["symlog", "+0.02", "", "+0.00"]
    assert memory == ["memory", "**-0.52**", "**+1.10**", "**+0.22**"]
    for row in list(effects.rows(make_data(0)))[1:]:
        assert set(row[1:]) <= {"?", ""}
    note = effects.note(make_data())
    assert "25 of 25 runs, 1.2 CPU hours (Some CPU)" in note and "Of 5 intervals" in note


def test_table_of_scales_by_hand():
    data = make_data(2)
    data["tasks"]["b"] |= {"scale": 10_000.0, "methods": ["ppo"]}
    data["runs"] += [run("b", "ppo", 0, [-4.0]), run("b", "ppo", 1, [-6.0])]
    data["runs"][0]["curve"]["return"] = [50]  # broke down
    assert list(effects.scale_rows(data, {"ppo": [80.0, 70.0, 80.0, 80.0, 80.0], "sac": []})) == [
        ["Rewards", "x 1", "x 10,000"],
        ["Dreamer", "50 (0, 2 of 5 seeds)", "0 (0, 2 of 5 seeds)"],
        ["Dreamer without memory", "49 (48, 2 of 5 seeds)", "10 (10, 2 of 5 seeds)"],
        ["PPO", "78 (70)", "-5 (-6, 2 of 5 seeds)"],
        ["SAC", "?", "?"],
    ]
    assert effects.scores(data, "b", "full") == {0: 0.5, 1: 0.5}  # its own curves alone count


def test_readme_part_without_and_with_results(tmp_path):
    assert results.ablations_table(tmp_path).startswith("Not measured yet: `python 08_abl")
    (tmp_path / "ablations.json").write_text(json.dumps(make_data(2)))
    text = results.ablations_table(tmp_path)
    assert (
        "| memory | -0.51 |" in text
        and "- **symlog** (no symlog): not measured yet with 5 seeds." in text
        and "| SAC | ? | ? |" in text
        and "- Task A; Task B: so." in text
    )


# ---------------------------------------------------------------- the results file


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """finished(task, variant, seed, returns) makes that run complete; random policies have 7."""
    monkeypatch.setattr(script, "random_returns", lambda env: np.array([7.0]))

    def finish(task, variant, seed, returns, **config):
        (cell,) = script.make_cells(flags(tmp_path, seeds=[seed]), [task], [variant])
        result = run(task, variant, seed, returns)
        folder = Path(cell.folder)
        folder.mkdir(parents=True, exist_ok=True)
        result = {**result, "config": {**cell.config, **config}}
        (folder / "result.json").write_text(json.dumps(result))

    return finish


def recorded(data):
    return [(r["task"], r["variant"], r["seed"], r["curve"]["return"]) for r in data["runs"]]


def test_complete_runs_are_collected_in_order(tmp_path, finished):
    finished("pendulum-x100", "full", 1, [3.0])
    finished("cartpole", "memory", 0, [2.0])
    finished("cartpole", "full", 0, [1.0])
    finished("cartpole", "unimix", 0, [9.0], unimix=0.5)  # of another config
    data = script.collect(flags(tmp_path))
    assert recorded(data) == [
        ("cartpole", "full", 0, [1.0]),
        ("cartpole", "memory", 0, [2.0]),
        ("pendulum-x100", "full", 1, [3.0]),
    ]
    assert data == json.loads((tmp_path / "assets/results/ablations.json").read_text())
    assert data["tasks"]["cartpole"]["random_return"] == 7
    assert data["tasks"]["pendulum-x100"]["random_return"] == 0.07
    assert data["tasks"]["acrobot"]["random_return"] is None


def test_what_is_recorded_stays_until_its_settings_change(tmp_path, finished, monkeypatch):
    finished("cartpole", "full", 0, [1.0])
    finished("pendulum", "full", 0, [2.0])
    script.collect(flags(tmp_path))
    for path in tmp_path.glob("runs/**/result.json"):
        path.unlink()
    finished("pendulum", "full", 1, [3.0])
    assert recorded(script.collect(flags(tmp_path))) == [
        ("cartpole", "full", 0, [1.0]),
        ("pendulum", "full", 0, [2.0]),
        ("pendulum", "full", 1, [3.0]),
    ]
    monkeypatch.setattr(script.cli, "SMOKE", {**script.cli.SMOKE, "gamma": 0.5})
    assert recorded(script.collect(flags(tmp_path))) == []


def test_what_is_recorded_is_not_run_again(tmp_path, finished, monkeypatch, capsys):
    finished("cartpole", "full", 0, [1.0])
    script.collect(flags(tmp_path))
    for path in tmp_path.glob("runs/**/result.json"):
        path.unlink()
    begun = []
    changes = {"tasks": ["cartpole"], "ideas": ["memory"], "run": None, "plot_only": False}
    planned = flags(tmp_path, **changes)
    monkeypatch.setattr(script, "parse_flags", lambda: planned)
    monkeypatch.setattr(script, "run_jobs", lambda jobs, at_once: begun.extend(jobs) or [])
    script.main()
    names = [(job.variant, job.seed) for job in begun]
    assert names == [("memory", 0), ("full", 1), ("memory", 1)]
    assert "1 of 4 runs are in" in capsys.readouterr().out
    planned.fresh = True
    script.main()
    assert len(begun) == 3 + 4


# ---------------------------------------------------------------- the figures


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seeds", [0, 1, 5])
def test_figures_show_what_is_there(tmp_path, seeds):
    data = make_data(seeds)
    data["tasks"] = {"pendulum" if k == "a" else k: v for k, v in data["tasks"].items()}
    data["runs"] = [{**r, "task": r["task"].replace("a", "pendulum")} for r in data["runs"]]
    data["dreams"]["task"] = "pendulum"
    script.draw(data, tmp_path)
    for name in ("08_ablations.png", "08_dreams.png"):
        picture = np.asarray(Image.open(tmp_path / name).convert("L"))
        assert (picture < 128).mean() > 0.002
