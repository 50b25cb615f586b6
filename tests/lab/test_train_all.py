"""train_all.py: which jobs it makes, and what it brings to assets/."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time

from lab import cli, results
from lab.jobs import Outcome
import numpy as np
import pytest

import train_all
from dreamer import load_agent
from dreamer.checkpoint import load_checkpoint, read_log

CARTPOLE = importlib.import_module("02_dreamer_cartpole")
CARTPOLE_CONFIG = dataclasses.asdict(CARTPOLE.CONFIG)


def call(monkeypatch, *words):
    """Exit status of `train_all.py WORDS`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["train_all.py", *map(str, words)])
    return train_all.main()


@pytest.fixture
def started(monkeypatch):
    """The jobs that would run, in that order, in groups as they are started; all go well."""
    groups = []

    def run_jobs(jobs, at_once=1):
        groups.append(list(jobs))
        return [Outcome(job, "done", 1.0) for job in jobs]

    monkeypatch.setattr(train_all, "run_jobs", run_jobs)
    return groups


# ---------------------------------------------------------------- which jobs


def test_it_leaves_the_long_comparisons_alone_and_looks_at_agents_last(started, monkeypatch):
    assert call(monkeypatch) == 0
    learning, drawing = [[(job.name[:2], job.seed) for job in group] for group in started]
    assert learning == [(number, 0) for number in ("01", "02", "03", "05", "06", "09", "09")]
    assert drawing == [("04", 0)]
    assert [job.fresh for group in started for job in group] == [False] * 7 + [True]


def test_seeds_are_those_of_the_learning_curves(started, monkeypatch):
    assert call(monkeypatch, "--only", "04", "02", "01", "--seeds", "3", "1", "3") == 0
    learning, drawing = [[(job.name[:2], job.seed) for job in group] for group in started]
    assert learning == [("01", 3), ("02", 3), ("02", 1)] and drawing == [("04", 3)]


def test_a_job_is_known_by_the_folder_and_config_of_its_script(started, monkeypatch, tmp_path):
    out = tmp_path / "my out"
    words = ["--seeds", "4", "--steps", "500", "--timeout", "2", "--jobs", "2", "--out", out]
    assert call(monkeypatch, "--only", "02", *words) == 0
    ((job,), _) = started
    assert job.config == {**CARTPOLE_CONFIG, "seed": 4, "steps": 500}
    assert job.folder == str(out / "02_dreamer_cartpole" / "seed4")
    assert (job.timeout, job.threads, job.fresh) == (2, 1, False)
    assert (job.env_id, job.threshold) == ("CartPole-v1", 475)
    script, *flags = job.command
    args = cli.parse(script, None, CARTPOLE.CONFIG, flags)  # what the job itself will find
    assert str(args.run_dir) == job.folder and dataclasses.asdict(args.config) == job.config
    assert args.resume

    assert call(monkeypatch, "--only", "02", "--fresh") == 0
    ((job,), _) = started[2:]
    assert job.fresh and "--resume" not in job.command and job.threads is None

    monkeypatch.setenv("HOME", str(tmp_path))
    assert call(monkeypatch, "--only", "02", "--steps", "1e4", "--out=~/here") == 0
    ((job,), _) = started[4:]
    assert job.config["steps"] == 10_000
    assert job.folder == str(tmp_path / "here" / "02_dreamer_cartpole" / "seed0")

    assert call(monkeypatch, "--only", "09") == 0
    for job, task in zip(started[6], ("pendulum", "cartpole"), strict=True):
        assert job.folder == str(cli.ROOT / "runs" / f"09_dreamer_pixels_{task}" / "seed0")
        assert job.command[1:] == ["--seed", "0", "--task", task, "--resume"]
    assert (job.env_id, job.threshold) == ("lab.pixels:PixelCartPole-v0", 475)


def test_one_that_fails_is_told_by_table_and_exit_status(monkeypatch, capsys):
    def run_jobs(jobs, *_):
        return [Outcome(job, "exit status 1", 1.0, None, "error: no luck") for job in jobs]

    monkeypatch.setattr(train_all, "run_jobs", run_jobs)
    assert call(monkeypatch, "--only", "03") == 1
    assert capsys.readouterr().out.endswith("03_dreamer_pendulum seed 0: error: no luck\n")


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def run_jobs(jobs, *_):
        yield Outcome(jobs[0], "done", 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_all, "run_jobs", run_jobs)
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: call(monkeypatch))
    assert end.value.code == 130
    assert "Interrupted. To go on:\n    the same command" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--only", "99"], "--only"),
        (["--only", "07"], "--only"),
        (["--jobs", "0"], "--jobs"),
        (["--out", ""], "a path is empty"),
        (["--steps", "1.5"], "Config.steps must be a whole number"),
        (["--timeout", "0"], "--timeout"),
        (["--publish", "--smoke"], "--publish"),
        (["--publish", "--steps", "500"], "--publish"),
    ],
)
def test_nonsense_is_refused(words, named, started, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, *words)
    assert end.value.code == 2 and not started
    assert named in capsys.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------- what goes to assets/


