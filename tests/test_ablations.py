"""08_ablations: its tasks are what they say, and its numbers those of the runs."""

import argparse
import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from lab import results
from dreamer.agent import DreamerAgent
from dreamer.envs import AgentEnv
from dreamer.training import train
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


# ---------------------------------------------------------------- which runs


def committed():
    return json.loads((results.RESULTS / "ablations.json").read_text())["runs"]


def test_settings_are_those_of_the_committed_runs_and_of_the_numbered_scripts():
    ours = [run for run in committed() if run["variant"] in VARIANTS]
    assert ours
    for run in ours:
        assert run["config"] == script.settings(run["task"], run["variant"], run["seed"], False)
    for name, task in script.TASKS.items():
        own = {"steps": task.steps, "action_repeat": 1, "seed": 3}
        assert script.config_of(name, "full", 3) == dataclasses.replace(task.script.CONFIG, **own)
        assert set(task.ideas) < set(VARIANTS)
    changed = dataclasses.asdict(script.config_of("pendulum", "free bits", 0))
    full = dataclasses.asdict(script.config_of("pendulum", "full", 0))
    assert {k for k in full if full[k] != changed[k]} == {"free_nats"}


@pytest.mark.baselines
def test_settings_of_the_model_free_methods_are_those_of_the_committed_runs():
    theirs = [run for run in committed() if run["variant"] in script.METHODS]
    assert len(theirs) == 3 * 2 * 5
    for run in theirs:
        assert run["config"] == script.settings(run["task"], run["variant"], run["seed"], False)


def make_flags(out, **changes):
    values = {"seeds": [0, 1], "smoke": True, "fresh": False, "out": out, "jobs": 1}
    return argparse.Namespace(**values | {"folder": out / "08_ablations"} | changes)


def check_jobs(out, methods):
    """Every planned run once, by seed, in a folder of its own."""
    jobs = script.make_jobs(make_flags(out), script.TASKS, [*VARIANTS, *script.METHODS])
    planned = sum(1 + len(task.ideas) for task in script.TASKS.values()) + methods
    assert [seed for _, _, seed in jobs] == [0] * planned + [1] * planned
    assert len({job.folder for job in jobs.values()}) == len(jobs)
    assert len({json.dumps(job.config) for job in jobs.values()}) == len(jobs)
    job = jobs["cartpole", "free bits", 1]
    assert job.folder == str(out / "08_ablations" / "cartpole" / "free-bits" / "seed1")
    assert job.command[1:] == ["--run", "cartpole", "free bits", "1", "--out", str(out), "--smoke"]


@pytest.mark.baselines
def test_runs_are_ordered_by_seed_and_have_folders_of_their_own(tmp_path):
    check_jobs(tmp_path, methods=6)  # two on each of three scales


def test_without_the_library_its_methods_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "baselines", None)
    check_jobs(tmp_path, methods=0)


# ---------------------------------------------------------------- one run's numbers


def test_the_full_agent_is_the_ordinary_one():
    config = tiny_config(evals=4)
    curve = script.run_one("cartpole", "full", config)["curve"]
    plain = train("CartPole-v1", config, progress=False)
    assert curve["env_steps"] == [row["step"] for row in plain.evals]
    assert curve["return"] == [results.significant(row["return"]) for row in plain.evals]
    assert VARIANTS["full"].replaced == {} and VARIANTS["full"].config(config) == config


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
    config = tiny_config(evals=2, eval_episodes=1)
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


@pytest.mark.baselines
def test_model_free_methods_get_the_scaled_rewards(monkeypatch):
    """Of the same seed, as long as nothing has been learned, returns are the same in the task's
    own units."""
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


# ---------------------------------------------------------------- the results file


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """finished(task, variant, seed, returns) makes that run complete. Random policies have 7;
    nothing is committed, and no library is installed."""
    monkeypatch.setattr(script, "random_returns", lambda env: np.array([7.0]))
    monkeypatch.setattr(script, "COMMITTED", tmp_path / "assets" / "ablations.json")
    monkeypatch.setattr(script, "baselines", None)

    def finish(task, variant, seed, returns, **config):
        (job,) = script.make_jobs(make_flags(tmp_path, seeds=[seed]), [task], [variant]).values()
        result = {
            "config": {**job.config, **config},
            "cpu": "Some CPU",
            "minutes": 2.0,
            "cpu_minutes": 3.0,
            "curve": {"env_steps": list(range(len(returns))), "return": returns},
            "dream_error": None,
        }
        script.write_json(Path(job.folder) / "result.json", result)

    return finish


def commit(folder):
    """What has been collected becomes what is committed, and the runs are gone."""
    script.COMMITTED.parent.mkdir(exist_ok=True)
    (folder / "08_ablations" / "ablations.json").rename(script.COMMITTED)
    for path in folder.glob("08_ablations/**/result.json"):
        path.unlink()


