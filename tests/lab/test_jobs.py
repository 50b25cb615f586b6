"""Jobs: how they end, when they are skipped, what is said of them."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

from lab import jobs
from lab.jobs import Job
import pytest

ROOT = Path(__file__).resolve().parent.parent


def make_job(folder, source, name="work", seed=0, **fields):
    """A job that runs `source`."""
    folder = str(folder / name / f"seed{seed}")
    fields = {"config": {"steps": 1}, "threads": 1, **fields}
    return Job(name=name, seed=seed, command=["-c", source], folder=folder, **fields)


def write_result(job, **fields):
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    result = {"return": 1.0, "minutes": 2.0, "config": job.config, **fields}
    (Path(job.folder) / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("source", "timeout", "status", "reason"),
    [
        pytest.param(
            *("import os; os.kill(os.getpid(), 9)", None, "killed by signal 9", "see "),
            marks=pytest.mark.skipif(os.name != "posix", reason="no signal 9 on this system"),
        ),
        ("import sys; sys.exit('error: no luck')", None, "exit status 1", "error: no luck"),
        ("print('50%', end='\\r'); 1 / 0", None, "exit status 1", "ZeroDivisionError: division by"),
        ("import time; time.sleep(60)", 0.01, "timed out", "stopped after 0.01"),
        ("", None, "done", ""),
    ],
    ids=["killed", "fails", "breaks", "hangs", "works"],
)
def test_how_a_job_ends(tmp_path, source, timeout, status, reason):
    job = make_job(tmp_path, source, timeout=timeout)
    Path(job.folder).mkdir(parents=True)
    (Path(job.folder) / "output.txt").write_text("error: of yesterday\n")
    outcome = jobs.run_job(job)
    assert outcome.status == status and outcome.good == (status == "done")
    assert outcome.reason.startswith(reason) and bool(outcome.reason) == bool(reason)
    assert outcome.minutes < 0.5
    assert (f"see {Path(job.folder) / 'output.txt'}" in outcome.reason) == (
        status not in ("done", "timed out")
    )


def test_a_job_whose_folder_cannot_be_made_has_failed(tmp_path):
    (tmp_path / "work").write_text("a file")
    outcome = jobs.run_job(make_job(tmp_path, ""))
    assert outcome.status == "failed" and str(tmp_path / "work") in outcome.reason


def test_output_is_kept_and_threads_are_set(tmp_path):
    job = make_job(tmp_path, "import os; print(os.environ['OMP_NUM_THREADS'])", threads=3)
    jobs.run_job(job)
    jobs.run_job(dataclasses.replace(job, threads=2))
    assert (Path(job.folder) / "output.txt").read_text() == "3\n2\n"


def test_a_complete_job_is_skipped_unless_its_config_is_another(tmp_path):
    job = make_job(tmp_path, "")

    def status(config, **fields):
        write_result(job, config=config)
        return jobs.run_job(dataclasses.replace(job, **fields)).status

    assert status({"steps": 1}) == "complete"
    assert status({"steps": 1}, fresh=True) == "done"
    assert status({"steps": 2}) == "done"


@pytest.mark.parametrize("content", ["", '{"config"', "not JSON", "[]", "3", "{}", "\udcff"])
def test_a_damaged_result_is_named_and_the_job_run_anew(content, tmp_path, capsys):
    job = make_job(tmp_path, "import pathlib, sys; print(pathlib.Path(sys.argv[1]).read_bytes())")
    path = Path(job.folder) / "result.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode(errors="surrogateescape"))
    job = dataclasses.replace(job, command=[*job.command, str(path)])
    assert jobs.run_job(job).status == "done"  # it found the file as it was
    assert f"work seed 0: {path} is damaged" in capsys.readouterr().out


def test_minutes_and_return_are_those_of_the_result(tmp_path):
    job = make_job(tmp_path, "")
    write_result(job, minutes=34.5)
    outcome = jobs.run_job(job)
    assert (outcome.minutes, outcome.ret) == (34.5, 1.0)
    write_result(job, minutes=34.5, config={"steps": 2})  # another's: says nothing of this job
    outcome = jobs.run_job(job)
    assert outcome.minutes < 0.5 and outcome.ret is None
    job = dataclasses.replace(job, command=["-c", "1 / 0"], config={"steps": 2}, fresh=True)
    outcome = jobs.run_job(job)  # the result is of an earlier run
    assert outcome.minutes < 0.5 and outcome.ret is None


@pytest.mark.skipif(jobs.fcntl is None, reason="no flock on this system")
def test_a_run_that_outlived_its_parent_gets_no_twin(tmp_path, capsys):
    job = make_job(tmp_path, "", timeout=0.02)
    Path(job.folder).mkdir(parents=True)
    with open(Path(job.folder) / "output.txt", "wb") as held:
        alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, stdout=held)
        assert jobs.lock(held)
    outcome = jobs.run_job(job)
    assert (outcome.status, "another process" in outcome.reason) == ("waited in vain", True)
    assert capsys.readouterr().out.count("waiting for another process, which still writes") == 1
    alive.communicate(b"\n")
    assert jobs.run_job(job).status == "done"


# ---------------------------------------------------------------- signals

posix = pytest.mark.skipif(os.name != "posix", reason="no such signals on this system")
SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep({seconds})
    pathlib.Path({path!r}).write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path({path!r}).write_text("begun")
time.sleep({life})
pathlib.Path({path!r}).write_text("whole")
"""
PARENT = """
from lab import cli, jobs
from lab.jobs import Job
cli.run(lambda: len([*jobs.run_jobs({}, {})]))
"""


