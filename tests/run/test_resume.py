"""A stopped run goes on as if it had never been stopped, or is refused with a reason."""

import os
import re
import signal
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from conftest import quiet_train, resume, tiny_config, walk
from faults import Hook, assert_same_runs, log_rows, refusal, same

from dreamer import evaluate, load_agent, save_agent
from dreamer.agent import rate_factor
from dreamer.checkpoint import load_checkpoint, save_checkpoint
from dreamer.run import Run


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "changes", "stops"),
    [
        ("discrete", {}, (13, 27, 10, 12)),
        ("box", {"action_repeat": 3}, (13, 20, 14, 12)),
        ("discrete", {"envs": 3, "steps": 120}, (2, 13, 14, 10)),
        ("discrete", {"eval_envs": 0}, (13, 25, 45, 20)),
    ],
    ids=str,
)
def test_a_resumed_run_equals_an_uninterrupted_one(kind, changes, stops, tmp_path):
    """Ctrl-C within the prefill, in mid-episode, between updates, and again soon after: weights,
    optimiser, replay, generators and log are those of a run that was never stopped."""
    config = tiny_config(**{"evals": 3, "eval_episodes": 2, "explore": 0.3, **changes})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    quiet_train(lambda: Hook({}, kind), config, whole)
    steps, begun = [], 0
    for at in stops:
        stop = {at: lambda: signal.raise_signal(signal.SIGINT)}  # of each environment
        with pytest.raises(KeyboardInterrupt):
            quiet_train(lambda stop=stop: Hook(stop, kind), config, parts, resume=True)
        saved = load_checkpoint(parts / "checkpoint.pt")
        steps.append(saved["numbers"]["step"])
        begun += any(map(len, saved["actions"]))
    assert steps[0] < config.warm_up < steps[-1] and begun >= 2
    run = quiet_train(lambda: Hook({}, kind), config, parts, resume=True)

    assert_same_runs(whole, parts)
    assert {row["kind"] for row in log_rows(parts)} == {"episode", "report", "eval"}
    assert len(run.evals) == 3 and len(saved["actions"]) == config.envs


def test_without_resume_a_run_starts_anew_and_keeps_the_earlier_ones_files(copied):
    before = {name: (copied / name).read_bytes() for name in ("checkpoint.pt", "log.jsonl")}
    first = load_agent(copied / "agent.pt", "cpu").state_dict()
    again = quiet_train(walk(), tiny_config(evals=2), copied)
    assert same(dict(first), dict(again.agent.state_dict()))
    for name, content in before.items():
        assert (copied / f"previous-{name}").read_bytes() == content


def test_a_finished_run_is_not_trained_on(finished, copied):
    """Rows after its checkpoint, and torn ones, are cut; `result.json` marks it as complete, until
    it is taken up again."""
    (copied / "result.json").write_text("{}")
    with open(copied / "log.jsonl", "a") as file:
        file.write('{"kind": "episode", "step": 61}\n{"kind": "epi')
    again = resume(copied)
    assert_same_runs(finished, copied)
    before = load_checkpoint(finished / "checkpoint.pt")["numbers"]["minutes"]
    assert again.minutes == pytest.approx(before, abs=0.01) and again.minutes > 0
    assert not (copied / "result.json").exists()


def test_a_finished_run_can_be_given_more_steps(finished, copied):
    """It goes on where it was, at the rates of a run of that length."""
    run = resume(copied, steps=90)
    episodes = [row for row in log_rows(finished) if row["kind"] == "episode"]
    assert run.episodes[: len(episodes)] == episodes and len(run.episodes) > len(episodes) > 0
    c = run.agent.config
    assert run.updates == c.updates_after(90) == 15 > c.updates_after(60)
    rates = [group["lr"] for group in run.agent.optimizer.param_groups]
    expected = [rate * rate_factor(c, 15) for rate in (c.model_lr, c.actor_lr, c.critic_lr)]
    assert rates == pytest.approx(expected)


