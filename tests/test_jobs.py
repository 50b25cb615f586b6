"""Jobs: how they end, when they are skipped, what is said of them."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
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
            *("import os; os.kill(os.getpid(), 9)", None, "killed by signal 9", ""),
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
    (Path(job.folder) / "result.json").write_text('{"config"')  # damaged
    assert jobs.run_job(job).status == "done"


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
def test_a_run_that_outlived_its_parent_gets_no_twin(tmp_path):
    job = make_job(tmp_path, "", timeout=0.02)
    Path(job.folder).mkdir(parents=True)
    with open(Path(job.folder) / "output.txt", "wb") as held:
        alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, stdout=held)
        assert jobs.lock(held)
    outcome = jobs.run_job(job)
    assert (outcome.status, "another process" in outcome.reason) == ("timed out", True)
    alive.communicate(b"\n")
    assert jobs.run_job(job).status == "done"


# ---------------------------------------------------------------- Ctrl-C

SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5)
    pathlib.Path({path!r}).write_text("saved")
    sys.exit(130)
signal.signal(signal.SIGINT, save)
pathlib.Path({path!r}).write_text("begun")
time.sleep(60)
"""


def in_time(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(os.name != "posix", reason="no process groups on this system")
@pytest.mark.parametrize(("kill", "end"), [(os.killpg, "saved"), (os.kill, "begun")])
def test_ctrl_c_leaves_running_jobs_the_time_to_save_and_begins_no_other(tmp_path, kill, end):
    """As in a terminal, where it goes to all processes at once; and to the parent alone, where
    those jobs, which know nothing of it, are ended."""
    files = [tmp_path / f"{name}.txt" for name in "abc"]
    todo = [make_job(tmp_path, SAVES.format(path=str(path)), path.stem) for path in files]
    source = (
        "from lab import jobs\n"
        "from lab.jobs import Job\n"
        "jobs.GRACE = 5\n"
        f"list(jobs.run_jobs({todo}, at_once=2))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", source],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    in_time(lambda: all(path.exists() and path.read_text() for path in files[:2]))
    kill(parent.pid, signal.SIGINT)
    _, error = parent.communicate(timeout=30)
    assert error.splitlines()[-1] == "KeyboardInterrupt"
    assert [path.exists() and path.read_text() for path in files] == [end, end, False]


def test_a_job_that_does_not_end_after_ctrl_c_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "GRACE", 0.1)
    begun, stop, outcomes = tmp_path / "begun", threading.Event(), []
    source = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(60)"
    job = make_job(tmp_path, source)
    thread = threading.Thread(target=lambda: outcomes.append(jobs.run_job(job, stop)))
    thread.start()
    in_time(begun.exists)
    stop.set()
    thread.join(10)
    assert [outcome.status for outcome in outcomes] == ["timed out"]


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
    assert table[5:] == ["fails seed 0: error: broken"]


def test_jobs_begin_in_their_order(tmp_path):
    log = tmp_path / "log"
    source = "open({!r}, 'a').write('{} ')"
    todo = [make_job(tmp_path, source.format(str(log), i), seed=i) for i in (3, 1, 2)]
    assert [outcome.job.seed for outcome in jobs.run_jobs(todo)] == [3, 1, 2]
    assert log.read_text() == "3 1 2 "
