"""07_sample_efficiency: whose runs are compared, what the table says of them, where it all goes."""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

script = importlib.import_module("07_sample_efficiency")


def evaluated(*pairs, **fields):
    """A run that was evaluated at these (step, return), a minute for every 100 steps."""
    steps, returns = zip(*pairs, strict=True)
    rows = [
        {"kind": "eval", "step": step, "minutes": step / 100, "return": value}
        for step, value in pairs
    ]
    curve = {"env_steps": list(steps), "return": list(returns)}
    run = {"env_steps": steps[-1], "minutes": steps[-1] / 100, "config": {}, "cpu": "Another CPU"}
    return {**run, "curve": curve, "diagnostics": rows, **fields}


@pytest.fixture
def compared():
    """Two tasks: Dreamer and, on CartPole alone, PPO with three seeds."""
    head = {"env_id": "CartPole-v1", "threshold": 475, "random_return": 22.0, "cpu": "A CPU"}
    ours = [
        evaluated((200, 480), (400, 480), (600, 480), seed=0, final_returns=[500, 480]),
        evaluated((200, 470), (400, 480), (600, 480), seed=1, final_returns=[400]),
    ]
    theirs = [  # one holds early, one only at its last two evaluations, one never twice running
        evaluated((100, 500), (1000, 500), (9000, 10), seed=0, final_returns=[10]),
        evaluated((100, 500), (1000, 474), (9000, 475), seed=1, final_returns=[475]),
        evaluated((100, 5), (1000, 475), (9000, 475), seed=2, final_returns=[500]),
    ]
    theirs = [{**run, "cpu_minutes": 3.0 + run["seed"]} for run in theirs]
    ppo = {**head, "cpu": "Another CPU", "runs": theirs}
    pendulum = {**head, "env_id": "Pendulum-v1", "threshold": -200, "runs": ours[:1]}
    return {
        "cartpole": {"dreamer": {**head, "runs": ours}, "ppo": ppo, "dqn": None},
        "pendulum": {"dreamer": pendulum, "ppo": None, "sac": None},
    }


def test_table_by_hand(compared):
    head, *rows = script.table(compared)
    assert head[:6] == [
        "Task", "Method", "Environment steps", "Seeds", "Seeds that solved it", "Solved at step"
    ]  # fmt: skip
    assert rows == [
        ["CartPole-v1", "Dreamer", "600", "0, 1", "2 of 2", "400", "4.0", "0 of 5"]
        + ["445.0", "400.0", "6.0", "-", "A CPU"],
        ["CartPole-v1", "PPO", "9,000", "0, 1, 2", "2 of 3", "1,000", "10.0", "1 of 5"]
        + ["328.3", "10.0", "90.0", "4.0", "Another CPU"],
        ["CartPole-v1", "DQN", "not measured yet", *["-"] * 10],
        ["Pendulum-v1", "Dreamer", "600", "0", "1 of 1", "200", "2.0", "0 of 3"]
        + ["490.0", "490.0", "6.0", "-", "A CPU"],
        ["Pendulum-v1", "PPO", "not measured yet", *["-"] * 10],
        ["Pendulum-v1", "SAC", "not measured yet", *["-"] * 10],
    ]
    assert all(len(row) == len(head) for row in rows)


def test_a_method_that_never_solves_a_task(compared):
    ppo = compared["cartpole"]["ppo"]
    ppo["threshold"] = 501
    cells = script.cells_of(ppo)
    assert cells[2:6] == ["0 of 3", "never", "never", "-"]


# ---------------------------------------------------------------- whose runs


def test_the_committed_runs_are_known_by_their_settings():
    committed = script.committed()
    assert list(committed) == [(*pair, seed) for pair in script.PLANNED for seed in range(5)]
    assert len(script.PLANNED) == 8
    for key, run in committed.items():
        assert run["config"] == script.settings(*key, False) != script.settings(*key, True)


@pytest.fixture
def gathered(tmp_path, monkeypatch):
    """gathered(runs, smoke) compares, with these runs of PPO on CartPole complete. Three seeds of
    it are committed."""
    name = "cartpole_ppo.json"
    committed = json.loads((script.THEIRS / name).read_text())
    committed["runs"] = committed["runs"][:3]
    theirs = tmp_path / "assets" / "results" / "sample_efficiency"
    theirs.mkdir(parents=True)
    (theirs / name).write_text(json.dumps(committed))
    monkeypatch.setattr(script, "THEIRS", theirs)
    monkeypatch.setattr(script.cli, "ASSETS", tmp_path / "assets")

    def gather(runs, smoke=False):
        complete = {("cartpole", "ppo", run["seed"]): run for run in runs}
        return script.gather(tmp_path / "out", complete, smoke)

    gather.committed, gather.theirs, gather.own = committed, theirs / name, tmp_path / "out" / name
    return gather


