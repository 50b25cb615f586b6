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
from PIL import Image

from dreamer.agent import DreamerAgent
from dreamer.cli import parse
from dreamer.envs import AgentEnv
from dreamer.training import train
from lab import results
from lab.variants import VARIANTS

script = importlib.import_module("08_ablations")


@pytest.fixture(autouse=True)
def few_windows(monkeypatch):
    """Dreams are measured on 16 episodes."""
    script.unseen_windows.cache_clear()
    monkeypatch.setattr(script, "WINDOWS", 16)
    yield
    script.unseen_windows.cache_clear()


# ---------------------------------------------------------------- the tasks


def rollout(env, steps=300, seed=3):
    """obs (T, O) and reward (T,) of one fixed sequence of actions."""
    env, rng, rows, episode = AgentEnv(env), np.random.default_rng(0), [], 0
    (obs, _), reward = env.reset(seed=seed), 0.0
    for _ in range(steps):
        rows.append((obs, reward))
        obs, reward, terminated, truncated, _ = env.step(env.random_action(rng))
        if terminated or truncated:
            episode += 1
            (obs, _), reward = env.reset(seed=seed + episode), 0.0
    obs, reward = (np.array(column) for column in zip(*rows, strict=True))
    return obs, reward


def test_the_blind_task_hides_the_velocities_and_nothing_else():
    blind = script.TASKS["cartpole-blind"].env
    (obs, reward), (all_obs, same_reward) = rollout(blind), rollout("CartPole-v1")
    np.testing.assert_array_equal(obs, all_obs[:, [0, 2]])
    np.testing.assert_array_equal(reward, same_reward)


@pytest.mark.parametrize("scale", [0.01, 10_000.0])
def test_scaled_tasks_scale_the_reward_and_nothing_else(scale):
    task = script.TASKS[f"pendulum-x{scale:g}"]
    (obs, reward), (same_obs, plain) = rollout(task.env), rollout("Pendulum-v1")
    np.testing.assert_allclose(reward, scale * plain, rtol=1e-5)
    np.testing.assert_array_equal(obs, same_obs)
    assert task.scale == scale


def test_glitches_are_rare_large_and_repeatable():
    env = script.TASKS["cartpole-glitches"].env
    (obs, reward), (plain, same_reward) = rollout(env, 2500), rollout("CartPole-v1", 2500)
    wrong = obs != plain
    assert 0.005 < wrong.mean() < 0.015
    np.testing.assert_allclose(obs[wrong], 1000 * plain[wrong], rtol=1e-5)
    np.testing.assert_array_equal(reward, same_reward)
    np.testing.assert_array_equal(rollout(env, 2500)[0], obs)


# ---------------------------------------------------------------- which runs


def test_the_committed_runs_are_those_of_today():
    """Their settings, and those of the numbered scripts, except for what a variant changes."""
    data = json.loads(script.COMMITTED.read_text())
    runs = {(run["task"], run["variant"], run["seed"]): run["config"] for run in data["runs"]}
    assert list(runs) == [(*pair, seed) for pair in script.PLANNED for seed in range(5)]
    for key, config in runs.items():
        assert config == script.settings(*key, False)
    for name, task in script.TASKS.items():
        own, info = {"steps": task.steps, "seed": 3}, data["tasks"][name]
        assert script.config_of(name, "full", 3) == dataclasses.replace(task.script.CONFIG, **own)
        assert (list(task.ideas), list(task.methods)) == (info["ideas"], info["methods"])
        assert (task.title, task.scale) == (info["title"], info["scale"])
        assert task.script.THRESHOLD == info["threshold"] and set(task.ideas) < set(VARIANTS)
    changed = dataclasses.asdict(script.config_of("pendulum", "free bits", 0))
    full = dataclasses.asdict(script.config_of("pendulum", "full", 0))
    assert {k for k in full if full[k] != changed[k]} == {"free_nats"}


# ---------------------------------------------------------------- one run's numbers


