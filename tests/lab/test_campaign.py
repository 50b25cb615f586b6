"""The runs of a comparison: which there are, which are made, and what comes of them."""

import json
import sys
from pathlib import Path

from lab import campaign
from lab.jobs import Outcome
import pytest

PLANNED = [("walk", "full"), ("walk", "no memory"), ("run.1", "full")]
SMOKE = PLANNED[:1]


def settings(task, variant, seed, smoke):
    return {"task": task, "variant": variant, "seed": seed, "size": 1 if smoke else 9}


def make(task, variant, seed, smoke):
    return {"return": 7.0, "minutes": 1.0, "curve": [seed, 7.0]}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """call(*words, committed=...) runs a comparison below tmp_path; jobs are not run, but kept in
    `call.begun`."""

    def call(*words, committed=None):
        words = [str(tmp_path / "09_script.py"), *words, "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", words)
        flags = campaign.parse_flags(words[0], "What it is.", "variants", PLANNED, SMOKE)
        call.begun = []
        return campaign.run(flags, settings, make, committed or {})

    def run_jobs(jobs, at_once):
        call.begun += jobs
        return [Outcome(job, "done", 1.0) for job in jobs]

    monkeypatch.setattr(campaign, "run_jobs", run_jobs)
    return call


def run_of(task, variant, seed, smoke=False, **config):
    return {"config": settings(task, variant, seed, smoke) | config}


# ---------------------------------------------------------------- which runs


def test_all_runs_of_a_seed_come_before_those_of_the_next(call, tmp_path):
    assert call("--seeds", "3", "1", "3")[2]
    assert [(job.name, job.seed) for job in call.begun] == [
        ("walk/full", 3), ("walk/no-memory", 3), ("run.1/full", 3),
        ("walk/full", 1), ("walk/no-memory", 1), ("run.1/full", 1),
    ]  # fmt: skip
    job = call.begun[1]
    assert job.config == settings("walk", "no memory", 3, False) and job.threads == 1
    assert job.folder == str(tmp_path / "out" / "09_script" / "walk" / "no-memory" / "seed3")
    assert len({job.folder for job in call.begun}) == 6


def test_flags_choose_and_smoke_is_small(call):
    call()
    assert len(call.begun) == 3 * 5
    call("--tasks", "walk", "--variants", "no memory", "--seeds", "0")
    assert [str(job) for job in call.begun] == ["walk/no-memory seed 0"]
    call("--smoke")
    assert [job.config for job in call.begun] == [settings("walk", "full", 0, True)]
    for flag in ("--plot-only", "--publish"):
        assert call(flag) == ({}, {}, True) and call.begun == []


def test_what_is_committed_is_not_made_again_until_its_settings_change(call, capsys):
    committed = {
        ("walk", "full", 0): run_of("walk", "full", 0),
        ("walk", "full", 9): run_of("walk", "full", 9),
        ("walk", "no memory", 0): run_of("walk", "no memory", 0, size=8),
        ("walk", "no planning", 0): run_of("walk", "no planning", 0),  # is no longer planned
    }
    known, _, _ = call("--seeds", "0", committed=committed)
    assert list(known) == [("walk", "full", 0), ("walk", "full", 9)]
    assert [job.name for job in call.begun] == ["walk/no-memory", "run.1/full"]
    assert "2 of 3 runs are not in assets/results yet" in capsys.readouterr().out
    call("--seeds", "0", "--fresh", committed=committed)
    assert len(call.begun) == 3 and all(job.fresh for job in call.begun)
    assert call("--smoke", committed=committed)[0] == {} and len(call.begun) == 1


# ---------------------------------------------------------------- runs made


def test_a_runs_own_process_leaves_a_result_that_is_collected(call, monkeypatch):
    call("--tasks", "walk", "--variants", "no memory", "--seeds", "4")
    (job,) = call.begun
    with pytest.raises(SystemExit) as end:
        call(*job.command[1:])
    assert not end.value.code and call.begun == []
    result = json.loads((Path(job.folder) / "result.json").read_text())
    assert result == {"config": job.config, **make("walk", "no memory", 4, False)}
    _, new, _ = call("--plot-only", "--seeds", "4", "5")
    assert new == {
        ("walk", "no memory", 4): {"config": job.config, "minutes": 1.0, "curve": [4, 7.0]}
    }
    assert call("--plot-only", "--smoke", "--seeds", "4")[1] == {}


def test_a_run_that_failed_is_told(call, monkeypatch, capsys):
    def failing(jobs, at_once):
        return [Outcome(job, "exit status 1", 1.0, reason="out of luck") for job in jobs]

    monkeypatch.setattr(campaign, "run_jobs", failing)
    _, new, good = call("--seeds", "0")
    assert new == {} and not good
    assert "walk/full seed 0: out of luck" in capsys.readouterr().out


def test_a_damaged_result_is_named_and_counts_as_none(call, capsys):
    call("--tasks", "walk", "--seeds", "4")
    path = Path(call.begun[0].folder) / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    assert call("--publish", "--seeds", "4")[1] == {}
    assert f"{path} is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--publish", "--smoke"], ["--jobs", "0"], ["--tasks", "go"], ["--out", ""]]
)
def test_flags_that_cannot_be_are_refused(words, call, capsys):
    with pytest.raises(SystemExit) as end:
        call(*words)
    assert end.value.code == 2
    assert f"argument {words[0]}" in capsys.readouterr().err


def test_published_are_results_and_figures(tmp_path, monkeypatch, capsys):
    folder, assets = tmp_path / "runs", tmp_path / "assets"
    (folder / "run.1").mkdir(parents=True)
    assets.mkdir()
    (folder / "a.json").write_text("{}")
    (folder / "09_a.png").write_text("drawn")
    monkeypatch.setattr(campaign.cli, "ASSETS", assets)
    campaign.publish(campaign.Namespace(folder=folder), assets / "results" / "a")
    written = sorted(str(p.relative_to(assets)) for p in assets.rglob("*.*"))
    assert written == ["09_a.png", "results/a/a.json"]
    assert "Published to" in capsys.readouterr().out
