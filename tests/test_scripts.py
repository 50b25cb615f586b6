"""The numbered scripts and train_all.py, as a user runs them: from another folder, in a process."""

import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamer.agent import Config, DreamerAgent
from dreamer.checkpoint import load_checkpoint
from dreamer.envs import AgentEnv
from dreamer.evaluation import evaluate
from dreamer.training import load_agent, read_log
from lab import cli, results

REPO = Path(__file__).resolve().parents[1]
visualize = importlib.import_module("04_visualize")
SCRIPTS = sorted(REPO.glob("0[0-9]_*.py"), key=lambda path: ("visualize" in path.name, path.name))
CARTPOLE = REPO / "02_dreamer_cartpole.py"
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def call(cwd, script, *words, timeout=120):
    """A finished process of `python script words`, called from the folder `cwd`."""
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=timeout
    )


def listing(folder):
    """Every file below a folder, with what changes when it is written."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder for the smoke runs of all scripts: the last one looks at the others' agents."""
    return tmp_path_factory.mktemp("out")


# ---------------------------------------------------------------- every script


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_smoke_runs_every_stage_and_touches_no_assets(script, out, tmp_path):
    before = listing(REPO / "assets")
    process = call(tmp_path, script, "--smoke", "--out", out)
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.strip()
    assert listing(REPO / "assets") == before
    assert list(tmp_path.iterdir()) == []  # nothing where it was called
    assert any(path.suffix in (".png", ".gif") for path in (out / "assets").iterdir())

    task = {stem: task for task, stem in results.SCRIPTS.items()}.get(script.stem)
    if task:
        run_dir = out / "runs" / script.stem / "seed0"
        data = json.loads((out / "assets" / "results" / f"{task}.json").read_text())
        summary = process.stdout.strip().splitlines()[-1]
        assert f"{data['env_id']}, seed 0: mean return" in summary
        assert f"threshold {data['threshold']} NOT reached" in summary
        assert json.loads((run_dir / "result.json").read_text())["config"]["steps"] == 300
        assert load_agent(run_dir / "agent.pt", "cpu").config.hidden == cli.SMOKE["hidden"]


def test_the_first_episode_that_is_long_enough_is_drawn_else_the_longest():
    own = [{"obs": np.zeros((rows, 1))} for rows in (5, 30, 9, 60)]
    assert [visualize.to_draw(own, rows) for rows in (5, 6, 30, 31, 99)] == [0, 1, 1, 3, 3]


def test_an_episode_is_watched_from_the_reset_that_its_seed_gives():
    agent = DreamerAgent(4, 2, True, Config(deter=8, hidden=8, action_repeat=2))
    cartpole = visualize.TASKS[0]
    env = AgentEnv(cartpole.env_id, 2)
    for kind, episodes in enumerate(visualize.watch(agent, cartpole, 7, steps=30)):
        assert len(episodes) > 1
        for number, episode in enumerate(episodes):
            first = env.reset(visualize.episode_seed(7, kind, number))
            np.testing.assert_array_equal(episode["obs"][0], first)


def test_short_dreams_cover_the_episodes_that_are_long_enough():
    agent = DreamerAgent(4, 2, True, Config(deter=8, hidden=8, imag_horizon=15))

    def episode(rows):
        obs = np.arange(rows, dtype=np.float32)[:, None].repeat(4, 1)
        return {"obs": obs, "action": np.ones((rows, 2), np.float32), "reward": obs[:, 0]}

    def windows(*lengths):  # first and last row of each
        real, dream = visualize.short_dreams(agent, [episode(rows) for rows in lengths])
        assert dream["reward"].shape == (len(real["obs"]), real["obs"].shape[1] - visualize.CONTEXT)
        np.testing.assert_array_equal(real["obs"][..., 0], real["reward"])
        return [(row[0], row[-1]) for row in real["reward"]]

    assert windows(45, 19, 20) == [(0, 19), (20, 39), (25, 44), (0, 19)]
    assert windows(6, 8) == [(0, 7)]  # of agents that fail at once: as long as can be


