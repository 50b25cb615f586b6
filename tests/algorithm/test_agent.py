"""One update of everything, and acting: same numbers for the same seed, the same filter as in
training."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from agents import (
    LAYOUTS,
    MODEL_PARTS,
    PARTS,
    adversarial_update,
    make_agent,
    make_batch,
    random_action,
    random_obs,
)
from conftest import CPU, tiny_config

from dreamer.agent import DreamerAgent, rate_factor
from dreamer.config import Config
from dreamer.utils import make_rng

pytestmark = pytest.mark.usefixtures("one_scale")


@pytest.mark.parametrize("actor_grad", ["reinforce", "pathwise"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_an_update_moves_every_part_and_leaves_it_finite(kind, actor_grad):
    agent = make_agent(kind, actor_grad=actor_grad)
    before = {part: [p.clone() for p in getattr(agent, part).parameters()] for part in PARTS}
    metrics, _ = agent.update(make_batch(agent))
    for part in PARTS:
        after = list(getattr(agent, part).parameters())
        assert any(not torch.equal(p, q) for p, q in zip(before[part], after, strict=True)), part
        assert all(p.isfinite().all() for p in after), part
    for name, value in metrics.items():
        assert value.shape == () and value.isfinite() and not value.requires_grad, name


def test_rates_fall_with_the_updates_by_hand():
    sizes = {"prefill": 0, "train_ratio": 4, "batch_size": 2, "seq_len": 16, "lr_halving": 20}
    config = Config(steps=1_600, **sizes)
    assert [config.updates_after(steps) for steps in (0, 7, 8, 1_600)] == [0, 0, 1, 200]
    expected = {0: 1, 20: 1 / 2, 40: 1 / 3, 60: 0.3, 150: 0.3}  # the last quarter is 50 updates
    expected |= {151: 0.3 * 0.98, 175: 0.3 * 0.5, 199: 0.3 * 0.05, 200: 0.3 * 0.05, 999: 0.3 * 0.05}
    assert {u: rate_factor(config, u) for u in expected} == pytest.approx(expected)
    short = Config(steps=40, **sizes)
    assert rate_factor(short, 4) == pytest.approx(1 / 1.2 * 0.8)  # 5 updates in all, both factors


def test_optimizer_follows_the_rates():
    sizes = {"steps": 12, "train_ratio": 4, "batch_size": 2, "seq_len": 6}
    agent = make_agent(model_lr=0.3, actor_lr=0.1, critic_lr=0.2, lr_halving=2, **sizes)
    batch = make_batch(agent)
    factors = []
    for updates in range(6):
        factors.append(rate_factor(agent.config, updates))
        rates = [group["lr"] for group in agent.optimizer.param_groups]
        assert rates == pytest.approx([0.3 * factors[-1], 0.1 * factors[-1], 0.2 * factors[-1]])
        agent.update(batch)
    assert factors == sorted(factors, reverse=True) and factors[-1] < factors[0] / 5


def test_the_world_model_learns_one_batch_by_heart():
    agent = make_agent(stir=0, steps=10_000, model_lr=1e-2, hidden=32, deter=32, imag_horizon=1)
    batch = make_batch(agent)
    losses = [agent.update(batch)[0] for _ in range(150)]
    assert losses[0]["reward_loss"].item() == pytest.approx(math.log(255), rel=1e-5)
    assert losses[-1]["reward_loss"] < 1  # two-hot targets have an entropy of up to ln 2
    assert losses[-1]["cont_loss"] < 0.1 < losses[0]["cont_loss"]
    assert losses[-1]["obs_loss"] < 0.3 * losses[0]["obs_loss"]


def test_the_slow_critic_begins_as_the_critic_and_moves_by_two_percent():
    fresh = make_agent(stir=0)
    for slow, fast in zip(fresh.slow_critic.parameters(), fresh.critic.parameters(), strict=True):
        assert torch.equal(slow, fast) and slow is not fast
    agent = make_agent(slow_rate=0.02)
    before = [p.clone() for p in agent.slow_critic.parameters()]
    agent.update(make_batch(agent))
    moved = zip(before, agent.slow_critic.parameters(), agent.critic.parameters(), strict=True)
    for old, slow, fast in moved:
        torch.testing.assert_close(slow, 0.98 * old + 0.02 * fast)
        assert not slow.requires_grad


def test_the_loss_is_the_sum_of_its_parts():
    agent = make_agent(replay_value_weight=0.3)
    metrics, _ = agent.update(make_batch(agent))
    names = "model_loss", "actor_loss", "critic_loss"
    expected = sum(metrics[name] for name in names) + 0.3 * metrics["replay_value_loss"]
    torch.testing.assert_close(metrics["loss"], expected)


def test_gradients_are_clipped_for_each_group():
    agent = make_agent(grad_clip=1e-3)
    metrics, _ = agent.update(make_batch(agent))
    groups = {
        "model": [p for part in MODEL_PARTS for p in getattr(agent, part).parameters()],
        "actor": list(agent.actor.parameters()),
        "critic": list(agent.critic.parameters()),
    }
    for name, params in groups.items():
        norm = torch.stack([p.grad.norm() for p in params if p.grad is not None]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=1e-2)
        assert metrics[f"{name}_grad_norm"] > 1e-3  # as it was before


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_same_seed_same_numbers(kind):
    def weights_and_metrics(seed):
        torch.manual_seed(np.random.default_rng().integers(1000))  # the global seed is irrelevant
        agent = DreamerAgent(LAYOUTS[kind], tiny_config(seed=seed))
        metrics = [agent.update(make_batch(agent, i))[0] for i in range(3)]
        return list(agent.state_dict().values()), metrics[-1]

    first, again, other = (weights_and_metrics(seed) for seed in (3, 3, 4))
    assert all(torch.equal(x, y) for x, y in zip(first[0], again[0], strict=True))
    assert first[1] == again[1]
    assert first[1]["loss"] != other[1]["loss"]


def test_agents_made_in_several_threads_at_once_have_the_weights_of_their_seed():
    with ThreadPoolExecutor(4) as pool:
        agents = list(pool.map(lambda _: make_agent(stir=0), range(8)))
    for weights in zip(*(agent.state_dict().values() for agent in agents), strict=True):
        assert all(torch.equal(weights[0], other) for other in weights)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize(
    "extreme",
    [
        {"imag_horizon": 1},
        {"imag_horizon": 1, "actor_grad": "pathwise"},
        {"batch_size": 1, "imag_starts": 1},
        {"batch_size": 1, "seq_len": 2},
        {"categoricals": 1, "classes": 2},
        {"deter": 1, "hidden": 1},
        {"unimix": 0.0, "free_nats": 0.0},
        {"gamma": 1.0, "lam": 1.0, "replay_value_weight": 0.0, "slow_weight": 0.0},
        {"gamma": 0.0, "lam": 0.0},
    ],
    ids=str,
)
def test_sensible_extremes_can_be_updated(kind, extreme):
    agent = make_agent(kind, stir=0, **extreme)
    for i in range(3):
        metrics, _ = agent.update(make_batch(agent, i))
    assert all(value.isfinite() for value in metrics.values())
    assert all(p.isfinite().all() for p in agent.parameters())


@pytest.mark.parametrize("actor_grad", ["reinforce", "pathwise"])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_adversarial_data_leaves_all_weights_finite(kind, actor_grad):
    agent = DreamerAgent(LAYOUTS[kind], tiny_config(actor_grad=actor_grad))
    rng = np.random.default_rng(0)
    for _ in range(40):
        adversarial_update(agent, rng)
    assert all(value.isfinite().all() for value in agent.state_dict().values())


@pytest.mark.parametrize("kind", LAYOUTS)
def test_acting_filters_as_training_does(kind):
    """`act`, one observation after the other, and `observe`, on the replayed rows, meet the same
    deter and the same latents; also where exploration replaced the action, where an action was
    out of range and clipped for the replay, and across episode starts."""
    agent = make_agent(kind)
    rng = np.random.default_rng(0)
    steps, envs = 12, 3
    obs = random_obs(agent.layout, (steps, envs), rng)
    is_first = rng.random((steps, envs)) < 0.2
    is_first[0] = True
    act_rng, state = make_rng(CPU, 11), None
    states, actions = [], []
    for t in range(steps):
        action, state = agent.act(obs[t], is_first[t], state, greedy=True, rng=act_rng)
        if t % 2:
            action = random_action(agent.layout, (envs,), rng)
            if not agent.layout.discrete:
                action *= 3
            state = state._replace(action=torch.from_numpy(action))
        states.append(state)
        actions.append(np.clip(action, -1, 1))

    with torch.no_grad():
        embed = agent.encoder(torch.from_numpy(obs).transpose(0, 1))
        post, _ = agent.rssm.observe(
            embed,
            torch.from_numpy(np.stack(actions, 1)),
            torch.from_numpy(is_first).T,
            make_rng(CPU, 11),  # greedy acting draws nothing but the latents' numbers
        )
    for t, state in enumerate(states):
        torch.testing.assert_close(state.deter, post.deter[:, t], rtol=0, atol=1e-5)
        assert torch.equal(state.stoch, post.stoch[:, t])


def test_several_environments_at_once_act_as_one_after_another_do():
    """Each row draws its latents' numbers in turn, so that one generator serves both. Episodes
    start at different times."""
    agent, rng = make_agent("everything"), np.random.default_rng(0)
    steps, envs = 10, 3
    obs = random_obs(agent.layout, (steps, envs), rng)
    is_first = rng.random((steps, envs)) < 0.3
    assert is_first[1:].any(0).all() and not is_first[1:].all(1).any()
    together, state = make_rng(CPU, 1), None
    in_turn, states = make_rng(CPU, 1), [None] * envs
    for t in range(steps):
        action, state = agent.act(obs[t], is_first[t], state, greedy=True, rng=together)
        for i in range(envs):
            row = slice(i, i + 1)
            alone, states[i] = agent.act(obs[t, row], is_first[t, row], states[i], True, in_turn)
            np.testing.assert_array_equal(alone, action[row])
            assert torch.equal(states[i].stoch, state.stoch[row])
            torch.testing.assert_close(states[i].deter, state.deter[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_act_returns_actions_and_the_state_that_holds_them(kind):
    agent = make_agent(kind)
    obs = random_obs(agent.layout, (4,), np.random.default_rng(0))
    for greedy in (False, True):
        action, state = agent.act(obs, np.ones(4, bool), greedy=greedy)
        assert action.shape == (4, agent.layout.action_size) and action.dtype == np.float32
        np.testing.assert_array_equal(state.action.numpy(), action)
    policy = agent.actor(agent.rssm.get_feat(state))  # what is greedy is the mode
    if kind == "continuous":
        np.testing.assert_array_equal(action, policy.mean.detach())
    else:
        modes = [F.one_hot(part.argmax(-1), part.shape[-1]) for part in policy.log_probs]
        np.testing.assert_array_equal(action, torch.cat(modes, -1))


def test_sampled_actions_follow_the_policy():
    """Averages over 2000 environments of one observation, each with latents of its own."""
    agent = make_agent()
    n = 2000
    action, state = agent.act(np.ones((n, 3)), np.ones(n, bool))
    assert ((action == 0) | (action == 1)).all() and (action.sum(-1) == 1).all()
    (log_probs,) = agent.actor(agent.rssm.get_feat(state)).log_probs
    probs = log_probs.exp().mean(0).detach().numpy()
    np.testing.assert_allclose(action.mean(0), probs, atol=5 * math.sqrt(0.25 / n))


def test_acting_with_a_generator_of_its_own_leaves_the_agents_alone():
    agent = make_agent()
    before, world = agent.rng.get_state(), torch.get_rng_state()
    agent.act(np.ones((2, 3)), np.ones(2, bool), rng=make_rng(CPU, 1))
    assert torch.equal(before, agent.rng.get_state())
    assert torch.equal(world, torch.get_rng_state())
    agent.act(np.ones((2, 3)), np.ones(2, bool))
    assert not torch.equal(before, agent.rng.get_state())
