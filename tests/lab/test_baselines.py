"""Baselines: the Zoo's settings reach the library, and judging leaves no trace in training."""

import json

import numpy as np
import pytest
import torch

from lab import baselines
from lab.baselines import evaluate, make_model, run, settings

pytest.importorskip("stable_baselines3")
pytestmark = pytest.mark.baselines
PAIRS = [(env_id, method) for env_id, methods in baselines.ZOO.items() for method in methods]


def tiny(env_id="CartPole-v1", method="ppo", **hyperparameters):
    """A run of a second or so."""
    config = settings(env_id, method, 0, smoke=True) | {"final_episodes": 3}
    return config | {"hyperparameters": config["hyperparameters"] | hyperparameters}


@pytest.mark.parametrize(("env_id", "method"), PAIRS)
def test_the_library_takes_the_settings(env_id, method):
    config = settings(env_id, method, seed=3)
    model, wanted = make_model(config, env_id), config["hyperparameters"]
    assert model.n_envs == wanted.get("n_envs", 1)
    names = ("gamma", "gae_lambda", "n_steps", "n_epochs", "batch_size", "buffer_size")
    for name in wanted.keys() & names:
        assert getattr(model, name) == wanted[name]
    assert (model.get_vec_normalize_env() is not None) == wanted.get("normalize", False)
    if wanted.get("learning_rate") == "lin_0.001":
        assert [model.lr_schedule(left) for left in (1, 0.5, 0)] == [0.001, 0.0005, 0]


def test_a_run_is_evaluated_when_it_is_due_and_that_costs_no_minutes(monkeypatch):
    """On a clock that moves during evaluations alone, training takes no time."""
    clock, episodes = np.zeros(2), []

    def slow(model, env, count, *seed):
        clock[:] += 60
        episodes.append((count, *seed))
        return np.full(count, 9.0)

    monkeypatch.setattr(baselines, "now", clock.copy)
    monkeypatch.setattr(baselines, "evaluate", slow)
    config = tiny() | {"evals": 3}  # due at 100, 100 * sqrt(3) = 173 and 300 steps
    entry = run(config)
    steps = [104, 176, 512]  # 8 environments at a time, and 2 rollouts of 32 steps of each
    assert entry["curve"] == {"env_steps": steps, "return": [9.0] * 3}
    assert entry["env_steps"] == 512 and entry["final_returns"] == [9.0] * 3
    assert episodes == [*((2, 0, step) for step in steps), (3, 0)]
    assert (entry["minutes"], entry["cpu_minutes"]) == (0, 0)
    assert json.loads(json.dumps(entry, allow_nan=False))["config"] == config


SHORT = {"learning_starts": 50, "train_freq": 50, "gradient_steps": 2}
CASES = [("CartPole-v1", "dqn", SHORT), ("Acrobot-v1", "ppo", {"n_steps": 8})]
CASES.append(("Pendulum-v1", "ppo", {"n_steps": 64}))  # with state-dependent exploration


@pytest.mark.parametrize(("env_id", "method", "changes"), CASES)
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


def test_evaluation_uses_the_statistics_of_training_and_depends_on_the_seed(monkeypatch):
    model, seen = make_model(settings("Acrobot-v1", "ppo", 0), "Acrobot-v1"), []
    training, predict = model.get_vec_normalize_env(), model.predict
    training.obs_rms.mean[:] = [0.5, 0, 0, 0, 0, -100]
    training.obs_rms.var[:] = 4

    def watch(obs, **options):
        seen.append(obs)
        assert options["deterministic"]
        return predict(obs, **options)

    monkeypatch.setattr(model, "predict", watch)
    returns = evaluate(model, "Acrobot-v1", 4, 7)
    # At the start both cosines are nearly 1 and all else nearly 0; what is far off is clipped.
    start = seen[0]
    np.testing.assert_allclose(start, np.tile([0.25, 0, 0.5, 0, 0, 10], (4, 1)), atol=0.06)
    assert (returns == returns.round()).all() and (returns <= -1).all()  # raw: -1 a step
    for seed, same in ((7, True), (8, False)):
        seen.clear()
        evaluate(model, "Acrobot-v1", 4, seed)
        assert np.array_equal(seen[0], start) == same and len(np.unique(start, axis=0)) == 4