@pytest.mark.parametrize("task", results.SCRIPTS)
def test_what_is_shipped_was_made_with_the_script_s_config(task):
    config = dataclasses.asdict(importlib.import_module(results.SCRIPTS[task]).CONFIG)
    runs = json.loads((REPO / "assets" / "results" / f"{task}.json").read_text())["runs"]
    assert [run["config"] for run in runs] == [{**config, "seed": seed} for seed in range(5)]
    agent = load_agent(REPO / "assets" / "agents" / f"{task}.pt", "cpu")
    assert dataclasses.asdict(agent.config) in [run["config"] for run in runs]


def test_a_finished_run_is_not_trained_again(out, tmp_path):
    run_dir = out / "runs" / CARTPOLE.stem / "seed0"
    if not (run_dir / "result.json").exists():
        call(tmp_path, CARTPOLE, "--smoke", "--out", out)
    log = (run_dir / "log.jsonl").read_bytes()
    weights = load_agent(run_dir / "agent.pt", "cpu").state_dict()
    results_file = out / "assets" / "results" / "cartpole.json"
    runs = json.loads(results_file.read_text())["runs"]
    results_file.unlink()

    process = call(tmp_path, CARTPOLE, "--smoke", "--out", out, "--resume")
    assert process.returncode == 0, process.stderr[-2000:]
    assert (run_dir / "log.jsonl").read_bytes() == log
    again = load_agent(run_dir / "agent.pt", "cpu").state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert json.loads(results_file.read_text())["runs"] == runs


def test_ctrl_c_saves_and_tells_how_to_resume(tmp_path):
    words = ["--smoke", "--steps", "800", "--seed", "3", "--out", str(tmp_path / "my out")]
    run_dir = tmp_path / "my out" / "runs" / CARTPOLE.stem / "seed3"
    process = subprocess.Popen(
        [sys.executable, str(CARTPOLE), *words], env=ENV, stdout=subprocess.PIPE, text=True
    )
    log, deadline = run_dir / "log.jsonl", time.monotonic() + 60
    while not (log.exists() and read_log(log, "report")):  # it is learning
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    saved = load_checkpoint(run_dir / "checkpoint.pt")
    assert 100 <= saved["counters"][0] < 800
    assert not (run_dir / "result.json").exists()

    # The command that was printed goes on from there and ends the run.
    python, *command = shlex.split(printed.strip().splitlines()[-1])
    assert Path(python).samefile(sys.executable) and command == [str(CARTPOLE), *words, "--resume"]
    resumed = call(tmp_path, *command)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    steps = [row["step"] for row in read_log(log, "report")]
    assert steps == [*range(100, 801, 4)]  # every one once, before and after


# ---------------------------------------------------------------- comparisons


def test_a_part_of_the_comparison_again_and_its_figure_alone(tmp_path):
    script = REPO / "07_sample_efficiency.py"
    words = ["--smoke", "--out", tmp_path, "--tasks", "cartpole", "--methods", "ppo"]
    first = call(tmp_path, script, *words)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "cartpole_ppo seed 0: done" in first.stdout
    path = tmp_path / "assets" / "results" / "sample_efficiency" / "cartpole_ppo.json"
    data, figure = json.loads(path.read_text()), tmp_path / "assets" / "07_sample_efficiency.png"
    assert data["env_id"] == "CartPole-v1" and [run["seed"] for run in data["runs"]] == [0]
    assert "| CartPole-v1 | DQN | not measured yet |" in first.stdout

    path.unlink()  # what is complete is not run again, but kept again
    again = call(tmp_path, script, *words)
    assert "cartpole_ppo seed 0: complete" in again.stdout
    assert json.loads(path.read_text())["runs"] == data["runs"]

    shutil.rmtree(tmp_path / "runs")  # as on another machine, which has what was recorded
    elsewhere = call(tmp_path, script, *words)
    assert "1 of 1 runs are in" in elsewhere.stdout and ": running" not in elsewhere.stdout
    assert elsewhere.returncode == 0 and not (tmp_path / "runs").exists()

    figure.unlink()
    alone = call(tmp_path, script, "--plot-only", "--out", tmp_path)
    assert alone.returncode == 0 and figure.exists()
    table = first.stdout[first.stdout.index("| Task |") :]
    assert alone.stdout == table


