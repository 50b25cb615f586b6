"""Results: what is kept of a run, what is said of it, and how runs are merged and judged."""

import dataclasses
import json
import math
import os
import shlex
from types import SimpleNamespace

import numpy as np
import pytest

from dreamer import Config
from lab import cli, results


def make_run(seed=0, reports=1, **config):
    """A run as `train` returns it, with made-up rows."""
    value = {"return": 1.23456, "returns": [1.0] * 20}
    episode = {"kind": "episode", "step": 5, "return": 200.123, "length": 9}
    loss = {"kind": "report", "loss": -0.00012345}
    rows = {"episodes": [episode], "reports": [loss | {"step": i} for i in range(reports)]}
    rows["evals"] = [{"kind": "eval", "step": step, **value} for step in (10, 20)]
    times = {"step": 10_000, "minutes": 1.56789, "cpu_minutes": 1.25}
    return SimpleNamespace(config=Config(seed=seed, **config), **rows, **times)


def make_entry(seed=0, returns=(1.0, 2.0, 6.0), **fields):
    return results.run_entry(make_run(seed, **fields), np.array(returns))


def test_what_is_kept_of_a_run():
    entry = make_entry(3, [123456.0, 2.0], steps=500)
    assert (entry["seed"], entry["env_steps"]) == (3, 500)
    assert (entry["minutes"], entry["cpu_minutes"]) == (1.568, 1.25)
    assert Config(**entry["config"]) == Config(seed=3, steps=500)
    assert entry["curve"] == {"env_steps": [10, 20], "return": [1.235, 1.235]}
    assert entry["train_returns"] == [[5, 200.1]]
    assert entry["final_returns"] == [123500.0, 2.0]
    evals = [{"kind": "eval", "step": step, "return": 1.235} for step in (10, 20)]
    assert entry["diagnostics"] == [{"kind": "report", "step": 0, "loss": -0.0001234}, *evals]
    model, _, cores = entry["cpu"].rpartition(", ")
    assert model and int(cores.split()[0]) >= 1


def test_report_rows_are_thinned_evenly():
    for reports, kept in ((0, 0), (50, 50), (51, 26), (200, 50)):
        rows = make_entry(reports=reports)["diagnostics"]
        steps = [row["step"] for row in rows if row["kind"] == "report"]
        assert len(steps) == kept and len(set(np.diff(steps))) <= 1


@pytest.fixture
def drawn(monkeypatch):
    """What was given to the figure, which is not drawn."""
    calls = []
    monkeypatch.setattr(results.figures, "training_figure", lambda *args: calls.append(args))
    return calls


@pytest.fixture
def measured(monkeypatch):
    """The calls that measure the random policy; each says one more than the last."""
    calls = []

    def random_returns(*args):
        calls.append(args)
        return np.full(3, float(len(calls)))

    monkeypatch.setattr(results, "random_returns", random_returns)
    return calls


def finish(folder, returns, task="cartpole", after="03_next.py"):
    script = cli.ROOT / "02_dreamer_cartpole.py"
    args = cli.parse(script, None, Config(), ["--seed", "7", "--out", str(folder)])
    run, returns = make_run(7), np.array(returns)
    results.finish(args, task, "CartPole-v1", 475, run, returns, after, probe="found")
    return args.run_dir


@pytest.mark.parametrize(("mean", "verdict"), [(474.9, "NOT reached"), (475.0, "475 reached")])
def test_finish_tells_the_truth(tmp_path, monkeypatch, capsys, drawn, mean, verdict):
    monkeypatch.chdir(tmp_path)
    run_dir = finish(tmp_path / "my out", [mean - 1, mean + 1])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"CartPole-v1, seed 7: mean return {mean:.1f} over 2 greedy episodes")
    assert f"(worst {mean - 1:.1f}) after 10000 steps in 1.6 minutes" in first and verdict in first
    said = dict(line.split(":", 1) for line in lines)
    folder = os.path.join("my out", "02_dreamer_cartpole", "seed7")
    agent = os.path.join(folder, "agent.pt")
    assert os.path.join(folder, "02_cartpole_training.png") in said["Figure"]
    assert agent in said["Agent"] and said["Next"].split() == ["python", "03_next.py"]
    assert shlex.split(said["Watch it"]) == ["python", "-m", "dreamer", "watch", agent]
    assert shlex.split(said["Dreams"]) == ["python", "-m", "lab.visualize", agent]
    result = json.loads((run_dir / "result.json").read_text())
    assert result["return"] == pytest.approx(mean) and result["worst_episode"] == mean - 1
    assert (result["env_id"], result["threshold"]) == ("CartPole-v1", 475)
    assert result["config"] == result["entry"]["config"] == dataclasses.asdict(Config(seed=7))
    assert result["entry"]["probe"] == "found"