def in_time(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def parent(tmp_path):
    """start(at_once, ...) -> a process that runs three jobs, so many of them begun, and a function
    that reads what the jobs have written; none is alive at the end."""
    files = [tmp_path / f"{name}.txt" for name in "abc"]
    started = []

    def read():
        return [path.read_text() if path.exists() else "" for path in files]

    def start(at_once, seconds=0.5, life=60):
        sources = [SAVES.format(path=str(path), seconds=seconds, life=life) for path in files]
        todo = [make_job(tmp_path, *pair) for pair in zip(sources, "abc", strict=True)]
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT.format(todo, at_once)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        in_time(lambda: read() == ["begun"] * at_once + [""] * (3 - at_once))
        return process, read

    yield start
    for process in started:
        process.kill()
        process.communicate()
    for path in tmp_path.glob("*/seed0/output.txt"):
        with open(path, "ab") as file:
            in_time(partial(jobs.lock, file))


FAULTS = pytest.mark.faults


@posix
@pytest.mark.parametrize(
    ("at_once", "send", "name", "status"),
    [
        (2, os.kill, "SIGINT", 130),
        pytest.param(2, os.killpg, "SIGINT", 130, marks=FAULTS),  # Ctrl-C in a terminal
        pytest.param(2, os.kill, "SIGTERM", 143, marks=FAULTS),
        pytest.param(2, os.kill, "SIGHUP", 129, marks=FAULTS),
        pytest.param(1, os.killpg, "SIGINT", 130, marks=FAULTS),
    ],
)
def test_a_signal_lets_jobs_save_and_begins_no_other(parent, at_once, send, name, status):
    """That it comes twice at once, as shells and `timeout` send it, changes nothing."""
    process, read = parent(at_once)
    for _ in range(2):
        send(process.pid, getattr(signal, name))
    out, error = process.communicate(timeout=10)
    assert (process.returncode, error) == (status, "loading PyTorch ...\n")
    assert read() == ["saved"] * at_once + [""] * (3 - at_once)
    assert out.count(" seed 0: stopped\n") == at_once
    assert out.endswith("\nInterrupted. To go on:\n    the same command, without --fresh\n")


@posix
@pytest.mark.faults
def test_a_second_signal_kills(parent):
    process, read = parent(2, seconds=60)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == 130 and read() == ["begun", "begun", ""]


@posix
@pytest.mark.faults
def test_after_a_parent_that_was_killed_jobs_end_and_begin_no_other(parent):
    process, read = parent(2, life=2)
    process.kill()
    in_time(lambda: read()[:2] == ["whole", "whole"])
    time.sleep(0.5)
    assert read()[2] == ""


@posix
@pytest.mark.faults
def test_what_nohup_ignores_stays_ignored(parent, monkeypatch):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited
    try:
        process, read = parent(2, life=1)
    finally:
        signal.signal(signal.SIGHUP, previous)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=30)
    assert process.returncode == 3 and read() == ["whole"] * 3


@pytest.mark.parametrize(("grace", "kill"), [(0.1, False), (60, True)])
def test_a_job_that_does_not_end_is_killed(tmp_path, monkeypatch, grace, kill):
    """After GRACE, or by a second signal."""
    monkeypatch.setattr(jobs, "GRACE", grace)
    begun, stop, outcomes = tmp_path / "begun", jobs.Stop(), []
    source = (
        "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(begun)!r}).touch(); time.sleep(60)"
    )
    job = make_job(tmp_path, source)
    thread = threading.Thread(target=lambda: outcomes.append(jobs.run_job(job, stop)))
    thread.start()
    in_time(begun.exists)
    stop.number, stop.kill = signal.SIGINT, kill
    thread.join(10)
    assert [outcome.status for outcome in outcomes] == ["stopped"]
    assert jobs.run_job(job, stop).status == "not begun"


# ---------------------------------------------------------------- many jobs


def test_many_jobs_run_at_once_and_one_that_fails_stops_no_other(tmp_path, capsys):
    """Each of the first two waits for the other's file: one after the other they would hang."""
    meet = (
        "import pathlib, sys, time\n"
        "mine, other = map(pathlib.Path, {!r})\n"
        "mine.touch()\n"
        "while not other.exists(): time.sleep(0.01)"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    todo = [
        make_job(tmp_path, meet.format([a, b]), "meets", 0, timeout=0.5),
        make_job(tmp_path, meet.format([b, a]), "meets", 1, timeout=0.5),
        make_job(tmp_path, "raise SystemExit('error: broken')", "fails"),
        make_job(tmp_path, "", "works"),
    ]
    outcomes = list(jobs.run_jobs(todo, at_once=2))
    statuses = {str(outcome.job): outcome.status for outcome in outcomes}
    assert statuses == {
        "meets seed 0": "done",
        "meets seed 1": "done",
        "fails seed 0": "exit status 1",
        "works seed 0": "done",
    }
    printed = capsys.readouterr().out.splitlines()
    assert "fails seed 0: exit status 1" in printed and "works seed 0: done" in printed

    table = jobs.summary(todo, outcomes[::-1]).splitlines()
    assert [line.split()[:2] for line in table[1:5]] == [
        ["meets", "0"],
        ["meets", "1"],
        ["fails", "0"],
        ["works", "0"],
    ]
    log = Path(todo[2].folder) / "output.txt"
    assert table[5:] == [f"fails seed 0: error: broken; see {log}"]


def test_jobs_begin_in_their_order(tmp_path):
    log = tmp_path / "log"
    source = "open({!r}, 'a').write('{} ')"
    todo = [make_job(tmp_path, source.format(str(log), i), seed=i) for i in (3, 1, 2)]
    assert [outcome.job.seed for outcome in jobs.run_jobs(todo)] == [3, 1, 2]
    assert log.read_text() == "3 1 2 "
