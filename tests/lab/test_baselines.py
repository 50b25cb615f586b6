"""Baselines: the Zoo's settings reach the library, and judging leaves no trace in training."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch

from lab import baselines
from lab.baselines import evaluate, make_model, run, settings

pytest.importorskip("stable_baselines3")
pytestmark = pytest.mark.baselines
PAIRS = [(env_id, method) for env_id, methods in baselines.ZOO.items() for method in methods]


def tiny(env_id="CartPole-v1", method="ppo", seed=0, **hyperparameters):
    """A run of a second or so."""
    config = settings(env_id, method, seed, smoke=True) | {"final_episodes": 3}
    return config | {"hyperparameters": config["hyperparameters"] | hyperparameters}


# ---------------------------------------------------------------- the Zoo's settings


@pytest.mark.parametrize(("env_id", "method"), PAIRS)
def test_the_library_takes_the_settings(env_id, method):
    config = settings(env_id, method, seed=3)
    assert json.loads(json.dumps(config)) == config
    model = make_model(config, env_id)
    wanted = config["hyperparameters"]
    assert model.n_envs == wanted.get("n_envs", 1)
    for name in ("gamma", "gae_lambda", "n_steps", "n_epochs", "batch_size", "buffer_size"):
        if name in wanted:
            assert getattr(model, name) == wanted[name]
    assert (model.get_vec_normalize_env() is not None) == wanted.get("normalize", False)


def test_linear_schedules_and_normalisation():
    model = make_model(settings("CartPole-v1", "ppo", 0), "CartPole-v1")
    for progress_remaining, rate, clip in ((1.0, 0.001, 0.2), (0.5, 0.0005, 0.1), (0.0, 0, 0)):
        assert model.lr_schedule(progress_remaining) == pytest.approx(rate)
        assert model.clip_range(progress_remaining) == pytest.approx(clip)
    envs = make_model(settings("Acrobot-v1", "ppo", 0), "Acrobot-v1").get_vec_normalize_env()
    assert (envs.norm_obs, envs.norm_reward, envs.training, envs.gamma) == (True, True, True, 0.99)


def test_seeds_differ_in_everything():
    def start(seed):
        model = make_model(settings("CartPole-v1", "ppo", seed), "CartPole-v1")
        return next(model.policy.parameters()).detach(), model.env.reset()

    (weights, obs), (same_weights, same_obs), (other_weights, other_obs) = map(start, (0, 0, 1))
    assert torch.equal(weights, same_weights) and not torch.equal(weights, other_weights)
    np.testing.assert_array_equal(obs, same_obs)
    assert not set(obs.ravel()) & set(other_obs.ravel())  # none of the eight starts is shared


# ---------------------------------------------------------------- judging


def test_a_run_is_evaluated_when_it_is_due_and_at_its_end():
    entry = run(tiny() | {"evals": 3})  # due at 100, 100 * sqrt(3) = 173 and 300 steps
    # 8 environments at a time, and 2 rollouts of 32 steps of each.
    assert entry["curve"]["env_steps"] == [104, 176, 512]
    assert entry["env_steps"] == 512
    assert len(entry["final_returns"]) == 3
    assert entry["config"] == tiny() | {"evals": 3}
    for row, step, ret in zip(entry["diagnostics"], *entry["curve"].values(), strict=True):
        assert (row["kind"], row["step"], row["return"]) == ("eval", step, ret)
    minutes = [row["minutes"] for row in entry["diagnostics"]]
    assert 0 < minutes[0] < minutes[1] < minutes[2]
    # The same moment: the clock read twice with nothing between, and each rounded to 4 digits.
    assert minutes[2] == pytest.approx(entry["minutes"], rel=0.01)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry


def test_evaluations_cost_no_minutes(monkeypatch):
    """On a clock that moves during evaluations alone, training takes no time."""
    clock = np.zeros(2)
    monkeypatch.setattr(baselines, "now", clock.copy)

    def slow(*args):
        clock[:] += 60
        return np.zeros(1)

    monkeypatch.setattr(baselines, "evaluate", slow)
    entry = run(tiny())
    assert clock[0] == 180  # two while learning, one at the end
    assert (entry["minutes"], entry["cpu_minutes"]) == (0, 0)
    assert [row["minutes"] for row in entry["diagnostics"]] == [0, 0]


@pytest.mark.parametrize(
    ("env_id", "method", "changes"),
    [
        ("CartPole-v1", "dqn", {"learning_starts": 50, "train_freq": 50, "gradient_steps": 2}),
        ("Pendulum-v1", "ppo", {"n_steps": 64}),  # with state-dependent exploration
        ("Acrobot-v1", "ppo", {"n_steps": 8}),  # normalised
    ],
)
def test_training_does_not_notice_that_it_is_judged(env_id, method, changes, monkeypatch):
    config, judge = tiny(env_id, method, **changes), baselines.evaluate

    def train(judged):
        weights = []

        def evaluate(model, *args):
            returns = judge(model, *args) if judged else np.zeros(1)
            weights.append([p.detach().clone() for p in model.policy.parameters()])
            return returns

        monkeypatch.setattr(baselines, "evaluate", evaluate)
        run(config)
        return weights

    watched, alone = train(True), train(False)
    for with_episodes, without in zip(watched, alone, strict=True):
        assert all(map(torch.equal, with_episodes, without))
    assert not all(map(torch.equal, alone[0], alone[-1]))  # it did learn in between


def test_evaluation_uses_the_statistics_of_training_and_leaves_them(monkeypatch):
    model = make_model(settings("Acrobot-v1", "ppo", 0), "Acrobot-v1")
    training = model.get_vec_normalize_env()
    training.obs_rms.mean[:] = [0.5, 0, 0, 0, 0, -100]
    training.obs_rms.var[:] = 4
    before = training.obs_rms.mean.copy(), training.obs_rms.count, training.ret_rms.count
    seen, predict = [], model.predict

    def watch(obs, **options):
        seen.append(obs)
        assert options["deterministic"]
        return predict(obs, **options)

    monkeypatch.setattr(model, "predict", watch)
    returns = evaluate(model, "Acrobot-v1", 4, 7)
    # At the start both cosines are nearly 1 and all else nearly 0; what is far off is clipped.
    np.testing.assert_allclose(seen[0], np.tile([0.25, 0, 0.5, 0, 0, 10], (4, 1)), atol=0.06)
    np.testing.assert_array_equal(training.obs_rms.mean, before[0])
    assert (training.obs_rms.count, training.ret_rms.count) == before[1:]
    assert returns.shape == (4,) and (returns == returns.round()).all()  # raw: -1 a step
    assert (returns <= -1).all() and (returns >= -500).all()


def test_episodes_depend_on_the_seed_alone():
    model = make_model(settings("Pendulum-v1", "sac", 0), "Pendulum-v1")
    first = evaluate(model, "Pendulum-v1", 3, 1, 500)
    np.testing.assert_array_equal(first, evaluate(model, "Pendulum-v1", 3, 1, 500))
    assert len({*first, *evaluate(model, "Pendulum-v1", 3, 1, 501)}) == 6


def test_any_environment_can_be_given():
    def scaled():
        return gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: 100 * reward)

    plain, entry = run(tiny(n_timesteps=64)), run(tiny(n_timesteps=64), scaled)
    assert all(value >= 800 and value % 100 == 0 for value in entry["final_returns"])
    assert max(plain["final_returns"]) <= 500
