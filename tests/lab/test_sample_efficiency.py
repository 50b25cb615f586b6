"""07_sample_efficiency: whose runs are compared, what the table says of them, where it all goes."""

import importlib
import json

import pytest

from dreamer.cli import parse
from lab import results

script = importlib.import_module("07_sample_efficiency")


def call(*words):
    return script.main(parse(script.Flags, "", list(map(str, words))))


def evaluated(values, final, seed=0):
    """A run that was evaluated every 100 steps, that is each minute."""
    steps = enumerate(values, 1)
    rows = [{"kind": "eval", "step": 100 * i, "minutes": i, "return": x} for i, x in steps]
    last = {"env_steps": 100 * len(rows), "minutes": len(rows), "cpu_minutes": 3 + seed}
    return {**last, "seed": seed, "diagnostics": rows, "final_returns": final}


def test_table_by_hand():
    ours = [
        evaluated((480, 480, 10, 480), [500, 480]),
        evaluated((470, 475, 475, 480), [400], seed=1),
    ]
    dreamer = {"threshold": 475, "cpu": "A CPU", "runs": ours}
    never = {"threshold": 501, "cpu": "Another", "runs": ours[:1]}
    compared = {"cartpole": {"dreamer": dreamer, "dqn": None}, "pendulum": {"ppo": never}}
    head, *rows = script.table(compared)
    assert head[3:9] == [
        *["Seeds", "Seeds that reached it", "First reached at step", "Minutes until then"],
        *["Below it later", "Seeds that solved it"],
    ]
    assert rows == [
        ["CartPole-v1", "Dreamer", "400", "0, 1", "2 of 2", "200", "2.0", "1 of 7"]
        + ["1 of 2", "445.0", "400.0", "4.0", "3.5", "A CPU"],
        ["CartPole-v1", "DQN", "not measured yet"],
        ["Pendulum-v1", "PPO", "400", "0", "0 of 1", "never", "never", "-"]
        + ["0 of 1", "490.0", "490.0", "4.0", "3.0", "Another"],
    ]


def test_committed_and_own_runs_stand_side_by_side(tmp_path):
    committed = results.load(script.THEIRS / "cartpole_ppo.json")
    run = committed["runs"][0]

    def gather(*runs, smoke=False):
        complete = {("cartpole", "ppo", run["seed"]): run for run in runs}
        return script.gather(tmp_path, complete, smoke)["cartpole"]["ppo"]

    ppo = gather({**run, "seed": 7, "config": {**run["config"], "seed": 7}})
    assert [run["seed"] for run in ppo["runs"]] == [0, 1, 2, 3, 4, 7]
    assert results.load(tmp_path / "cartpole_ppo.json") == ppo
    assert gather() == committed  # what is gone is not remembered
    small = {**run, "config": {**run["config"], "evals": 2}, "final_returns": [9.0, 9.0]}
    assert gather(small, smoke=True)["runs"] == [small]  # is not mixed with whole ones


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
    assert (tmp_path / script.NAME / f"{script.NAME}.png").exists()
    rows = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert len(rows) == 2 + 12 and not any("not measured" in row for row in rows)
    with pytest.raises(SystemExit, match="pip install 'stable-baselines3"):
        call("--out", tmp_path)
