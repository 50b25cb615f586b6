"""A stopped run goes on as if it had never been stopped, or is refused with a reason."""

import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from conftest import ACTION_SPACES, Walk, quiet_train, resume, tiny_config, walk
from faults import assert_same_runs, log_rows, refusal, same

from dreamer import evaluate, load_agent, save_agent
from dreamer.agent import rate_factor
from dreamer.checkpoint import load_checkpoint, save_checkpoint
from dreamer.run import Run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return dict(run.agent.state_dict())


def stopping(kind: str, at: int):
    """`walk` with a Ctrl-C in the `at`-th step of all environments in this process."""

    class Stopping(Walk):
        taken = 0

        def step(self, action):
            Stopping.taken += 1
            if Stopping.taken == at:
                signal.raise_signal(signal.SIGINT)
            return super().step(action)

    Stopping.__name__ = "Walk"
    return lambda: Stopping(ACTION_SPACES[kind]())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("discrete", {}),
        ("box", {}),
        ("discrete", {"action_repeat": 3}),
        ("discrete", {"envs": 3, "capacity": 1500}),
        ("discrete", {"eval_envs": 0}),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(kind, changes, tmp_path):
    """Ctrl-C within the prefill, in mid-episode, and again soon after: weights, optimiser, replay,
    generators and log are those of a run that was never stopped, number for number."""
    # An update every 4.5 steps, a report every step: some stops fall between updates.
    config = tiny_config(steps=90, evals=3, explore=0.3, explore_hold=6, **changes)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    quiet_train(walk(kind), config, whole)
    stops = mid_episode = 0
    for at in (13, 25, 6, 41):
        with contextlib.suppress(KeyboardInterrupt):
            quiet_train(stopping(kind, at), config, parts, resume=True)
        saved = load_checkpoint(parts / "checkpoint.pt")
        stops += saved["numbers"]["step"] < 90
        mid_episode += all(len(taken) > 0 for taken in saved["actions"])
    assert stops >= 3 and mid_episode >= 2
    quiet_train(walk(kind), config, parts, resume=True)
    assert_same_runs(whole, parts)
    keys = [(row["kind"], row["step"], row.get("return")) for row in log_rows(parts)]
    assert len(keys) == len(set(keys))
    assert {kind for kind, *_ in keys} == {"episode", "report", "eval"}


def test_without_resume_a_run_starts_anew_and_keeps_the_earlier_ones_files(copied):
    before = {name: (copied / name).read_bytes() for name in ("checkpoint.pt", "log.jsonl")}
    first = load_agent(copied / "agent.pt", "cpu")
    again = quiet_train(walk(), tiny_config(evals=2), copied)
    assert same(dict(first.state_dict()), weights(again))
    for name, content in before.items():
        assert (copied / f"previous-{name}").read_bytes() == content


def test_a_finished_run_is_not_trained_on(finished, copied):
    again = resume(copied)
    assert same(dict(load_agent(finished / "agent.pt", "cpu").state_dict()), weights(again))
    assert log_rows(copied) == log_rows(finished)
    numbers = load_checkpoint(finished / "checkpoint.pt")["numbers"]
    assert again.minutes == pytest.approx(numbers["minutes"], abs=0.01) and again.minutes > 0


def test_a_finished_run_can_be_given_more_steps(finished, copied):
    """It goes on where it was, at the rates of a run of that length."""
    run = resume(copied, steps=90)
    episodes = [row for row in log_rows(finished) if row["kind"] == "episode"]
    assert len(run.episodes) > len(episodes) > 0
    assert [r["return"] for r in run.episodes][: len(episodes)] == [r["return"] for r in episodes]
    c, updates = run.agent.config, run.agent.schedule.last_epoch
    assert updates == c.updates_after(90) == 15 > c.updates_after(60)
    rates = [group["lr"] for group in run.agent.optimizer.param_groups]
    expected = [rate * rate_factor(c, 15) for rate in (c.model_lr, c.actor_lr, c.critic_lr)]
    assert rates == pytest.approx(expected)


class Forgetful(Walk):
    """Resets to another state every time, whatever the seed."""

    lives = 0

    def reset(self, *, seed=None, options=None):
        Forgetful.lives += 1
        return super().reset(seed=seed + Forgetful.lives)


def test_an_episode_that_cannot_be_repeated_is_dropped_and_said_so(tmp_path):
    make = lambda: Forgetful(ACTION_SPACES["discrete"]())  # noqa: E731
    quiet_train(make, tiny_config(steps=13), tmp_path)
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    assert len(saved["actions"][0]) > 0
    with pytest.warns(UserWarning, match="Forgetful does not repeat itself"):
        resume(tmp_path, make, steps=40, evals=0)
    replay = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    first, last = replay["is_first"].numpy(), replay["is_last"].numpy()
    assert (first[1:] == last[:-1]).all()  # every episode in the replay has its end