def recorded(data):
    return [(r["task"], r["variant"], r["seed"], r["curve"]["return"]) for r in data["runs"]]


def test_complete_runs_are_collected_in_order(tmp_path, finished):
    finished("pendulum-x100", "full", 1, [3.0])
    finished("cartpole", "memory", 0, [2.0])
    finished("cartpole", "full", 0, [1.0])
    finished("cartpole", "unimix", 0, [9.0], unimix=0.5)  # of another config
    data = script.collect(make_flags(tmp_path))
    assert recorded(data) == [
        ("cartpole", "full", 0, [1.0]),
        ("cartpole", "memory", 0, [2.0]),
        ("pendulum-x100", "full", 1, [3.0]),
    ]
    assert data == json.loads((tmp_path / "08_ablations" / "ablations.json").read_text())
    assert not script.COMMITTED.exists()
    assert data["tasks"]["cartpole"]["random_return"] == 7
    assert data["tasks"]["pendulum-x100"]["random_return"] == 0.07
    assert data["tasks"]["acrobot"]["random_return"] is None


def test_what_is_committed_counts_until_its_settings_change(tmp_path, finished, monkeypatch):
    finished("cartpole", "full", 0, [1.0])
    finished("pendulum", "full", 0, [2.0])
    script.collect(make_flags(tmp_path))
    commit(tmp_path)
    monkeypatch.setattr(script, "random_returns", lambda env: np.array([8.0]))
    finished("pendulum", "full", 1, [3.0])
    finished("cartpole", "full", 0, [4.0])  # made again
    data = script.collect(make_flags(tmp_path))
    assert recorded(data) == [
        ("cartpole", "full", 0, [4.0]),
        ("pendulum", "full", 0, [2.0]),
        ("pendulum", "full", 1, [3.0]),
    ]
    assert data["tasks"]["pendulum"]["random_return"] == 7  # not measured again
    monkeypatch.setattr(script.cli, "SMOKE", {**script.cli.SMOKE, "gamma": 0.5})
    assert recorded(script.collect(make_flags(tmp_path))) == []


def test_what_is_committed_is_not_run_again(tmp_path, finished, monkeypatch, capsys):
    finished("cartpole", "full", 0, [1.0])
    script.collect(make_flags(tmp_path))
    commit(tmp_path)
    begun = []
    monkeypatch.setattr(script, "run_jobs", lambda jobs, at_once: begun.extend(jobs) or [])
    flags = make_flags(tmp_path, tasks=["cartpole"], ideas=["memory"])
    script.run_all(flags)
    names = [(job.name, job.seed) for job in begun]
    assert names == [("cartpole/memory", 0), ("cartpole/full", 1), ("cartpole/memory", 1)]
    assert "1 of 4 runs are in" in capsys.readouterr().out
    flags.fresh = True
    script.run_all(flags)
    assert len(begun) == 3 + 4


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
    assert written == {"ablations.json", "08_ablations.png", "08_dreams.png"}
    assert all(dark(out / "08_ablations" / name) > 0.002 for name in script.FIGURES)
    printed = capsys.readouterr().out
    assert "275 of 275 runs." in printed and "| memory | **-0.53** |" in printed
    assert "| Dreamer without two-hot |" in printed
    assert copy.read_text() == before and len(list(assets.iterdir())) == 1

    monkeypatch.setattr(script, "show", lambda data, folder: None)  # drawn already
    assert call(monkeypatch, "--publish", "--out", out) == 0
    assert {path.name for path in assets.iterdir()} == written
    assert json.loads(copy.read_text())["runs"] == json.loads(before)["runs"]


@pytest.mark.parametrize("words", [["--publish", "--smoke"], ["--jobs", "0"], ["--ideas", "none"]])
def test_flags_that_cannot_be_are_refused(words, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, *words)
    assert end.value.code == 2
    assert f"argument {words[0]}" in capsys.readouterr().err


@pytest.mark.scripts
@pytest.mark.baselines
def test_every_stage_in_seconds(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "--smoke", "--jobs", "2", "--out", tmp_path) == 0
    data = json.loads((tmp_path / "08_ablations" / "ablations.json").read_text())
    assert [key[:3] for key in recorded(data)] == [
        ("pendulum", "full", 0),
        ("pendulum", "memory", 0),
        ("pendulum-x100", "full", 0),
        ("pendulum-x100", "sac", 0),
    ]
    assert all(run["dream_error"] for run in data["runs"][:2])
    assert [path.name for path in tmp_path.iterdir()] == ["08_ablations"]
    capsys.readouterr()
    call(monkeypatch, "--smoke", "--out", tmp_path)  # again: nothing is left to do
    assert "seed 0: running" not in capsys.readouterr().out