def test_without_the_library_a_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("script", REPO / "07_sample_efficiency.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["07_sample_efficiency.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 1
    assert "pip install 'stable-baselines3" in capsys.readouterr().err


# ---------------------------------------------------------------- flags


def test_a_bad_value_is_one_sentence(tmp_path):
    process = call(tmp_path, CARTPOLE, "--steps", "-3", "--out", tmp_path / "out")
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1
    assert "Config.steps must be a whole number from 1" in process.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", list(results.SCRIPTS))
def test_the_shipped_agents_load_and_do_their_task(task):
    data = json.loads((REPO / "assets" / "results" / f"{task}.json").read_text())
    agent = load_agent(REPO / "assets" / "agents" / f"{task}.pt", "cpu")
    final = np.mean([np.mean(run["final_returns"]) for run in data["runs"]])
    halfway = (final + data["random_return"]) / 2
    assert evaluate(agent, data["env_id"], 10, seed=1).mean() > halfway


@pytest.mark.parametrize("word", ["--stepz", "--config.steps", "steps"])
def test_an_unknown_flag_names_what_exists(word, capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse(CARTPOLE, "", Config(), [word, "3"])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert f"no flag {word}" in message
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in message
    for flag in ("--device", "--resume", "--smoke", "--out", "--tensorboard"):
        assert flag in message


def other(value):
    """A valid value of a field, unlike its default."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "pathwise"
    return value / 2 if isinstance(value, float) else value + 1


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_every_config_field_is_a_flag(field):
    default = getattr(Config(), field.name)
    value = other(default)
    assert value != default
    flag = f"--{field.name.replace('_', '-')}"
    words = [flag] if isinstance(default, bool) else [flag, str(value)]
    args = cli.parse(CARTPOLE, "", Config(), words)
    assert args.config == dataclasses.replace(Config(), **{field.name: value})


def test_where_things_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = cli.parse(CARTPOLE, "", Config(steps=77), ["--seed", "4"])
    assert (args.steps, args.seed, args.final_episodes) == (77, 4, 100)
    assert args.run_dir == REPO / "runs" / "02_dreamer_cartpole" / "seed4"
    assert (args.assets, args.results) == (REPO / "assets", REPO / "assets" / "results")

    args = cli.parse(CARTPOLE, "", Config(), ["--out", "here"])
    assert args.run_dir == tmp_path / "here" / "runs" / "02_dreamer_cartpole" / "seed0"
    assert args.assets == tmp_path / "here" / "assets"

    args = cli.parse(CARTPOLE, "", Config(steps=77), ["--smoke", "--hidden", "24"])
    assert REPO / "assets" not in (args.assets, *args.assets.parents)
    assert (args.steps, args.config.hidden) == (cli.SMOKE["steps"], 24)


@pytest.mark.parametrize(
    ("error", "status"), [(OSError("no space left"), 1), (KeyboardInterrupt(), 130)]
)
def test_how_a_run_ends(error, status, tmp_path, capsys):
    args = cli.parse(CARTPOLE, "", Config(), ["--out", str(tmp_path)])

    def main(args):
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run(main, args)
    assert end.value.code == status
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert ("--resume" in captured.out) == (status == 130)


def test_a_refusal_of_the_package_is_a_sentence_and_a_defect_a_traceback(tmp_path, capsys):
    args = cli.parse(CARTPOLE, "", Config(), ["--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.run(lambda args: Config(steps=-1), args)
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: Config.steps must be")
    with pytest.raises(ValueError, match="invalid literal"):
        cli.run(lambda args: int("x"), args)


# ---------------------------------------------------------------- train_all.py


@pytest.fixture
def train_all(monkeypatch):
    """The module."""
    spec = importlib.util.spec_from_file_location("train_all", REPO / "train_all.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_all", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("returns", "median"), [([7], 7), ([9, 1, 5], 5), ([4, 3, 2, 1], 2), ([1, 8, 9, 2, 7], 7)]
)
def test_the_median_seed_is_kept(train_all, tmp_path, returns, median):
    for seed, ret in enumerate([*returns, 100]):
        folder = tmp_path / "runs" / "02_dreamer_cartpole" / f"seed{seed}"
        folder.mkdir(parents=True)
        # The last one has another config and must not count.
        config = {"seed": seed, "steps": 1 if seed < len(returns) else 2}
        (folder / "result.json").write_text(json.dumps({"return": ret, "config": config}))
        (folder / "agent.pt").write_text(str(ret))
    job = train_all.ScriptJob(
        name="02_dreamer_cartpole",
        seed=0,
        command=[],
        folder=str(tmp_path / "runs" / "02_dreamer_cartpole" / "seed0"),
        config={"seed": 0, "steps": 1},
        agents=str(tmp_path / "assets" / "agents"),
    )
    train_all.keep_agents([job])
    assert (tmp_path / "assets" / "agents" / "cartpole.pt").read_text() == str(median)


def test_train_all_goes_on_when_one_fails(tmp_path):
    out = tmp_path / "out"
    (out / "assets" / "results" / "cartpole.json").mkdir(parents=True)  # cannot be written to
    before = listing(REPO / "assets")
    words = ["--only", "02", "03", "--jobs", "2", "--smoke", "--out", out]
    process = call(tmp_path, REPO / "train_all.py", *words)
    assert process.returncode == 1, process.stderr[-2000:]
    table = process.stdout[process.stdout.index("job  ") :].splitlines()
    assert table[1].split()[:5] == ["02_dreamer_cartpole", "0", "exit", "status", "1"]
    assert table[2].split()[:3] == ["03_dreamer_pendulum", "0", "done"]
    assert "02_dreamer_cartpole seed 0: error: " in table[3] and "cartpole.json" in table[3]
    assert load_agent(out / "assets" / "agents" / "pendulum.pt", "cpu").action_size == 1
    assert not (out / "assets" / "agents" / "cartpole.pt").exists()
    assert listing(REPO / "assets") == before

    # What is complete is skipped; what failed is tried again, and works now.
    (out / "assets" / "results" / "cartpole.json").rmdir()
    process = call(tmp_path, REPO / "train_all.py", *words)
    assert process.returncode == 0, process.stdout + process.stderr[-2000:]
    assert "02_dreamer_cartpole seed 0: done" in process.stdout
    assert "03_dreamer_pendulum seed 0: complete" in process.stdout


def test_train_all_leaves_the_long_comparisons_alone(train_all, monkeypatch):
    started = []
    monkeypatch.setattr(sys, "argv", ["train_all.py"])
    monkeypatch.setattr(train_all, "run_jobs", lambda jobs, *_: started.extend(jobs) or [])
    monkeypatch.setattr(train_all, "keep_agents", lambda jobs: None)
    assert train_all.main() == 0
    assert [job.name[:2] for job in started] == ["01", "02", "03", "05", "06", "04"]


@pytest.mark.parametrize("words", [["--only", "99"], ["--jobs", "0"], ["--timeout", "0"]])
def test_train_all_refuses_nonsense(train_all, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_all.py", *words])
    with pytest.raises(SystemExit) as end:
        train_all.parse_flags(["01", "02"])
    assert end.value.code == 2
    assert words[0] in capsys.readouterr().err
