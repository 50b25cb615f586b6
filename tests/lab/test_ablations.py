"""08_ablations: its tasks are what they say, and its numbers those of the runs."""

import dataclasses
import importlib
import json
import math
import sys

from lab import results
from lab.variants import VARIANTS
import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from dreamer.agent import DreamerAgent
from dreamer.envs import AgentEnv
from dreamer.training import train

script = importlib.import_module("08_ablations")


@pytest.fixture(autouse=True)
def few_windows(monkeypatch):
    """Dreams are measured on 16 episodes."""
    script.unseen_windows.cache_clear()
    monkeypatch.setattr(script, "WINDOWS", 16)
    yield
    script.unseen_windows.cache_clear()


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
    spec = script.TASKS["cartpole-glitches"].env
    (obs, reward), (plain, same_reward) = rollout(spec, 2500), rollout("CartPole-v1", 2500)
    wrong = obs != plain
    assert 0.005 < wrong.mean() < 0.015
    np.testing.assert_allclose(obs[wrong], 1000 * plain[wrong], rtol=1e-5)
    np.testing.assert_array_equal(reward, same_reward)
    np.testing.assert_array_equal(rollout(spec, 2500)[0], obs)


# ---------------------------------------------------------------- which runs


def committed():
    return json.loads((results.RESULTS / "ablations.json").read_text())


def test_settings_are_those_of_the_committed_runs_and_of_the_numbered_scripts():
    runs = committed()["runs"]
    for run in runs:
        key = run["task"], run["variant"], run["seed"]
        assert run["config"] == script.settings(*key, False)
    known = [(run["task"], run["variant"], run["seed"]) for run in runs]
    assert known == [(*pair, seed) for pair in script.PLANNED for seed in range(5)]
    for name, task in script.TASKS.items():
        own = {"steps": task.steps, "seed": 3}
        assert script.config_of(name, "full", 3) == dataclasses.replace(task.script.CONFIG, **own)
        assert set(task.ideas) < set(VARIANTS)
    changed = dataclasses.asdict(script.config_of("pendulum", "free bits", 0))
    full = dataclasses.asdict(script.config_of("pendulum", "full", 0))
    assert {k for k in full if full[k] != changed[k]} == {"free_nats"}


def test_what_a_task_is_measured_with_is_what_is_committed():
    for name, info in committed()["tasks"].items():
        task = script.TASKS[name]
        assert (list(task.ideas), list(task.methods)) == (info["ideas"], info["methods"])
        assert (task.title, task.scale) == (info["title"], info["scale"])
        assert task.script.THRESHOLD == info["threshold"]


# ---------------------------------------------------------------- one run's numbers


def test_the_full_agent_is_the_ordinary_one():
    config = tiny_config(evals=2, eval_cost=50)
    run = script.run_variant("cartpole", "full", config)
    plain = train("CartPole-v1", config, progress=False)
    assert run["curve"]["env_steps"] == [row["step"] for row in plain.evals]
    assert run["curve"]["return"] == [results.significant(row["return"]) for row in plain.evals]
    assert run["return"] == run["curve"]["return"][-1] and run["dream_error"] is None
    assert run["minutes"] > 0 and run["cpu_minutes"] > 0
    assert VARIANTS["full"].names == VARIANTS["full"].fields == {}


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


def test_returns_are_in_the_tasks_own_units():
    entry = script.entry("pendulum-x10000", {500: -12_345_600.0, 1000: -2e6}, minutes=2.0)
    assert entry["curve"] == {"env_steps": [500, 1000], "return": [-1235.0, -200.0]}
    assert (entry["return"], entry["minutes"], entry["dream_error"]) == (-200.0, 2.0, None)
    assert script.entry("cartpole", {})["return"] is None


@pytest.mark.baselines
def test_model_free_methods_get_the_scaled_rewards(monkeypatch):
    """Of the same seed, as long as nothing has been learned, returns are the same in the task's
    own units."""

    def short(*args):
        return {**config, "hyperparameters": {**config["hyperparameters"], "n_timesteps": 50}}

    config = script.settings("pendulum-x10000", "sac", 0, smoke=True)
    monkeypatch.setattr(script, "settings", short)  # SAC learns from step 100 on
    scaled, plain = (script.make(task, "sac", 0, True) for task in ("pendulum-x10000", "pendulum"))
    assert scaled["curve"]["env_steps"] == plain["curve"]["env_steps"] == [50]
    assert scaled["return"] == pytest.approx(plain["return"], rel=1e-3) and plain["return"] < -100