def test_the_full_agent_is_the_ordinary_one(tmp_path):
    config = tiny_config(evals=2)
    run = script.run_variant("cartpole", "full", config, tmp_path)
    plain = train("CartPole-v1", config, progress=False, device="cpu")
    assert run["curve"]["env_steps"] == [row["step"] for row in plain.evals]
    assert run["curve"]["return"] == [results.significant(row["return"]) for row in plain.evals]
    assert run["return"] == run["curve"]["return"][-1] and run["dream_error"] is None
    assert run["minutes"] > 0 and run["cpu_minutes"] > 0
    assert VARIANTS["full"].names == VARIANTS["full"].fields == {}


def test_a_run_that_breaks_down_is_a_result(monkeypatch, tmp_path):
    calls = []

    def breaks(self, batch, update=DreamerAgent.update):
        calls.append(1)
        metrics, states = update(self, batch)
        metrics["loss"] *= math.nan if len(calls) > 6 else 1
        return metrics, states

    monkeypatch.setattr(DreamerAgent, "update", breaks)
    result = script.run_variant("cartpole", "full", tiny_config(evals=10), tmp_path)
    assert 0 < len(result["curve"]["return"]) < 7
    assert result["dream_error"] is None


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


def test_returns_are_in_the_tasks_own_units():
    entry = script.entry("pendulum-x10000", {500: -12_345_600.0, 1000: -2e6}, minutes=2.0)
    assert entry["curve"] == {"env_steps": [500, 1000], "return": [-1235.0, -200.0]}
    assert (entry["return"], entry["minutes"], entry["dream_error"]) == (-200.0, 2.0, None)
    assert script.entry("cartpole", {})["return"] is None


# ---------------------------------------------------------------- the command line


def call(*words):
    return script.main(parse(script.Flags, "", list(map(str, words))))


def test_the_committed_numbers_are_drawn_and_published(tmp_path, monkeypatch, capsys):
    assets, out = tmp_path / "assets", tmp_path / "out"
    assets.mkdir()
    copy = Path(shutil.copy(script.COMMITTED, assets))
    before = copy.read_text()
    monkeypatch.setattr(script, "COMMITTED", copy)
    monkeypatch.setattr(results, "ASSETS", assets)
    monkeypatch.setattr(script.baselines, "INSTALLED", False)  # it is not needed
    assert call("--publish", "--out", out) == 0
    written = {path.name for path in (out / script.NAME).iterdir()}
    assert written == {path.name for path in assets.iterdir()}
    assert written == {"ablations.json", "08_ablations.png"}
    picture = np.asarray(Image.open(assets / "08_ablations.png").convert("L"))
    assert (picture < 128).mean() > 0.002
    printed = capsys.readouterr().out
    assert "210 of 210 runs." in printed and "| memory | -0.07 |" in printed
    assert "| Dreamer without two-hot |" in printed
    assert {**json.loads(copy.read_text()), "versions": 0} == {**json.loads(before), "versions": 0}


@pytest.mark.parametrize(("installed", "methods"), [(True, ["sac"]), (False, [])])
def test_ideas_bring_the_full_agent_and_methods_need_the_library(installed, methods, monkeypatch):
    class Chosen(Exception):
        pass

    def choose(name, flags, variants, *_):
        raise Chosen(*variants)

    monkeypatch.setattr(script.baselines, "INSTALLED", installed)
    monkeypatch.setattr(script.engine, "make_runs", choose)
    with pytest.raises(Chosen) as chosen:
        call("--ideas", "memory", "sac")
    assert list(chosen.value.args) == ["full", "memory", *methods]


@pytest.mark.scripts
@pytest.mark.baselines
def test_every_stage_in_seconds(tmp_path, capsys):
    assert call("--smoke", "--jobs", "2", "--out", tmp_path) == 0
    data = json.loads((tmp_path / "08_ablations" / "ablations.json").read_text())
    runs = {(run["task"], run["variant"], run["seed"]): run for run in data["runs"]}
    assert list(runs) == [(*pair, 0) for pair in script.SMOKE]
    assert all(runs[pair[0], pair[1], 0]["dream_error"] for pair in script.SMOKE[:2])
    sac = runs["pendulum-x10000", "sac", 0]  # it got the scaled rewards, and tells plain ones
    assert -2000 < sac["curve"]["return"][-1] < -100
    assert capsys.readouterr().out.count("/seed0: done") == 4
    call("--smoke", "--out", tmp_path)  # again: nothing is left to do
    assert capsys.readouterr().out.count("/seed0: complete") == 4