def test_a_checkpoint_of_another_run_is_refused_and_nothing_is_touched(copied):
    before = {p.name: p.read_bytes() for p in copied.iterdir()}
    path = copied / "checkpoint.pt"
    cases = [
        (dict(env=walk("box")), r"is of layout=.*'action_numbers': 0.*, not .*'action_numbers': 2"),
        (dict(env="CartPole-v1"), "is of environment=Walk, not CartPole-v1"),
        (dict(hidden=8), "is of hidden=16, not 8: resume what it is of, or choose another folder"),
        (dict(envs=2), "is of envs=1, not 2"),
        (dict(steps=59), "is of step 60, beyond 59"),
    ]
    for changes, expected in cases:
        assert re.search(expected, refusal(path, lambda c=changes: resume(copied, **c)))
    save_checkpoint(path, {**load_checkpoint(path), "device": "cuda"})
    assert "is of device=cuda, not cpu" in refusal(path, lambda: resume(copied))
    path.write_bytes(before["checkpoint.pt"])
    assert {p.name: p.read_bytes() for p in copied.iterdir()} == before


def test_the_same_sizes_are_not_the_same_environment(tmp_path):
    """An id's arguments count; an environment that no file describes goes by its id."""
    train = lambda env, **options: quiet_train(env, tiny_config(), tmp_path, **options)  # noqa: E731
    lake = lambda **options: gym.make("FrozenLake-v1", is_slippery=False, **options)  # noqa: E731
    train(lake)
    with pytest.raises(ValueError, match=r"is of spec=.*\"is_slippery\": false"):
        train("FrozenLake-v1", resume=True)
    assert train(lake, resume=True).step == 60
    train("CartPole-v1")
    with pytest.raises(ValueError, match="is of environment=CartPole-v1, not Walk"):
        train(walk(), resume=True)
    with pytest.raises(ValueError, match="is of environment=CartPole-v1, not CartPole-v0"):
        train("CartPole-v0", resume=True)


@pytest.mark.parametrize(
    "change", [{"config": {"hiden": 3}}, {"layout": {"number": 2}}, {"agent": {}}, {"config": None}]
)
def test_an_agent_that_cannot_be_built_is_refused(finished, tmp_path, change):
    path = tmp_path / "agent.pt"
    save_checkpoint(path, {**load_checkpoint(finished / "checkpoint.pt"), **change})
    assert "does not fit this program" in refusal(path, lambda: load_agent(path))


def test_an_agent_knows_its_environment(tmp_path):
    agent = quiet_train("CartPole-v1", run_dir=tmp_path).agent
    for name in ("agent.pt", "checkpoint.pt"):
        loaded = load_agent(tmp_path / name, "cpu")
        assert loaded.env_spec == agent.env_spec and "CartPole-v1" in agent.env_spec
        assert evaluate(loaded, episodes=3).tolist() == evaluate(agent, "CartPole-v1", 3).tolist()
    assert quiet_train(walk()).agent.env_spec is None


def test_a_run_that_begins_is_no_longer_complete_but_a_refused_one_is(copied):
    """`result.json` marks a complete run; a run that goes on, or begins anew, takes it away."""
    result = copied / "result.json"
    result.write_text("{}")
    with pytest.raises(ValueError, match="is of hidden=16, not 24"):
        resume(copied, hidden=24)
    assert result.exists()
    resume(copied)
    assert not result.exists()


def files(run_dir: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run_dir.iterdir() if p.is_file()}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
@pytest.mark.parametrize("again", [False, True])
def test_a_second_run_is_refused_and_touches_nothing(copied, again):
    first = Run(walk(), tiny_config(evals=2, steps=90), copied, resume=True, device="cpu")
    before = files(copied)
    with pytest.raises(ValueError, match=f"another run is writing into {copied}: wait for its end"):
        resume(copied) if again else quiet_train(walk(), tiny_config(), copied)
    assert files(copied) == before
    first.opened.close()
    resume(copied)


class Wanderer(Walk):
    """Changes the working directory at every reset, and gets a Ctrl-C at its 40th step."""

    def reset(self, *, seed=None, options=None):
        away = Path.cwd() / "away"
        away.mkdir(exist_ok=True)
        os.chdir(away)
        return super().reset(seed=seed)

    def step(self, action):
        Wanderer.left -= 1
        if Wanderer.left == 0:
            signal.raise_signal(signal.SIGINT)
        return super().step(action)


def test_an_environment_that_changes_the_working_directory_moves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Wanderer, "left", 40, raising=False)
    make = lambda: Wanderer(ACTION_SPACES["discrete"]())  # noqa: E731
    names = {".lock", "checkpoint.pt", "config.json", "log.jsonl"}
    for more in (set(), {"agent.pt"}):
        monkeypatch.chdir(tmp_path)
        with contextlib.suppress(KeyboardInterrupt):
            quiet_train(make, tiny_config(evals=2), "runs/mine", resume=True)
        folder = tmp_path / "runs" / "mine"
        assert {p.name for p in folder.iterdir()} == names | more
        others = [p for p in tmp_path.rglob("*") if p.is_file() and folder not in p.parents]
        assert others == []
    config = json.loads((folder / "config.json").read_text())
    assert config["env"] == "Wanderer" and config["steps"] == 60


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    run = quiet_train(walk(), tiny_config(), "~/run")
    assert run.run_dir == tmp_path / "run" and (tmp_path / "run" / "agent.pt").exists()
    save_agent(run.agent, "~/new/agent.pt")
    assert same(weights(run), dict(load_agent("~/new/agent.pt", "cpu").state_dict()))
