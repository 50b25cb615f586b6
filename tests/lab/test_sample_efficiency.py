"""07_sample_efficiency: whose runs are compared, what the table says of them, where it all goes."""

import importlib
import json

import numpy as np
import pytest
from PIL import Image

from dreamer.cli import parse

script = importlib.import_module("07_sample_efficiency")


def call(*words):
    return script.main(parse(script.Flags, "", list(map(str, words))))


def evaluated(*pairs, **fields):
    """A run that was evaluated at these (step, return), a minute for every 100 steps."""
    rows = [
        {"kind": "eval", "step": step, "minutes": step / 100, "return": value}
        for step, value in pairs
    ]
    last = {"env_steps": pairs[-1][0], "minutes": pairs[-1][0] / 100}
    return {**last, "diagnostics": rows, **fields}


def test_table_by_hand():
    """Two tasks: Dreamer and, on CartPole alone, PPO with three seeds: one is at the threshold
    early, one only at its last two evaluations, one never twice in a row."""
    ours = [
        evaluated((200, 480), (400, 480), (600, 480), seed=0, final_returns=[500, 480]),
        evaluated((200, 470), (400, 480), (600, 480), seed=1, final_returns=[400]),
    ]
    theirs = [
        evaluated((100, 500), (1000, 500), (9000, 10), seed=0, final_returns=[10], cpu_minutes=3),
        evaluated((100, 500), (1000, 474), (9000, 475), seed=1, final_returns=[475], cpu_minutes=4),
        evaluated((100, 5), (1000, 475), (9000, 475), seed=2, final_returns=[500], cpu_minutes=5),
    ]
    head = {"env_id": "CartPole-v1", "threshold": 475, "random_return": 22.0, "cpu": "A CPU"}
    dreamer, ppo = {**head, "runs": ours}, {**head, "cpu": "Another", "runs": theirs}
    pendulum = {**head, "env_id": "Pendulum-v1", "threshold": 501, "runs": ours[:1]}
    compared = {
        "cartpole": {"dreamer": dreamer, "ppo": ppo, "dqn": None},
        "pendulum": {"dreamer": pendulum, "sac": None},
    }
    head, *rows = script.table(compared)
    assert head[3:9] == [
        *["Seeds", "Seeds that reached it", "First reached at step", "Minutes until then"],
        *["Below it later", "Seeds that solved it"],
    ]
    assert rows == [
        ["CartPole-v1", "Dreamer", "600", "0, 1", "2 of 2", "400", "4.0", "0 of 5"]
        + ["1 of 2", "445.0", "400.0", "6.0", "-", "A CPU"],
        ["CartPole-v1", "PPO", "9,000", "0, 1, 2", "2 of 3", "1,000", "10.0", "1 of 5"]
        + ["2 of 3", "328.3", "10.0", "90.0", "4.0", "Another"],
        ["CartPole-v1", "DQN", "not measured yet", *["-"] * 11],
        ["Pendulum-v1", "Dreamer", "600", "0", "0 of 1", "never", "never", "-"]
        + ["0 of 1", "490.0", "490.0", "6.0", "-", "A CPU"],
        ["Pendulum-v1", "SAC", "not measured yet", *["-"] * 11],
    ]


# ---------------------------------------------------------------- whose runs


@pytest.fixture
def gather(tmp_path, monkeypatch):
    """gather(runs, smoke) compares, with these runs of PPO on CartPole complete. Three seeds of
    it, `gather.committed`, are committed."""
    name = "cartpole_ppo.json"
    data = json.loads((script.THEIRS / name).read_text())
    data["runs"] = data["runs"][:3]
    monkeypatch.setattr(script, "THEIRS", tmp_path / "assets")
    script.THEIRS.mkdir()
    (script.THEIRS / name).write_text(json.dumps(data))

    def gather(runs, smoke=False):
        complete = {("cartpole", "ppo", run["seed"]): run for run in runs}
        return script.gather(tmp_path / "out", complete, smoke)

    gather.committed, gather.own = data, tmp_path / "out" / name
    return gather


def test_committed_and_own_runs_stand_side_by_side(gather):
    known = gather.committed["runs"]
    own = {**known[0], "seed": 7, "config": {**known[0]["config"], "seed": 7}}
    ppo = gather([own])["cartpole"]["ppo"]
    assert [run["seed"] for run in ppo["runs"]] == [0, 1, 2, 7]
    assert ppo["random_return"] == gather.committed["random_return"]
    assert json.loads(gather.own.read_text()) == ppo
    without = gather([])
    assert without["cartpole"]["ppo"] == gather.committed  # what is gone is not remembered
    assert without["cartpole"]["dqn"] is None
    small = {**known[0], "config": {**known[0]["config"], "evals": 2}, "final_returns": [9.0, 9.0]}
    smoke = gather([small], smoke=True)  # is not mixed with whole ones
    assert smoke["cartpole"]["ppo"]["runs"] == [small] and smoke["pendulum"]["sac"] is None


def test_the_committed_numbers_are_drawn_and_nothing_else_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script.baselines, "INSTALLED", False)  # nor does it take the library
    assert call("--plot-only", "--out", tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == [script.NAME]
    files = list((tmp_path / script.NAME).glob("*.json"))
    assert len(files) == len(script.PLANNED) == 8
    for path in files:
        assert path.read_bytes() == (script.THEIRS / path.name).read_bytes()
        for run in json.loads(path.read_text())["runs"]:  # they are those of today's settings
            task, _, method = path.stem.rpartition("_")
            assert run["config"] == script.settings(task, method, run["seed"], False)
    picture = np.asarray(Image.open(tmp_path / script.NAME / f"{script.NAME}.png").convert("L"))
    assert (picture < 128).mean() > 0.002
    rows = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert len(rows) == 2 + 12 and not any("not measured" in row for row in rows)
    with pytest.raises(ValueError, match="pip install 'stable-baselines3"):
        call("--out", tmp_path)


@pytest.mark.scripts
@pytest.mark.baselines
def test_a_part_of_the_comparison_is_made_once(tmp_path, capsys):
    words = ["--smoke", "--out", tmp_path, "--tasks", "cartpole", "--methods", "ppo"]
    assert call(*words) == 0
    first = capsys.readouterr().out
    assert "cartpole/ppo/seed0: done" in first and "| CartPole-v1 | DQN | not measured" in first
    assert call(*words) == 0
    again = capsys.readouterr().out
    assert "cartpole/ppo/seed0: complete" in again and first.partition("|")[2] in again
