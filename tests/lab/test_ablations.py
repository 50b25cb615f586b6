"""08_ablations: its tasks are what they say, and its numbers those of the runs."""

import dataclasses
import importlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config

from dreamer.agent import DreamerAgent
from dreamer.cli import parse
from dreamer.envs import AgentEnv
from lab import results
from lab.variants import VARIANTS

script = importlib.import_module("08_ablations")


def rollout(env, steps=2500):
    """obs (T, O) and reward (T,) of one fixed sequence of actions."""
    env, rng, rows, ended = AgentEnv(env), np.random.default_rng(0), [], True
    for seed in range(steps):
        if ended:
            (obs, _), reward = env.reset(seed=seed), 0.0
        rows.append((obs, reward))
        obs, reward, terminated, truncated, _ = env.step(env.random_action(rng))
        ended = terminated or truncated
    return list(map(np.array, zip(*rows, strict=True)))


def test_the_tasks_change_what_they_say_and_nothing_else():
    """Glitches are rare, large and repeatable."""
    cartpole, pendulum = (rollout(env) for env in ("CartPole-v1", "Pendulum-v1"))
    blind, wild, again = (
        rollout(script.TASKS[f"cartpole-{name}"].env) for name in ("blind", "glitches", "glitches")
    )
    np.testing.assert_array_equal(blind[0], cartpole[0][:, [0, 2]])
    wrong = wild[0] != cartpole[0]
    assert 0.005 < wrong.mean() < 0.015
    np.testing.assert_allclose(wild[0][wrong], 1000 * cartpole[0][wrong], rtol=1e-5)
    np.testing.assert_array_equal(again[0], wild[0])
    for _, reward in blind, wild:
        np.testing.assert_array_equal(reward, cartpole[1])
    for scale in (0.01, 10_000.0):
        obs, reward = rollout(script.TASKS[f"pendulum-x{scale:g}"].env)
        np.testing.assert_array_equal(obs, pendulum[0])
        np.testing.assert_allclose(reward, scale * pendulum[1], rtol=1e-5)


def test_the_committed_runs_are_those_of_today():
    """Their settings, and those of the numbered scripts, except for what a variant changes."""
    data = json.loads(script.COMMITTED.read_text())
    runs = {(run["task"], run["variant"], run["seed"]): run["config"] for run in data["runs"]}
    assert list(runs) == [(*pair, seed) for pair in script.PLANNED for seed in range(5)]
    for key, config in runs.items():
        assert config == script.settings(*key, False)
    for name, task in script.TASKS.items():
        own = {"steps": task.steps, "seed": 3, "replay_value_weight": script.WEIGHT}
        info = data["tasks"][name]
        assert script.config_of(name, "full", 3) == dataclasses.replace(task.script.CONFIG, **own)
        assert (list(task.ideas), list(task.methods)) == (info["ideas"], info["methods"])
        assert (task.title, task.scale) == (info["title"], info["scale"])
        assert task.script.THRESHOLD == info["threshold"] and set(task.ideas) < set(VARIANTS)


def test_a_run_that_breaks_down_is_a_result(monkeypatch, tmp_path):
    calls = []

    def breaks(self, batch, update=DreamerAgent.update):
        calls.append(1)
        metrics, states = update(self, batch)
        metrics["loss"] *= math.nan if len(calls) > 6 else 1
        return metrics, states

    monkeypatch.setattr(DreamerAgent, "update", breaks)
    curve, *_ = script.run_variant("cartpole", "full", tiny_config(evals=10), tmp_path)
    assert 0 < len(curve) < 7


def test_the_error_of_dreams_by_hand(monkeypatch):
    """On whole episodes that differ. A guess that is off by one standard deviation at first, and by
    one more with each step."""

    def guess(agent, obs, action, context, seed):
        assert obs.shape == (16, script.CONTEXT + script.HORIZON, 3)
        assert action.shape == (*obs.shape[:2], 1)
        assert len(np.unique(obs[:, 0], axis=0)) == 16
        steps = np.arange(1, script.HORIZON + 1)[:, None]
        return {"obs": obs[:, context:] + steps * obs.std((0, 1))}

    monkeypatch.setattr(script, "WINDOWS", 16)
    monkeypatch.setattr(script, "open_loop", guess)
    assert script.dream_error(None) == pytest.approx([*range(1, script.HORIZON + 1)], rel=1e-3)


def test_returns_are_in_the_tasks_own_units(monkeypatch, tmp_path):
    curve = {500: -12_345_600.0, 1000: -2e6}
    monkeypatch.setattr(script, "run_variant", lambda *_: (curve, (2.0, 1.5), None))
    script.make("pendulum-x10000", "full", 0, False, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["curve"] == {"env_steps": [500, 1000], "return": [-1235.0, -200.0]}
    assert (result["return"], result["minutes"], result["cpu_minutes"]) == (-200.0, 2.0, 1.5)
    assert result["config"] == script.settings("pendulum-x10000", "full", 0, False)


def call(*words):
    return script.main(parse(script.Flags, "", list(map(str, words))))


def test_the_committed_numbers_are_drawn_and_published(tmp_path, monkeypatch, capsys):
    assets, out = tmp_path / "assets", tmp_path / "out"
    assets.mkdir()
    copy = Path(shutil.copy(script.COMMITTED, assets))
    before = json.loads(copy.read_text())
    monkeypatch.setattr(script, "COMMITTED", copy)
    monkeypatch.setattr(results, "ASSETS", assets)
    monkeypatch.setattr(script.baselines, "INSTALLED", False)  # it is not needed
    assert call("--publish", "--out", out) == 0
    written = {path.name for path in (out / script.NAME).iterdir()}
    assert written == {path.name for path in assets.iterdir()}
    assert written == {"ablations.json", "08_ablations.png"}
    printed = capsys.readouterr().out
    assert "210 of 210 runs." in printed and "| memory | -0.07 |" in printed
    assert "| Dreamer without two-hot |" in printed
    assert {**json.loads(copy.read_text()), "versions": 0} == {**before, "versions": 0}


@pytest.mark.scripts
@pytest.mark.baselines
def test_every_stage_in_seconds(tmp_path, capsys):
    words = ["--smoke", "--ideas", "memory", "sac", "--jobs", "2", "--out", tmp_path]
    assert call(*words) == 0  # the full agent comes too
    data = json.loads((tmp_path / "08_ablations" / "ablations.json").read_text())
    runs = {(run["task"], run["variant"], run["seed"]): run for run in data["runs"]}
    assert list(runs) == [(*pair, 0) for pair in script.SMOKE]
    assert all(runs[pair[0], pair[1], 0]["dream_error"] for pair in script.SMOKE[:2])
    sac = runs["pendulum-x10000", "sac", 0]  # it got the scaled rewards, and tells plain ones
    assert -2000 < sac["curve"]["return"][-1] < -100
    assert capsys.readouterr().out.count("/seed0: done") == 4
