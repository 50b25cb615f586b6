"""Results: what is kept of a run, what is said of it, and how runs are merged and judged."""

import dataclasses
import json
import math
import os
import shlex
from types import SimpleNamespace

from lab import cli, results
import numpy as np
import pytest

from dreamer import Config

RETURNS = np.array([1.0, 2.0, 6.0])
ROW = {"return": 1.23456, "returns": [1.0] * 20, "value_pred": 3.14159}


def make_run(seed=0, reports=0, evals=2, episodes=1, **config):
    """A run as `train` returns it, with made-up rows."""
    rng = np.random.default_rng(seed)
    names = [f"metric_number_{i}" for i in range(24)]
    config = Config(seed=seed, **config)
    return SimpleNamespace(
        config=config,
        env=SimpleNamespace(spec_name="CartPole-v1"),
        step=config.steps,
        episodes=[
            {"kind": "episode", "step": i, "return": 200.123 + i, "length": 9}
            for i in range(episodes)
        ],
        reports=[
            {"kind": "report", "step": i, **{name: float(rng.normal()) for name in names}}
            for i in range(reports)
        ],
        evals=[{"kind": "eval", "step": 10 * (i + 1), **ROW} for i in range(evals)],
        minutes=1.56789,
        cpu_minutes=1.25,
    )


def make_entry(seed=0, returns=RETURNS, **fields):
    return results.run_entry(make_run(seed, **fields), np.array(returns))


# ---------------------------------------------------------------- one run


def test_what_is_kept_of_a_run():
    entry = make_entry(3, reports=1, steps=500)
    assert (entry["seed"], entry["env_steps"]) == (3, 500)
    assert (entry["minutes"], entry["cpu_minutes"]) == (1.568, 1.25)
    assert Config(**entry["config"]) == Config(seed=3, steps=500)
    assert entry["cpu"] == results.cpu_name()
    assert entry["curve"] == {"env_steps": [10, 20], "return": [1.235, 1.235]}
    assert entry["train_returns"] == [[0, 200.1]]
    assert entry["final_returns"] == [1.0, 2.0, 6.0]
    rows = entry["diagnostics"]
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("report", 0),
        ("eval", 10),
        ("eval", 20),
    ]
    assert rows[1] == {"kind": "eval", "step": 10, "return": 1.235, "value_pred": 3.142}


@pytest.mark.parametrize(("reports", "kept"), [(0, 0), (1, 1), (50, 50), (51, 26), (200, 50)])
def test_report_rows_are_thinned_evenly(reports, kept):
    steps = [row["step"] for row in make_entry(reports=reports, evals=0)["diagnostics"]]
    assert len(steps) == kept
    assert len(set(np.diff(steps))) <= 1


@pytest.mark.parametrize(
    ("value", "rounded"), [(123456.0, 123500.0), (-0.00012345, -0.0001234), (0.0, 0.0), (500, 500)]
)
def test_significant(value, rounded):
    assert results.significant(value) == pytest.approx(rounded, abs=1e-7)


def test_hardware_and_versions_are_named():
    model, _, cores = results.cpu_name().rpartition(", ")
    assert model and int(cores.split()[0]) >= 1
    assert set(results.versions()) == {"python", "torch", "gymnasium", "numpy"}


@pytest.fixture
def drawn(monkeypatch):
    """What was given to the figure, which is not drawn."""
    calls = []
    monkeypatch.setattr(results.figures, "training_figure", lambda *a: calls.append(a))
    return calls


@pytest.fixture
def measured(monkeypatch):
    """The calls that measure the random policy; each says one more than the last."""
    calls = []

    def random_returns(env, episodes=100):
        calls.append((env, episodes))
        return np.full(episodes, float(len(calls)))

    monkeypatch.setattr(results, "random_returns", random_returns)
    return calls


def finish(folder, returns, task="cartpole", seed=7, after="03_next.py"):
    script = cli.ROOT / "02_dreamer_cartpole.py"
    args = cli.parse(script, None, Config(), ["--seed", str(seed), "--out", str(folder)])
    returns = np.array(returns)
    results.finish(args, task, "CartPole-v1", 475, make_run(seed), returns, after)
    return args.run_dir