def make_entry(seed, ret, config=CARTPOLE_CONFIG):
    """What a results file keeps of a run."""
    return {
        "seed": seed,
        "config": {**config, "seed": seed},
        "env_steps": config["steps"],
        "minutes": 1.0,
        "cpu": "A CPU",
        "curve": {"env_steps": [3000, 6000], "return": [20.0, ret]},
        "final_returns": [ret, ret],
        "diagnostics": [],
    }


def make_run(out, seed, ret, config=CARTPOLE_CONFIG, script="02_dreamer_cartpole"):
    """The folder of a complete run; its agent is a file that holds its return."""
    folder = out / script / f"seed{seed}"
    folder.mkdir(parents=True)
    entry = make_entry(seed, ret, config)
    result = {"return": ret, "minutes": 1.0, "config": entry["config"], "entry": entry}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "agent.pt").write_text(f"{ret:g}")


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """`train_all.py --publish`, from out/ to assets/ of this test's folder."""
    (tmp_path / "assets" / "results").mkdir(parents=True)
    words = ["--publish", "--out", tmp_path / "out", "--assets", tmp_path / "assets"]
    return lambda *more: call(monkeypatch, *words, *more)


@pytest.fixture
def drawn(monkeypatch):
    """What is to be drawn, and the random policy not measured: both take a second."""
    calls = []
    monkeypatch.setattr(results, "draw", lambda *args: calls.append(args))
    monkeypatch.setattr(results, "random_returns", lambda *args: np.zeros(1))
    return calls


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


@pytest.mark.parametrize(
    ("returns", "median"), [([7], 7), ([9, 1, 5], 5), ([4, 3, 2, 1], 2), ([1, 8, 9, 2, 7], 7)]
)
def test_the_median_seed_s_agent_is_published(publish, drawn, tmp_path, returns, median):
    for seed, ret in enumerate(returns):
        make_run(tmp_path / "out", seed, ret)
    make_run(tmp_path / "out", 9, 100.0, {**CARTPOLE_CONFIG, "gamma": 0.5})  # must not count
    assert publish("--only", "02") == 0
    assert (tmp_path / "assets" / "agents" / "cartpole.pt").read_text() == str(median)


def test_numbers_are_merged_and_drawn(publish, drawn, tmp_path):
    """Of the committed seeds 0, 1 and 2, seed 0 is run again, and seed 2 is of another config."""
    path = tmp_path / "assets" / "results" / "cartpole.json"
    other = {**CARTPOLE_CONFIG, "gamma": 0.5}
    before = [make_entry(0, 100.0), make_entry(1, 200.0), make_entry(2, 300.0, other)]
    path.write_text(json.dumps({"random_return": 22.5, "runs": before}))
    make_run(tmp_path / "out", 0, 400.0)
    make_run(tmp_path / "out", 3, 500.0)
    assert publish("--only", "02", "--seeds", "0", "3") == 0

    data = results.load(path)
    runs = [(run["seed"], run["final_returns"][0]) for run in data["runs"]]
    assert runs == [(0, 400.0), (1, 200.0), (3, 500.0)]
    assert (data["env_id"], data["threshold"], data["random_return"]) == ("CartPole-v1", 475, 22.5)
    figure = tmp_path / "assets" / "02_cartpole_training.png"
    assert drawn == [("CartPole-v1", data["runs"], 475, 22.5, figure)]
    assert names(tmp_path / "assets") == ["agents/cartpole.pt", "results/cartpole.json"]


def test_pictures_and_numbers_without_a_learning_curve_are_copied(publish, tmp_path, started):
    files = {
        "01_world_model_demo": ["01_open_loop.png", "01_world_model.png"],
        "04_visualize": ["04_cartpole.gif", "04_cartpole_dreams.png"],
    }
    for script, pictures in files.items():
        folder = tmp_path / "out" / script / "seed0"
        folder.mkdir(parents=True)
        for name in [*pictures, "result.json", "checkpoint.pt", "log.jsonl", "output.txt"]:
            (folder / name).write_text(f"{name} of {script}")
    assert publish("--only", "01", "04") == 0
    numbers = ["results/visualize.json", "results/world_model_demo.json"]
    assert names(tmp_path / "assets") == [*sum(files.values(), []), *numbers]
    text = (tmp_path / "assets" / "results" / "visualize.json").read_text()
    assert text == "result.json of 04_visualize"


def test_agents_are_published_before_they_are_looked_at(publish, drawn, tmp_path, monkeypatch):
    """04 is told to look at those of assets/, not at the runs'."""
    make_run(tmp_path / "out", 0, 400.0)
    seen = []

    def run_jobs(jobs, *_):
        seen.append([("--shipped" in job.command, names(tmp_path / "assets")) for job in jobs])
        return []

    monkeypatch.setattr(train_all, "run_jobs", run_jobs)
    publish("--only", "02", "04")
    ((of_02,), (of_04,)) = seen
    assert of_02 == (False, [])
    assert of_04[0] and "agents/cartpole.pt" in of_04[1]


