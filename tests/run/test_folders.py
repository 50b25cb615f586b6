"""A run's folder: what was there before, one run at a time, and all files in the one place."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ACTION_SPACES, Walk, quiet_train, resume, tiny_config, walk
from faults import log_rows, refusal, same

from dreamer import load_agent, save_agent
from dreamer.envs import EnvFault
from dreamer.resume import agent_env, start

# ---------------------------------------------------------------- the earlier run's files


def files(run_dir: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run_dir.iterdir() if p.is_file()}


def begin(run_dir: Path) -> None:
    """A new run that is killed before its first checkpoint."""
    run = start(walk(), tiny_config(evals=2), run_dir, device="cpu")
    run.log.write("episode", 9, **{"return": 1.0})
    run.close()


def name_back(run_dir: Path) -> None:
    for name in ("checkpoint.pt", "log.jsonl"):
        (run_dir / f"previous-{name}").rename(run_dir / name)


def test_a_long_runs_files_outlive_starts_that_come_to_nothing(finished, copied):
    for _ in range(3):
        begin(copied)
    name_back(copied)
    before = files(finished)
    assert all(files(copied)[name] == before[name] for name in ("checkpoint.pt", "log.jsonl"))
    resume(copied)
    assert log_rows(copied) == log_rows(finished)


def killed_between(run_dir: Path, monkeypatch) -> None:
    """A start that ends after the first of its two renames."""
    real = os.replace

    def replace(old, new):
        real(old, new)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dreamer.resume.os.replace", replace)
        with pytest.raises(KeyboardInterrupt):
            start(walk(), tiny_config(), run_dir, device="cpu")


@pytest.mark.parametrize("older", [False, True])
def test_a_start_killed_between_its_renames_is_completed_by_the_next(
    finished, copied, monkeypatch, older
):
    if older:
        resume(copied.parent / "other", seed=1)
        for name in ("checkpoint.pt", "log.jsonl"):
            shutil.copy(copied.parent / "other" / name, copied / f"previous-{name}")
    killed_between(copied, monkeypatch)
    begin(copied)
    name_back(copied)
    before = files(finished)
    assert all(files(copied)[name] == before[name] for name in ("checkpoint.pt", "log.jsonl"))
    resume(copied)


def test_a_mixed_pair_is_found_out(copied, monkeypatch):
    resume(copied.parent / "other", seed=1)
    shutil.copy(copied.parent / "other" / "checkpoint.pt", copied / "previous-checkpoint.pt")
    killed_between(copied, monkeypatch)
    name_back(copied)
    before = files(copied)
    log = copied / "log.jsonl"
    text = refusal(log, lambda: resume(copied, seed=1))
    assert re.search("is not the log that|the checkpoint beside it was made when", text)
    assert files(copied) == before


# ---------------------------------------------------------------- one run in one folder


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
@pytest.mark.parametrize("again", [False, True])
def test_a_second_run_is_refused_and_touches_nothing(copied, again):
    run = start(walk(), tiny_config(evals=2, steps=90), copied, resume=True, device="cpu")
    (copied / "result.json").write_text("{}")
    before = files(copied)
    with pytest.raises(ValueError, match=f"another run is writing into {copied}: wait for its end"):
        resume(copied) if again else quiet_train(walk(), tiny_config(), copied)
    assert files(copied) == before
    run.close()
    resume(copied)


@pytest.mark.parametrize("run_dir", ["file", "file/run"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, run_dir):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=f"^{tmp_path / run_dir} cannot be a run's folder"):
        quiet_train(walk(), run_dir=tmp_path / run_dir)
    assert files(tmp_path) == {"file": b"x"}


class Wanderer(Walk):
    """Changes the working directory at every reset, and fails at a step of its life."""

    fails_at = 10**9

    def reset(self, *, seed=None, options=None):
        away = Path.cwd() / "away"
        away.mkdir(exist_ok=True)
        os.chdir(away)
        return super().reset(seed=seed)

    def step(self, action):
        Wanderer.fails_at -= 1
        if Wanderer.fails_at == 0:
            raise ZeroDivisionError("gone")
        return super().step(action)


def test_an_environment_that_changes_the_working_directory_moves_no_file(tmp_path, monkeypatch):
    board = importlib.util.find_spec("tensorboard") is not None
    monkeypatch.chdir(tmp_path)
    make = lambda: Wanderer(ACTION_SPACES["discrete"]())  # noqa: E731
    monkeypatch.setattr(Wanderer, "fails_at", 40)
    config = tiny_config(evals=2)
    with pytest.raises(EnvFault, match=f"is in {tmp_path / 'runs' / 'mine'}: resume it"):
        quiet_train(make, config, "runs/mine", tensorboard=board)
    found = {p.name for p in (tmp_path / "runs" / "mine").iterdir()}
    names = {".lock", "checkpoint.pt", "config.json", "log.jsonl"}
    assert found == (names | {"tensorboard"} if board else names)
    monkeypatch.chdir(tmp_path)
    run = quiet_train(make, config, "runs/mine", resume=True, tensorboard=board)
    assert run.run_dir == tmp_path / "runs" / "mine"
    assert {p.name for p in run.run_dir.iterdir()} == found | {"agent.pt"}
    assert [p for p in tmp_path.rglob("*") if p.is_file() and run.run_dir not in p.parents] == []


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    run = quiet_train(walk(), tiny_config(), "~/run")
    assert run.run_dir == tmp_path / "run" and (tmp_path / "run" / "agent.pt").exists()
    save_agent(run.agent, "~/new/agent.pt", "Walk")
    assert same(
        dict(run.agent.state_dict()), dict(load_agent("~/new/agent.pt", "cpu").state_dict())
    )
    assert agent_env("~/new/agent.pt") == "Walk"
    with pytest.raises(ValueError, match=f"{tmp_path / 'new'} is a folder: name a file in"):
        save_agent(run.agent, "~/new")
    with pytest.raises(ValueError, match=f"{tmp_path / 'new'} is a folder: name a file in"):
        load_agent("~/new")
