"""07_sample_efficiency: whose runs are compared, what the table says of them, where it all goes."""

import argparse
import importlib
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from lab import results

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


@pytest.mark.baselines
def test_every_task_has_the_methods_of_the_zoo():
    zoo = {env_id: list(methods) for env_id, methods in script.baselines.ZOO.items()}
    tasks = {task: data["env_id"] for task, data in script.TASKS.items()}
    assert {tasks[task]: methods for task, methods in script.BASELINES.items()} == zoo


@pytest.mark.baselines
def test_the_committed_runs_are_known_by_their_settings(tmp_path):
    flags = argparse.Namespace(smoke=False, fresh=False, out=tmp_path, folder=tmp_path)
    for task, methods in script.BASELINES.items():
        for method in methods:
            assert all(
                script.is_committed(script.make_job(task, method, k, flags)) for k in range(5)
            )
            assert not script.is_committed(script.make_job(task, method, 5, flags))


@pytest.fixture
def gathered(tmp_path, monkeypatch):
    """gathered(entries, smoke) compares, with these entries complete, by "task_method". Three
    seeds of PPO on CartPole are committed."""
    theirs = tmp_path / "assets" / "results" / "sample_efficiency"
    theirs.mkdir(parents=True)
    monkeypatch.setattr(script, "THEIRS", theirs)
    monkeypatch.setattr(script, "baselines", script.baselines or object())
    monkeypatch.setattr(script.cli, "ASSETS", tmp_path / "assets")
    committed = json.loads(
        (results.RESULTS / "sample_efficiency" / "cartpole_ppo.json").read_text()
    )
    committed["runs"] = committed["runs"][:3]
    (theirs / "cartpole_ppo.json").write_text(json.dumps(committed))

    def gather(entries, smoke=False):
        monkeypatch.setattr(
            script, "finished", lambda task, method, flags: entries.get(f"{task}_{method}", [])
        )
        return script.gather(argparse.Namespace(smoke=smoke, folder=tmp_path / "out"))

    gather.committed, gather.theirs, gather.out = committed, theirs, tmp_path / "out"
    return gather


def test_committed_and_own_runs_stand_side_by_side(gathered):
    known = gathered.committed["runs"]
    own = {**known[0], "seed": 7, "config": {**known[0]["config"], "seed": 7}}
    ppo = gathered({"cartpole_ppo": [own]})["cartpole"]["ppo"]
    assert [run["seed"] for run in ppo["runs"]] == [0, 1, 2, 7]
    assert ppo["random_return"] == gathered.committed["random_return"]
    assert json.loads((gathered.out / "cartpole_ppo.json").read_text()) == ppo
    assert len(json.loads((gathered.theirs / "cartpole_ppo.json").read_text())["runs"]) == 3
    without = gathered({})
    assert without["cartpole"]["ppo"] == gathered.committed  # what is gone is not remembered
    assert without["cartpole"]["dqn"] is None
    assert without["acrobot"]["dreamer"]["env_id"] == "Acrobot-v1"


def test_a_smoke_run_is_not_mixed_with_whole_ones(gathered):
    run = gathered.committed["runs"][0]
    small = {**run, "config": {**run["config"], "evals": 2}, "final_returns": [9.0, 9.0]}
    smoke = gathered({"cartpole_ppo": [small]}, smoke=True)
    assert smoke["cartpole"]["ppo"]["runs"] == [small]
    assert smoke["pendulum"]["sac"] is None


# ---------------------------------------------------------------- the command line


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["07_sample_efficiency.py", *map(str, words)])
    return script.main()


def test_the_committed_numbers_are_drawn_and_nothing_else_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "baselines", None)  # nor does it take the library
    assert call(monkeypatch, "--plot-only", "--out", tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["07_sample_efficiency"]
    folder = tmp_path / "07_sample_efficiency"
    assert len(list(folder.glob("*.json"))) == 8
    picture = np.asarray(Image.open(folder / "07_sample_efficiency.png").convert("L"))
    assert (picture < 128).mean() > 0.002
    rows = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert len(rows) == 2 + 12 and not any("not measured" in row for row in rows)


def test_published_are_files_and_figure(gathered, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "baselines", None)
    monkeypatch.setattr(
        script.figures, "sample_efficiency_figure", lambda compared, path: path.write_text("drawn")
    )
    assert call(monkeypatch, "--publish", "--out", tmp_path / "runs") == 0
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("assets/**/*.*"))
    assert written == [
        "assets/07_sample_efficiency.png",
        "assets/results/sample_efficiency/cartpole_ppo.json",
    ]
    assert "Published to" in capsys.readouterr().out


def test_without_the_library_a_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "baselines", None)
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, "--out", tmp_path)
    assert end.value.code == 1
    assert "pip install 'stable-baselines3" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--publish", "--smoke"], ["--jobs", "0"], ["--tasks", "go"]])
def test_flags_that_cannot_be_are_refused(words, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, *words)
    assert end.value.code == 2
    assert f"argument {words[0]}" in capsys.readouterr().err


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
    assert "cartpole_ppo seed 0: done" in first
    data = json.loads(path.read_text())
    assert data["env_id"] == "CartPole-v1" and [run["seed"] for run in data["runs"]] == [0]
    assert any("| CartPole-v1 | DQN | not measured yet |" in line for line in first)

    figure.unlink()  # what is complete is not run again
    again = lines()
    assert "cartpole_ppo seed 0: complete" in again and table(again) == table(first)
    assert json.loads(path.read_text())["runs"] == data["runs"] and figure.exists()

    figure.unlink()
    assert table(lines("--plot-only")) == table(first) and figure.exists()

    shutil.rmtree(folder / "cartpole_ppo")
    assert any("| CartPole-v1 | PPO | not measured yet |" in line for line in lines("--plot-only"))
