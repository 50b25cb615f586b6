"""Jobs: how they end, when they are skipped, what is said of them."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab import jobs
from lab.jobs import Job


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
        ("import os; os.kill(os.getpid(), 9)", None, "killed by signal 9", ""),
        ("import sys; sys.exit('error: no luck')", None, "exit status 1", "error: no luck"),
        ("import time; time.sleep(60)", 0.01, "timed out", "stopped after 0.01 minutes"),
        ("import os; print(os.environ['OMP_NUM_THREADS'])", None, "done", ""),
    ],
    ids=["killed", "fails", "hangs", "works"],
)
def test_how_a_job_ends(tmp_path, source, timeout, status, reason):
    outcome = jobs.run_job(make_job(tmp_path, source, timeout=timeout))
    assert (outcome.status, outcome.reason) == (status, reason)
    assert outcome.good == (status == "done")
    assert outcome.minutes < 0.5


def test_output_and_threads(tmp_path):
    job = make_job(tmp_path, "import os; print(os.environ['OMP_NUM_THREADS'])", threads=3)
    jobs.run_job(job)
    assert (Path(job.folder) / "output.txt").read_text() == "3\n"


def test_a_complete_job_is_skipped_unless_its_config_is_another(tmp_path):
    job = make_job(tmp_path, "")

    def status(config, **fields):
        write_result(job, config=config)
        return jobs.run_job(dataclasses.replace(job, **fields)).status

    assert status({"steps": 1}) == "complete"
    assert status({"steps": 1}, fresh=True) == "done"
    assert status({"steps": 2}) == "done"


def test_minutes_and_return_are_those_of_the_result(tmp_path):
    job = make_job(tmp_path, "")
    write_result(job, minutes=34.5)
    outcome = jobs.run_job(job)
    assert (outcome.minutes, outcome.ret) == (34.5, 1.0)
    write_result(job, minutes=34.5, config={"steps": 2})  # another's: says nothing of this job
    outcome = jobs.run_job(job)
    assert outcome.minutes < 0.5 and outcome.ret is None


@pytest.mark.skipif(jobs.fcntl is None, reason="no flock on this system")
def test_a_run_that_outlived_its_worker_gets_no_twin(tmp_path):
    job = make_job(tmp_path, "", timeout=0.02)
    Path(job.folder).mkdir(parents=True)
    with open(Path(job.folder) / "output.txt", "wb") as held:
        alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, stdout=held)
        assert jobs.lock(held)
    outcome = jobs.run_job(job)
    assert (outcome.status, "another process" in outcome.reason) == ("timed out", True)
    alive.communicate(b"\n")
    assert jobs.run_job(job).status == "done"


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