def edit(run_dir: Path, **changes) -> None:
    """Change what a folder's checkpoint says."""
    path = run_dir / "checkpoint.pt"
    save_checkpoint(path, {**load_checkpoint(path), **changes})


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (None, dict(env=walk("box")), r"is of layout=.*'action_numbers': 0.*, not .*: 2"),
        (None, dict(env="CartPole-v1"), "is of env=Walk, not CartPole-v1"),
        (None, dict(hidden=8), "is of hidden=16, not 8: resume what it is of, or choose another"),
        (None, dict(envs=2), "is of envs=1, not 2"),
        (None, dict(steps=59), "is of step 60, beyond 59"),
        (lambda d: edit(d, device="cuda"), {}, "is of device=cuda, not cpu"),
        (lambda d: edit(d, agent={}), {}, "does not fit this program"),
        (lambda d: (d / "agent.pt").replace(d / "checkpoint.pt"), {}, "holds no training state"),
        (lambda d: (d / "checkpoint.pt").write_text(""), {}, "is damaged or is no checkpoint"),
        (lambda d: os.truncate(d / "log.jsonl", 9), {}, r"log.jsonl has 9 bytes, but \d+ when its"),
        (lambda d: (d / "log.jsonl").unlink(), {}, "log.jsonl has 0 bytes"),
    ],
)
def test_what_cannot_be_resumed_is_refused_and_left_as_it_is(damage, changes, message, copied):
    (copied / "result.json").write_text("{}")
    if damage:
        damage(copied)
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    text = refusal(copied, lambda: resume(copied, **changes))
    assert re.search(message, text)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_the_same_sizes_are_not_the_same_environment(tmp_path):
    """An id's arguments count."""
    lake = lambda: gym.make("FrozenLake-v1", is_slippery=False)  # noqa: E731
    quiet_train(lake, tiny_config(), tmp_path)
    with pytest.raises(ValueError, match=r"is of env_spec=.*\"is_slippery\": false"):
        quiet_train("FrozenLake-v1", tiny_config(), tmp_path, resume=True)
    assert quiet_train(lake, tiny_config(), tmp_path, resume=True).step == 60


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_second_run_is_refused_and_touches_nothing(copied):
    first = Run(walk(), tiny_config(evals=2, steps=90), copied, resume=True, device="cpu")
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    with pytest.raises(ValueError, match=f"another run is writing into {copied}: wait for its end"):
        quiet_train(walk(), tiny_config(), copied)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    first.opened.close()
    resume(copied)


def test_an_agents_file_holds_what_acting_needs_and_no_more(tmp_path):
    agent = quiet_train("CartPole-v1", run_dir=tmp_path).agent
    save_agent(load_agent(tmp_path / "checkpoint.pt", "cpu"), tmp_path / "new" / "agent.pt")
    saved = load_checkpoint(tmp_path / "new" / "agent.pt")
    assert saved.keys() == {"layout", "config", "env_spec", "agent"}
    assert same(saved, load_checkpoint(tmp_path / "agent.pt"))
    loaded = load_agent(tmp_path / "agent.pt", "cpu")
    assert loaded.env_spec == agent.env_spec and "CartPole-v1" in agent.env_spec
    assert same(dict(agent.state_dict()), dict(loaded.state_dict()))
    assert evaluate(loaded, episodes=3).tolist() == evaluate(agent, "CartPole-v1", 3).tolist()


def test_an_agent_that_cannot_be_built_is_refused(copied):
    path = copied / "checkpoint.pt"
    for change in ({"config": {"hiden": 3}}, {"layout": {"number": 2}}, {"config": None}):
        edit(copied, **change)
        assert "does not fit this program" in refusal(path, lambda: load_agent(path))


def test_an_environment_that_changes_the_working_directory_moves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "away").mkdir()
    make = lambda: Hook({5: lambda: os.chdir(tmp_path / "away")})  # noqa: E731
    quiet_train(make, tiny_config(evals=2), "runs/mine")
    assert {p.parent for p in tmp_path.rglob("*") if p.is_file()} == {tmp_path / "runs" / "mine"}
    assert (tmp_path / "runs" / "mine" / "agent.pt").exists()
