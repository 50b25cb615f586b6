"""The engine: which jobs run, what is told of them, and what a dead worker costs."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT
from faults import assert_same_runs

from lab import engine
from lab.engine import Job, make_runs, run_jobs

WORK = """
import json, os, pathlib
def work(folder, config, text):
    print(text, os.environ["OMP_NUM_THREADS"], os.getcwd())
    1 / len(text)
    result = {"config": config, "return": 3.0, "minutes": 0.5}
    pathlib.Path(folder, "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def make_job(tmp_path, monkeypatch):
    """make_job(name, text) -> a job that prints the text, and fails where there is none."""
    (tmp_path / "job_functions.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make_job(name, text="works", **fields):
        folder, config = str(tmp_path / name), {"text": text}
        return Job(name, "job_functions:work", [folder, config, text], folder, config, **fields)

    return make_job


def finish(job, **fields):
    """Leave the result of a complete run."""
    job.path.mkdir(parents=True, exist_ok=True)
    (job.path / "result.json").write_text(json.dumps({"config": job.config, **fields}))


def test_one_that_fails_stops_no_other_and_what_is_complete_is_skipped(make_job, capsys):
    jobs = [make_job("complete"), make_job("fails", ""), make_job("works")]
    finish(jobs[0])
    assert run_jobs(jobs) == [jobs[1]]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "complete: complete" and lines[3] == "works: done, return 3.0, minutes 0.5"
    assert lines[2].startswith("fails: exit status 1: ZeroDivisionError: division by zero (see ")
    assert (jobs[2].path / "output.txt").read_text() == f"works 1 {ROOT}\n"


def test_jobs_on_dask_go_on_from_what_is_there(make_job, monkeypatch, capsys):
    """Its workers are threads here, and a job is a function of theirs."""
    begun, fresh, fails = make_job("begun"), make_job("fresh", fresh=True), make_job("fails")
    for job in (begun, fresh):
        finish(job)
        job.write({"checkpoint.pt": b"half", "result.json": b"{}"})

    def run_job(job, goes_on):
        assert goes_on()
        found[job.name] = (job.path / "checkpoint.pt").exists()
        finish(job)
        return "out of luck" * (job == fails)

    found = {}
    monkeypatch.setattr(engine, "run_job", run_job)
    with monkeypatch.context() as without, pytest.raises(ValueError, match="pip install 'dask"):
        without.setitem(sys.modules, "distributed", None)
        run_jobs([begun, fresh], workers=2)
    assert run_jobs([begun, fresh, fails], workers=2) == [fails]
    assert found == {"begun": True, "fresh": False, "fails": False}
    said = {"begun: done", "fresh: done", "fails: out of luck"}
    assert said < set(capsys.readouterr().out.splitlines())


PLANNED = [("walk", "full"), ("walk", "no memory"), ("run.1", "full")]


def settings(task, variant, seed, smoke):
    return {"task": task, "variant": variant, "seed": seed, "size": 1 if smoke else 9}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """call(committed, **flags) -> the names of the jobs, the jobs, and what `make_runs` returns.
    They do not run but are complete afterwards; those of "run.1" fail."""

    def call(committed=(), variants=("full", "no memory"), **changes):
        flags = dict(seeds=(0,), tasks=("walk", "run.1"), jobs=1, scheduler=None, base=tmp_path)
        flags |= dict.fromkeys(["smoke", "fresh", "plot_only", "publish"], False) | changes
        flags, jobs = SimpleNamespace(**flags), []

        def run(found, *_):
            jobs.extend(found)
            for job in found:
                finish(job, **{"return": 7.0, "minutes": 1.0})
            return [job for job in found if "run.1" in job.name]

        monkeypatch.setattr(engine, "run_jobs", run)
        made = make_runs("script", flags, variants, settings, PLANNED, dict(committed))
        return [job.name for job in jobs], jobs, *made

    return call


def test_flags_choose_the_runs_seed_by_seed(call, tmp_path):
    names, jobs, _, new, good = call(seeds=(3, 1))
    runs = ["walk/full", "walk/no-memory", "run.1/full"]
    assert names == [f"{run}/seed{k}" for k in (3, 1) for run in runs] and not good
    config, folder = settings("walk", "no memory", 3, False), tmp_path / "script" / names[1]
    assert new["walk", "no memory", 3] == {"config": config, "minutes": 1.0}
    assert (jobs[1].function, jobs[1].folder) == ("script:make", str(folder))
    assert jobs[1].arguments == ["walk", "no memory", 3, False, str(folder)]

    names, *_, good = call(tasks=("walk",), variants=("no memory",))
    assert good and names == ["walk/no-memory/seed0"]
    assert call(smoke=True, seeds=(5, 6))[0] == [f"{run}/seed5" for run in runs]
    for flag in ("plot_only", "publish"):
        names, _, _, new, good = call(**{flag: True})
        assert good and not names and {key[2] for key in new} == {0}


def test_what_is_committed_is_not_made_again_until_its_settings_change(call):
    keys = [*((*pair, 0) for pair in PLANNED[:2]), ("walk", "full", 9), ("walk", "unplanned", 0)]
    committed = {key: {"config": settings(*key, False)} for key in keys}
    committed[keys[1]]["config"]["size"] = 8
    names, _, known, *_ = call(committed)
    assert list(known) == [keys[0], keys[2]]
    assert names == ["walk/no-memory/seed0", "run.1/full/seed0"]
    assert [job.fresh for job in call(committed, fresh=True)[1]] == [True] * 3
    assert call(committed, smoke=True)[2] == {}


@pytest.fixture
def start(tmp_path):
    """start(machine, *words) -> a process of `python WORDS` on that machine: a folder with its own
    copy of the repository, in which checkpoints are written twice a second."""
    started = []

    def start(machine, *words):
        folder = tmp_path / machine
        if not folder.exists():
            for name in ("dreamer", "lab"):
                shutil.copytree(ROOT / name, folder / name)
            for path in ROOT.glob("*.py"):
                shutil.copy(path, folder)
            for path in (folder / "dreamer").glob("*.py"):
                seconds = r"(?<=^CHECKPOINT_SECONDS = )[\d.]+"
                path.write_text(re.sub(seconds, "0.5", path.read_text(), flags=re.MULTILINE))
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        log = open(tmp_path / f"{machine}.txt", "a+")
        command = [sys.executable, *words]
        started.append(subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.faults
def test_a_worker_killed_with_its_job_costs_nothing_but_time(start, tmp_path):
    """Two workers without a common disk train one seed each. One is killed in the middle, and the
    other goes on with its run, which ends as if nothing had been."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    start("client", "-m", "dask", "scheduler", "--port", port, "--no-dashboard")
    words = ["-m", "dask", "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    doomed, _ = (start(machine, *words) for machine in "ab")
    words = ["train_all.py", "--only", "03", "--smoke", "--steps", "600", "--seeds"]
    client = start("client", *words, "0", "1", "--scheduler", address)
    below, deadline = "runs/smoke/03_dreamer_pendulum", time.monotonic() + 300
    while not (begun := [p for p in (tmp_path / "a" / below).glob("*/log.jsonl") if p.read_text()]):
        assert client.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(3)  # it is learning, and a checkpoint of this has left the machine
    doomed.kill()
    assert client.wait(600) == 0
    folder = begun[0].parent
    assert not (folder / "result.json").exists()

    assert start("whole", *words, folder.name[-1]).wait(600) == 0
    runs = [tmp_path / machine / below / folder.name for machine in ("client", "whole")]
    assert_same_runs(*runs)
    printed = (runs[0] / "output.txt").read_text()
    assert printed.count(" 0/600 ") == 1  # the second worker went on from the files of the first
    assert len(list((tmp_path / "client" / below).glob("seed?/result.json"))) == 2