def test_the_last_script_has_no_next_one(tmp_path, capsys, drawn):
    finish(tmp_path, [1], after="")
    assert capsys.readouterr().out.splitlines()[4].split()[:2] == ["Next:", "python"]


@pytest.mark.parametrize(("mean", "verdict"), [(474.9, "NOT reached"), (475.0, "475 reached")])
def test_finish_tells_the_truth(tmp_path, monkeypatch, capsys, drawn, mean, verdict):
    monkeypatch.chdir(tmp_path)
    run_dir = finish(tmp_path / "my out", [mean - 1, mean + 1])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"CartPole-v1, seed 7: mean return {mean:.1f} over 2 greedy")
    assert verdict in lines[0] and f"(worst {mean - 1:.1f})" in lines[0]
    assert "10000 steps in 1.6 minutes" in lines[0]
    folder = os.path.join("my out", "02_dreamer_cartpole", "seed7")
    agent = os.path.join(folder, "agent.pt")
    assert os.path.join(folder, "02_cartpole_training.png") in lines[1] and agent in lines[2]
    watch = ["-m", "dreamer", "watch", agent, "--env", "CartPole-v1"]
    assert shlex.split(lines[3].split(":", 1)[1])[1:] == watch
    following, look = lines[4].split(", or ")
    assert following.split() == ["Next:", "python", "03_next.py"]
    assert shlex.split(look)[2:4] == ["--agent", agent] and "04_visualize.py" in look

    result = json.loads((run_dir / "result.json").read_text())
    expected = ["return", "worst_episode", "threshold", "minutes", "config", "entry"]
    assert list(result) == expected
    assert result["return"] == pytest.approx(mean)
    assert (result["worst_episode"], result["threshold"]) == (mean - 1, 475)
    assert result["config"] == result["entry"]["config"] == dataclasses.asdict(Config(seed=7))
    assert result["entry"]["final_returns"] == [mean - 1, mean + 1]


def test_a_run_is_drawn_over_the_committed_seeds(tmp_path, drawn, measured):
    ours = results.load(results.RESULTS / "cartpole.json")
    run_dir = finish(tmp_path, [1.0])
    finish(tmp_path, [1.0], task="unknown")  # nothing is committed: chance is measured
    (title, runs, *rest), (_, _, *unknown) = drawn
    assert title == "CartPole-v1" and [run["seed"] for run in runs] == [7]
    figure = run_dir / "02_cartpole_training.png"
    assert rest[:4] == [475, ours["random_return"], figure, ours["runs"]]
    assert unknown[:4] == [475, 1.0, run_dir / "02_unknown_training.png", []]
    assert measured == [("CartPole-v1", 100)]


@pytest.mark.parametrize(("env_id", "nats"), [("CartPole-v1", math.log(2)), ("Pendulum-v1", None)])
def test_entropy_is_drawn_against_that_of_a_uniform_policy(env_id, nats, drawn):
    results.draw(env_id, [], 475, 20, "a.png")
    assert drawn == [(env_id, [], 475, 20, "a.png", (), nats)]


# ---------------------------------------------------------------- results files


def merge(path, *entries):
    return results.merge(path, "CartPole-v1", 475, list(entries))


def test_what_a_results_file_holds(tmp_path, measured):
    path = tmp_path / "deep" / "cartpole.json"
    entry = make_entry(3)
    data = merge(path, entry)
    assert results.load(path) == data
    assert list(data) == ["env_id", "threshold", "random_return", "versions", "cpu", "runs"]
    assert (data["env_id"], data["threshold"], data["random_return"]) == ("CartPole-v1", 475, 1.0)
    assert data["runs"] == [entry] and data["cpu"] == entry["cpu"]
    lines = path.read_text().splitlines()
    assert all(sum(f'"{key}": ' in line for line in lines) == 1 for key in ("curve", "cpu_minutes"))
    assert f'   "curve": {json.dumps(entry["curve"])},' in lines  # a field, a line of a diff