def test_a_run_is_drawn_over_the_committed_seeds(tmp_path, drawn, measured):
    ours = results.load(results.RESULTS / "cartpole.json")
    run_dir = finish(tmp_path, [1.0])
    finish(tmp_path, [1.0], task="unknown")  # nothing is committed: chance is measured
    (title, (run,), *rest), (_, _, *unknown) = drawn
    figures = [run_dir / f"02_{task}_training.png" for task in ("cartpole", "unknown")]
    assert (title, run["seed"]) == ("CartPole-v1", 7)
    assert rest == [475, ours["random_return"], figures[0], ours["runs"], math.log(2)]
    assert unknown == [475, 1.0, figures[1], [], math.log(2)]


def test_runs_of_one_config_gather_in_a_file_by_seed(tmp_path, measured):
    path = tmp_path / "deep" / "a.json"
    results.merge(path, "CartPole-v1", 475, [make_entry(2), make_entry(0)])
    again = {**make_entry(2, (9.0,)), "cpu": "Another, 8 cores"}
    data = results.merge(path, "CartPole-v1", 475, [again, make_entry(1)])
    assert results.load(path) == data and results.load(tmp_path / "none.json") is None
    assert data["runs"] == [make_entry(0), make_entry(1), again]
    assert list(data) == ["env_id", "threshold", "random_return", "versions", "cpu", "runs"]
    assert (data["env_id"], data["threshold"], data["random_return"]) == ("CartPole-v1", 475, 1.0)
    assert data["cpu"] == "; ".join(sorted([results.cpu_name(), "Another, 8 cores"]))
    assert set(data["versions"]) == {"python", "torch", "gymnasium", "numpy"}
    lines = path.read_text().splitlines()
    assert f'   "curve": {json.dumps(again["curve"])},' in lines  # a field, a line of a diff

    other = make_entry(1, gamma=0.5)  # cannot be averaged with them
    data = results.merge(path, "CartPole-v1", 475, [other])
    assert data["runs"] == [other] and data["random_return"] == 2.0  # measured anew
    assert measured == [("CartPole-v1", 3)] * 2


def evaluated(*values, final=(0,)):
    """A run that was evaluated every 100 steps, that is each minute."""
    steps = enumerate(values, 1)
    rows = [{"kind": "eval", "step": 100 * i, "minutes": i, "return": x} for i, x in steps]
    return {"diagnostics": [{"kind": "report", "return": 500}, *rows], "final_returns": final}


EARLY = evaluated(500, 500, 10, 480, final=[474, 475])
LATE = evaluated(500, 474, 475, 475, final=[475, 475])
NEVER = evaluated(500, 474, 500, 474, final=[450, 500])


@pytest.mark.parametrize(
    ("runs", "median", "count", "below", "solved"),
    [
        ([EARLY, LATE, NEVER], (300, 3.0), 2, (1, 6), 2),
        ([NEVER, LATE], (math.inf, math.inf), 1, (0, 2), 2),
        ([NEVER], (math.inf, math.inf), 0, (0, 0), 1),
        ([EARLY], (100, 1.0), 1, (1, 4), 0),
        ([evaluated(500), evaluated()], (math.inf, math.inf), 0, (0, 0), 0),
    ],
)
def test_when_a_threshold_is_reached_and_a_task_solved(runs, median, count, below, solved):
    data = {"threshold": 475, "runs": runs}
    assert results.first_reached(data) == (*median, count, *below)
    assert results.solved(data) == solved