def test_what_is_not_complete_is_not_published(publish, tmp_path, monkeypatch):
    def run_jobs(jobs, *_):
        return [Outcome(job, "exit status 1", 1.0) for job in jobs]

    monkeypatch.setattr(train_all, "run_jobs", run_jobs)
    assert publish() == 1
    assert names(tmp_path / "assets") == []


@pytest.mark.parametrize("name", ["result.json", "agent.pt"])
def test_a_run_that_is_not_whole_is_named_before_anything_is_written(
    name, publish, started, drawn, tmp_path, capsys
):
    """The fault is in the second of two tasks, and of a seed that is not asked for."""
    make_run(tmp_path / "out", 0, 400.0)
    pendulum = importlib.import_module("03_dreamer_pendulum")
    for seed in (0, 1):
        config = dataclasses.asdict(pendulum.CONFIG)
        make_run(tmp_path / "out", seed, 400.0, config, "03_dreamer_pendulum")
    path = tmp_path / "out" / "03_dreamer_pendulum" / "seed1" / name
    path.unlink()
    if name == "result.json":
        path.write_text('{"config": {}}')
    with pytest.raises(SystemExit) as end:
        cli.run(publish, "--only", "02", "03")
    assert end.value.code == 1 and f"error: {path} is " in capsys.readouterr().err
    assert names(tmp_path / "assets") == [] and not drawn


# ---------------------------------------------------------------- as a process


@pytest.mark.scripts
def test_it_goes_on_when_one_fails_and_does_the_rest_the_next_time(tmp_path):
    words = ["--only", "02", "03", "--jobs", "2", "--smoke", "--out", "out"]

    def run():
        command = [sys.executable, str(cli.ROOT / "train_all.py"), *words]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        table = process.stdout[process.stdout.index("job  ") :].splitlines()
        return process.returncode, table, process.stdout

    out = tmp_path / "out"
    bad = out / "02_dreamer_cartpole" / "seed0" / "checkpoint.pt"
    bad.mkdir(parents=True)  # cannot be read
    status, table, _ = run()
    assert status == 1
    assert table[1].split()[:5] == ["02_dreamer_cartpole", "0", "exit", "status", "1"]
    assert table[2].split()[:3] == ["03_dreamer_pendulum", "0", "done"]
    assert table[3].startswith("02_dreamer_cartpole seed 0: error: ")
    assert "checkpoint.pt" in table[3]
    assert load_agent(out / "03_dreamer_pendulum" / "seed0" / "agent.pt", "cpu").action_size == 1

    bad.rmdir()
    status, _, printed = run()
    assert status == 0
    assert "02_dreamer_cartpole seed 0: done" in printed
    assert "03_dreamer_pendulum seed 0: complete" in printed


@pytest.mark.faults
@pytest.mark.skipif(os.name != "posix", reason="no such signals on this system")
@pytest.mark.parametrize(
    ("jobs", "name", "status"), [(2, "SIGINT", 130), (2, "SIGHUP", 129), (1, "SIGTERM", 143)]
)
def test_a_signal_saves_every_run_and_says_how_to_go_on(jobs, name, status, tmp_path):
    words = ["--only", "02", "03", "--jobs", str(jobs), "--smoke", "--steps", "1e6", "--out", "."]
    process = subprocess.Popen(
        [sys.executable, str(cli.ROOT / "train_all.py"), *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folders = [tmp_path / s / "seed0" for s in ("02_dreamer_cartpole", "03_dreamer_pendulum")]
    deadline = time.monotonic() + 120
    while not all((f / "log.jsonl").exists() for f in folders[:jobs]) or not all(
        read_log(f / "log.jsonl", "episode") for f in folders[:jobs]
    ):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    out, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (status, "loading PyTorch ...\n")
    assert out.endswith("Interrupted. To go on:\n    the same command, without --fresh\n")
    for folder in folders[:jobs]:
        assert load_checkpoint(folder / "checkpoint.pt")["counters"][0] > 0
        assert "Traceback" not in (folder / "output.txt").read_text()
    assert folders[-1].exists() == (jobs == 2)


@pytest.mark.scripts
def test_one_damaged_result_stops_nothing_and_its_run_goes_on(tmp_path):
    words = ["--only", "02", "03", "--smoke", "--out", str(tmp_path)]

    def run():
        command = [sys.executable, str(cli.ROOT / "train_all.py"), *words]
        process = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert process.returncode == 0
        return process.stdout

    run()
    path = tmp_path / "02_dreamer_cartpole" / "seed0" / "result.json"
    whole = json.loads(path.read_text())
    path.write_text("")
    printed = run()
    assert f"02_dreamer_cartpole seed 0: {path} is damaged" in printed
    assert "02_dreamer_cartpole seed 0: done" in printed
    assert "03_dreamer_pendulum seed 0: complete" in printed
    again = json.loads(path.read_text())
    assert again["return"] == whole["return"] and again["minutes"] == whole["minutes"]