def test_same_seed_is_replaced_and_others_stay(tmp_path, measured):
    path = tmp_path / "a.json"
    merge(path, make_entry(2), make_entry(0))
    data = merge(path, {**make_entry(2, 2 * RETURNS), "cpu": "Another, 8 cores"}, make_entry(1))
    assert [run["seed"] for run in data["runs"]] == [0, 1, 2]
    assert data["runs"][2]["final_returns"] == [2.0, 4.0, 12.0]
    assert data["cpu"] == "; ".join(sorted([results.cpu_name(), "Another, 8 cores"]))
    assert measured == [("CartPole-v1", 3)]  # once for the file


def test_another_config_drops_what_cannot_be_averaged_with_it(tmp_path, measured):
    path = tmp_path / "a.json"
    merge(path, make_entry(0, gamma=0.9), make_entry(1, gamma=0.9))
    data = merge(path, make_entry(1, gamma=0.99))
    assert [run["seed"] for run in data["runs"]] == [1]
    assert data["random_return"] == 2.0  # measured anew


def test_nan_is_refused_and_the_old_file_stays(tmp_path, measured):
    path = tmp_path / "a.json"
    merge(path, make_entry(0))
    before = path.read_bytes()
    with pytest.raises(ValueError):
        merge(path, make_entry(0, [np.nan]))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_five_long_runs_fit_into_300_kb(tmp_path, measured):
    path = tmp_path / "a.json"
    returns = np.full(100, 241.37)
    merge(path, *[make_entry(k, returns, reports=200, evals=20, episodes=600) for k in range(5)])
    assert path.stat().st_size < 300_000


def test_files_that_are_not_there_are_none(tmp_path, measured):
    assert results.load(tmp_path / "none.json") is None
    merge(tmp_path / "pendulum.json", make_entry())
    merge(tmp_path / "ablations.json", make_entry())
    assert list(results.load_tasks(tmp_path)) == ["pendulum"]


# ---------------------------------------------------------------- when a task counts as solved


def evaluated(*pairs):
    """A run that was evaluated at these (step, return), a minute for every 100 steps."""
    rows = [
        {"kind": "eval", "step": step, "minutes": step / 100, "return": ret} for step, ret in pairs
    ]
    return {"diagnostics": [{"kind": "report", "step": 50, "return": 500}, *rows]}


@pytest.mark.parametrize(
    ("threshold", "first"),
    [(475, (300, 3.0)), (474, (100, 1.0)), (476, (math.inf, math.inf))],
)
def test_a_task_is_solved_at_the_first_of_two_good_evaluations(threshold, first):
    run = evaluated((100, 475), (200, 474), (300, 475), (400, 500), (500, 0))
    assert results.solved({"threshold": threshold, "runs": [run]})[:2] == first


@pytest.mark.parametrize("run", [evaluated((100, 500)), evaluated()])
def test_one_evaluation_or_none_solves_nothing(run):
    never = (math.inf, math.inf, 0, 0, 0)
    assert results.solved({"threshold": 475, "runs": [run]}) == never


# One is solved early, one only at its last two evaluations, one never.
EARLY = evaluated((100, 500), (200, 500), (300, 10), (400, 480))
LATE = evaluated((100, 500), (200, 474), (300, 475), (400, 475))
NEVER = evaluated((100, 500), (200, 474), (300, 500), (400, 474))


@pytest.mark.parametrize(
    ("runs", "median", "count", "below"),
    [
        ([EARLY, LATE, NEVER], (300, 3.0), 2, (1, 6)),
        ([NEVER, LATE], (math.inf, math.inf), 1, (0, 2)),
        ([NEVER], (math.inf, math.inf), 0, (0, 0)),
        ([EARLY], (100, 1.0), 1, (1, 4)),
    ],
)
def test_seeds_together_by_hand(runs, median, count, below):
    data = {"threshold": 475, "runs": runs}
    assert results.solved(data) == (*median, count, *below)


def test_a_table_in_markdown():
    text = results.markdown([["Task", "Steps"], ["CartPole", "6,000"]])
    assert text.splitlines() == ["| Task | Steps |", "| --- | --- |", "| CartPole | 6,000 |"]