def test_a_run_that_breaks_down_is_a_result(monkeypatch):
    calls = []

    def breaks(self, batch, update=DreamerAgent.update):
        calls.append(1)
        metrics, states = update(self, batch)
        metrics["loss"] *= math.nan if len(calls) > 6 else 1
        return metrics, states

    monkeypatch.setattr(DreamerAgent, "update", breaks)
    result = script.run_variant("cartpole", "full", tiny_config(evals=10, eval_cost=50))
    assert 0 < len(result["curve"]["return"]) < 7
    assert result["dream_error"] is None


# ---------------------------------------------------------------- the results file


def test_runs_are_collected_in_order(monkeypatch):
    monkeypatch.setattr(script, "random_returns", lambda env: np.array([7.0]))
    keys = [("pendulum-x10000", "full", 1), ("cartpole", "memory", 0), ("cartpole", "full", 0)]
    runs = {key: {"curve": {"env_steps": [1], "return": [float(i)]}} for i, key in enumerate(keys)}
    before = {"tasks": {"pendulum": {"random_return": 9.0}}}
    data = script.collect(before, runs)
    head = [(run["task"], run["variant"], run["seed"]) for run in data["runs"]]
    assert head == [keys[2], keys[1], keys[0]]
    assert [run["curve"]["return"] for run in data["runs"]] == [[2.0], [1.0], [0.0]]
    chance = {name: info["random_return"] for name, info in data["tasks"].items()}
    assert (chance["cartpole"], chance["pendulum-x10000"]) == (7, 0.0007)
    assert chance["pendulum"] == 9  # is not measured again


# ---------------------------------------------------------------- the command line


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["08_ablations.py", *map(str, words)])
    return script.main()


def dark(path):
    """Share of dark pixels."""
    return (np.asarray(Image.open(path).convert("L")) < 128).mean()


def test_the_committed_numbers_are_drawn_and_published(tmp_path, monkeypatch, capsys):
    assets = tmp_path / "assets"
    assets.mkdir()
    copy = assets / "ablations.json"
    copy.write_bytes((results.RESULTS / "ablations.json").read_bytes())
    before = copy.read_text()
    monkeypatch.setattr(script, "COMMITTED", copy)
    monkeypatch.setattr(script.cli, "ASSETS", assets)
    out = tmp_path / "out"
    assert call(monkeypatch, "--plot-only", "--out", out) == 0
    written = {path.name for path in (out / "08_ablations").iterdir()}
    assert written == {"ablations.json", "08_ablations.png"}
    assert all(dark(path) > 0.002 for path in out.rglob("*.png"))
    printed = capsys.readouterr().out
    assert "210 of 210 runs." in printed and "| memory | -0.07 |" in printed
    assert "| Dreamer without two-hot |" in printed
    assert copy.read_text() == before and len(list(assets.iterdir())) == 1

    monkeypatch.setattr(script, "show", lambda data, folder: None)  # drawn already
    assert call(monkeypatch, "--publish", "--out", out) == 0
    assert {path.name for path in assets.iterdir()} == written
    assert json.loads(copy.read_text())["runs"] == json.loads(before)["runs"]


@pytest.mark.parametrize(("library", "methods"), [(True, ["sac"]), (False, [])])
def test_ideas_bring_the_full_agent_and_methods_need_the_library(library, methods, monkeypatch):
    class Chosen(Exception):
        pass

    def choose(flags, *_):
        raise Chosen(*flags.variants)

    monkeypatch.setattr(script.baselines, "sb3", library or None)
    monkeypatch.setattr(script.campaign, "run", choose)
    with pytest.raises(Chosen) as chosen:
        call(monkeypatch, "--ideas", "memory", "sac")
    assert list(chosen.value.args) == ["full", "memory", *methods]


@pytest.mark.scripts
@pytest.mark.baselines
def test_every_stage_in_seconds(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "--smoke", "--jobs", "2", "--out", tmp_path) == 0
    data = json.loads((tmp_path / "08_ablations" / "ablations.json").read_text())
    assert [(run["task"], run["variant"], run["seed"]) for run in data["runs"]] == [
        ("pendulum", "full", 0),
        ("pendulum", "memory", 0),
        ("pendulum-x10000", "full", 0),
        ("pendulum-x10000", "sac", 0),
    ]
    assert all(run["dream_error"] for run in data["runs"][:2])
    assert [path.name for path in tmp_path.iterdir()] == ["08_ablations"]
    capsys.readouterr()
    call(monkeypatch, "--smoke", "--out", tmp_path)  # again: nothing is left to do
    assert "seed 0: running" not in capsys.readouterr().out