def test_committed_and_own_runs_stand_side_by_side(gathered):
    known = gathered.committed["runs"]
    own = {**known[0], "seed": 7, "config": {**known[0]["config"], "seed": 7}}
    ppo = gathered([own])["cartpole"]["ppo"]
    assert [run["seed"] for run in ppo["runs"]] == [0, 1, 2, 7]
    assert ppo["random_return"] == gathered.committed["random_return"]
    assert json.loads(gathered.own.read_text()) == ppo
    assert json.loads(gathered.theirs.read_text()) == gathered.committed
    without = gathered([])
    assert without["cartpole"]["ppo"] == gathered.committed  # what is gone is not remembered
    assert without["cartpole"]["dqn"] is None
    assert without["acrobot"]["dreamer"]["env_id"] == "Acrobot-v1"


def test_a_smoke_run_is_not_mixed_with_whole_ones(gathered):
    run = gathered.committed["runs"][0]
    small = {**run, "config": {**run["config"], "evals": 2}, "final_returns": [9.0, 9.0]}
    smoke = gathered([small], smoke=True)
    assert smoke["cartpole"]["ppo"]["runs"] == [small]
    assert smoke["pendulum"]["sac"] is None


# ---------------------------------------------------------------- the command line


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["07_sample_efficiency.py", *map(str, words)])
    return script.main()


def test_the_committed_numbers_are_drawn_and_nothing_else_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script.baselines, "sb3", None)  # nor does it take the library
    assert call(monkeypatch, "--plot-only", "--out", tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["07_sample_efficiency"]
    folder = tmp_path / "07_sample_efficiency"
    assert len(list(folder.glob("*.json"))) == 8
    for path in folder.glob("*.json"):
        assert path.read_bytes() == (script.THEIRS / path.name).read_bytes()
    picture = np.asarray(Image.open(folder / "07_sample_efficiency.png").convert("L"))
    assert (picture < 128).mean() > 0.002
    rows = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert len(rows) == 2 + 12 and not any("not measured" in row for row in rows)


def test_published_are_files_and_figure(gathered, tmp_path, monkeypatch):
    monkeypatch.setattr(
        script.figures, "sample_efficiency_figure", lambda compared, path: path.write_text("drawn")
    )
    assert call(monkeypatch, "--publish", "--out", tmp_path / "runs") == 0
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("assets/**/*.*")) == [
        "assets/07_sample_efficiency.png",
        "assets/results/sample_efficiency/cartpole_ppo.json",
    ]


def test_without_the_library_a_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script.baselines, "sb3", None)
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, "--out", tmp_path)
    assert end.value.code == 1
    assert "pip install 'stable-baselines3" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.scripts
@pytest.mark.baselines
def test_a_part_of_the_comparison_again_and_its_figure_alone(tmp_path, monkeypatch, capsys):
    words = ["--smoke", "--out", tmp_path, "--tasks", "cartpole", "--methods", "ppo"]
    folder = tmp_path / "07_sample_efficiency"
    path, figure = folder / "cartpole_ppo.json", folder / "07_sample_efficiency.png"

    def lines(*more):
        assert call(monkeypatch, *words, *more) == 0
        return capsys.readouterr().out.splitlines()

    def table(printed):
        return [line for line in printed if line[:1] == "|"]

    first = lines()
    assert "cartpole/ppo seed 0: done" in first
    data = json.loads(path.read_text())
    assert data["env_id"] == "CartPole-v1" and [run["seed"] for run in data["runs"]] == [0]
    assert any("| CartPole-v1 | DQN | not measured yet |" in line for line in first)

    figure.unlink()  # what is complete is not run again
    again = lines()
    assert "cartpole/ppo seed 0: complete" in again and table(again) == table(first)
    assert json.loads(path.read_text())["runs"] == data["runs"] and figure.exists()

    figure.unlink()
    assert table(lines("--plot-only")) == table(first) and figure.exists()

    shutil.rmtree(folder / "cartpole")
    assert any("| CartPole-v1 | PPO | not measured yet |" in line for line in lines("--plot-only"))
