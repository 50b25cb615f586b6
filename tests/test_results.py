"""Results files: what is kept of a run, how runs are merged, and the README made from them."""

import json
import multiprocessing
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from dreamer.agent import Config
from dreamer.training import Run
from lab import results

RETURNS = np.array([1.0, 2.0, 6.0])


def make_run(seed=0, reports=0, evals=2, episodes=1, **config):
    """A run as `train` returns it, with made-up rows."""
    rng = np.random.default_rng(seed)
    names = [f"metric_number_{i}" for i in range(24)]
    row = {"return": 1.23456, "returns": [1.0] * 20, "value_pred": 3.14159}
    return Run(
        SimpleNamespace(config=Config(seed=seed, **config)),
        [
            {"kind": "episode", "step": i, "return": 200.123 + i, "length": 9}
            for i in range(episodes)
        ],
        [
            {"kind": "report", "step": i, **{name: float(rng.normal()) for name in names}}
            for i in range(reports)
        ],
        [{"kind": "eval", "step": 10 * (i + 1), **row} for i in range(evals)],
        1.5,
        1.25,
    )


def record(*args):
    """Record a run; the file's content."""
    with results.record(*args) as data:
        return data


@pytest.fixture
def measured(monkeypatch):
    """The calls that measure the random policy; each says one more than the last."""
    calls = []

    def random_returns(env, episodes):
        calls.append((env, episodes))
        return np.full(episodes, float(len(calls)))

    monkeypatch.setattr(results, "random_returns", random_returns)
    return calls


def test_what_is_kept_of_a_run(tmp_path, measured):
    path = tmp_path / "deep" / "cartpole.json"
    data = record(path, "CartPole-v1", 475, make_run(3, reports=1, steps=500), RETURNS)
    assert json.loads(path.read_text()) == data
    assert list(data) == ["env_id", "threshold", "random_return", "versions", "cpu", "runs"]
    assert (data["env_id"], data["threshold"], data["random_return"]) == ("CartPole-v1", 475, 1.0)
    assert set(data["versions"]) == {"python", "torch", "gymnasium", "numpy"}
    (run,) = data["runs"]
    assert (run["seed"], run["env_steps"], run["minutes"]) == (3, 500, 1.5)
    assert Config(**run["config"]) == Config(seed=3, steps=500)
    assert run["curve"] == {"env_steps": [10, 20], "return": [1.235, 1.235]}
    assert run["train_returns"] == [[0, 200.1]]
    assert run["final_returns"] == [1.0, 2.0, 6.0]
    assert [(row["kind"], row["step"]) for row in run["diagnostics"]] == [
        ("report", 0),
        ("eval", 10),
        ("eval", 20),
    ]
    assert run["diagnostics"][1] == {
        "kind": "eval",
        "step": 10,
        "return": 1.235,
        "value_pred": 3.142,
    }


def test_same_seed_is_replaced_and_others_stay(tmp_path, measured):
    path = tmp_path / "a.json"
    for seed, returns in ((2, RETURNS), (0, RETURNS), (2, 2 * RETURNS)):
        data = record(path, "CartPole-v1", 475, make_run(seed), returns)
    assert [run["seed"] for run in data["runs"]] == [0, 2]
    assert data["runs"][1]["final_returns"] == [2.0, 4.0, 12.0]
    assert measured == [("CartPole-v1", 3)]  # once for the file


def test_another_config_drops_what_cannot_be_averaged_with_it(tmp_path, measured):
    path = tmp_path / "a.json"
    record(path, "CartPole-v1", 475, make_run(0, gamma=0.9), RETURNS)
    data = record(path, "CartPole-v1", 475, make_run(1, gamma=0.99), RETURNS)
    assert [run["seed"] for run in data["runs"]] == [1]
    assert data["random_return"] == 2.0  # measured anew


def test_five_long_runs_fit_into_300_kb(tmp_path, measured):
    path = tmp_path / "a.json"
    for seed in range(5):
        run = make_run(seed, reports=200, evals=20, episodes=600)
        data = record(path, "CartPole-v1", 475, run, np.full(100, 241.37))
    reports = [row for row in data["runs"][0]["diagnostics"] if row["kind"] == "report"]
    assert 40 <= len(reports) <= 100
    assert path.stat().st_size < 300_000


@pytest.mark.skipif(results.fcntl is None, reason="no flock on this system")
def test_processes_that_record_at_once_lose_nothing(tmp_path, monkeypatch):
    def slowly(env, episodes):
        time.sleep(0.2)  # all others have started by now
        return np.zeros(episodes)

    monkeypatch.setattr(results, "random_returns", slowly)
    fork = multiprocessing.get_context("fork")
    args = tmp_path / "a.json", "CartPole-v1", 475
    processes = [
        fork.Process(target=record, args=(*args, make_run(seed), RETURNS)) for seed in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    runs = json.loads((tmp_path / "a.json").read_text())["runs"]
    assert [run["seed"] for run in runs] == [0, 1, 2, 3]


def test_nan_is_refused_and_the_old_file_stays(tmp_path, measured):
    path = tmp_path / "a.json"
    record(path, "CartPole-v1", 475, make_run(0), RETURNS)
    before = path.read_bytes()
    with pytest.raises(ValueError):
        record(path, "CartPole-v1", 475, make_run(0), np.array([np.nan]))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("value", "rounded"), [(123456.0, 123500.0), (-0.00012345, -0.0001234), (0.0, 0.0), (500, 500)]
)
def test_significant(value, rounded):
    assert results.significant(value) == pytest.approx(rounded, abs=1e-7)


@pytest.mark.parametrize(("mean", "verdict"), [(474.9, "NOT reached"), (475.0, "475 reached")])
def test_finish_marks_the_run_and_tells_the_truth(tmp_path, mean, verdict):
    returns = np.array([mean - 1, mean + 1])
    line = results.finish(tmp_path, "CartPole-v1", 475, make_run(seed=7), returns)
    assert verdict in line
    assert "seed 7" in line
    assert f"worst {mean - 1:.1f}" in line
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["return"] == pytest.approx(mean)
    assert Config(**result["config"]) == Config(seed=7)


# ---------------------------------------------------------------- the README


@pytest.fixture
def readme(tmp_path, monkeypatch):
    """A README with one task of two seeds: means 400 and 500, so std 100 / sqrt(2) = 70.7."""
    monkeypatch.setattr(results, "BLOCKS", {"results": results.table})
    run = {"env_steps": 10_000, "config": {"train_ratio": 96.0, "action_repeat": 2}}

    def evals(*returns):  # an evaluation every 100 steps and half minute
        rows = enumerate(returns, 1)
        rows = [{"step": 100 * i, "minutes": 0.5 * i, "return": value} for i, value in rows]
        return {
            "diagnostics": [{"kind": "report", "step": 50}, *({"kind": "eval", **r} for r in rows)]
        }

    steady, late = evals(400, 475, 490), evals(480, 300, 476, 500)  # held from 200 and from 300
    data = {
        "env_id": "CartPole-v1",
        "threshold": 475,
        "random_return": 22.04,
        "cpu": "Some CPU, 2 cores",
        "runs": [
            {"seed": 0, "minutes": 1.0, "final_returns": [300, 500], **run, **steady},
            {"seed": 4, "minutes": 3.0, "final_returns": [500, 500], **run, **late},
        ],
    }
    folder = tmp_path / "assets" / "results"
    folder.mkdir(parents=True)
    (folder / "cartpole.json").write_text(json.dumps(data))
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- results:begin -->\nSTALE\n<!-- results:end -->\nafter\n")
    return path


def call(monkeypatch, *words):
    """Exit status of `python -m lab.results WORDS`; a message counts as 1, as in a shell."""
    monkeypatch.setattr(sys, "argv", ["results", *map(str, words)])
    try:
        results.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def test_tables_by_hand(readme):
    text = results.table(readme.parent / "assets" / "results")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    found, made = ([cell.strip() for cell in lines[i].strip("|").split("|")] for i in (2, 5))
    assert found == [
        "CartPole-v1",
        "10,000",
        "450.0",
        "70.7",
        "400.0",
        "475",
        "22.0",
        "2.0",
        "step 300, 1.5 minutes",
        "0 of 4",
    ]
    command = "`python 02_dreamer_cartpole.py --seed K`"
    assert made == ["CartPole-v1", "96", "2", "0, 4", "Some CPU, 2 cores", command]
    assert len(lines) == 6


def evaluated(*pairs, **fields):
    """A run that was evaluated at these (step, return), a minute for every 100 steps."""
    steps, returns = zip(*pairs, strict=True)
    rows = [
        {"kind": "eval", "step": step, "minutes": step / 100, "return": value}
        for step, value in pairs
    ]
    curve = {"env_steps": list(steps), "return": list(returns)}
    run = {"env_steps": steps[-1], "minutes": steps[-1] / 100, "config": {}}
    return {**run, "curve": curve, "diagnostics": rows, **fields}


@pytest.fixture
def compared(tmp_path):
    """Results of two tasks: Dreamer and, of CartPole alone, PPO with three seeds."""
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
    files = {
        "cartpole": {**head, "runs": ours},
        "sample_efficiency/cartpole_ppo": {**head, "cpu": "Another CPU", "runs": theirs},
        "pendulum": {**head, "env_id": "Pendulum-v1", "threshold": -200, "runs": ours[:1]},
    }
    for name, data in files.items():
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data))
    return tmp_path


def test_held_by_hand():
    run = evaluated((100, 475), (200, 474), (300, 475), (400, 500), (500, 0), final_returns=[])
    assert results.held(run, 475) == (300, 3.0)
    assert results.held(run, 474) == (100, 1.0)
    assert results.held(run, 476) == (float("inf"), float("inf"))


def test_sample_efficiency_table_by_hand(compared):
    text = results.sample_efficiency(compared)
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")][2:]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["CartPole-v1", "Dreamer", "600", "0, 1", "400", "2 of 2", "0 of 5", "4.0"]
        + ["445.0", "400.0", "6.0", "-", "A CPU"],
        ["CartPole-v1", "PPO", "9,000", "0, 1, 2", "1,000", "2 of 3", "1 of 5", "10.0"]
        + ["328.3", "10.0", "90.0", "4.0", "Another CPU"],
        ["CartPole-v1", "DQN", "not measured yet", *["-"] * 10],
        ["Pendulum-v1", "Dreamer", "600", "0", "200", "1 of 1", "0 of 3", "2.0"]
        + ["490.0", "490.0", "6.0", "-", "A CPU"],
        ["Pendulum-v1", "PPO", "not measured yet", *["-"] * 10],
        ["Pendulum-v1", "SAC", "not measured yet", *["-"] * 10],
    ]
    assert (
        "- CartPole-v1: by environment steps Dreamer 400, PPO (2 of 3 seeds) 1,000; by minutes "
        "(not on the same hardware) Dreamer 4.0, PPO (2 of 3 seeds) 10.0; final mean below the "
        "threshold: Dreamer, PPO.\n"
    ) in text
    assert "assets/07_sample_efficiency.png" in text


@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        (300, 9000, "by environment steps Dreamer 300, PPO 9,000; by minutes PPO 0.9, Dreamer 3.0"),
        (
            None,
            900,
            "by environment steps PPO 900; by minutes PPO 0.1; not held by Dreamer; "
            "final mean below the threshold: Dreamer",
        ),
        (None, None, "not held by Dreamer, PPO; final mean below the threshold: Dreamer, PPO"),
    ],
)
def test_who_was_first_by_steps_and_by_minutes(ours, theirs, sentence):
    """Dreamer takes 0.6 seconds for a step, PPO 0.006: fewer steps may be more minutes."""

    def measured(step, seconds):
        value = 0 if step is None else 475
        rows = [
            {"kind": "eval", "step": s, "minutes": s * seconds / 60, "return": value}
            for s in (step or 1, 10_000)
        ]
        runs = [{"diagnostics": rows, "final_returns": [value]}]
        return {"threshold": 475, "cpu": "A CPU", "runs": runs}

    methods = {"dreamer": measured(ours, 0.6), "ppo": measured(theirs, 0.006), "dqn": None}
    assert results.who_was_first(methods) == f"{sentence}."


def test_without_any_baseline_nothing_is_claimed(compared):
    (compared / "sample_efficiency" / "cartpole_ppo.json").unlink()
    text = results.sample_efficiency(compared)
    assert text == "Not measured yet: `python 07_sample_efficiency.py --jobs 2`."
    assert results.sample_efficiency(compared / "sample_efficiency") == text  # not even ours


def test_readme_is_rewritten_between_its_markers_only(readme, monkeypatch):
    assert call(monkeypatch, "--readme", readme, "--check") == 1
    assert "STALE" in readme.read_text()  # --check writes nothing
    assert call(monkeypatch, "--readme", readme) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- ") and text.endswith(" -->\nafter\n")
    assert "STALE" not in text and "| 450.0 |" in text
    assert call(monkeypatch, "--readme", readme, "--check") == 0


def test_a_new_result_makes_the_readme_outdated(readme, monkeypatch):
    call(monkeypatch, "--readme", readme)
    path = readme.parent / "assets" / "results" / "cartpole.json"
    path.write_text(path.read_text().replace("300", "301"))
    assert call(monkeypatch, "--readme", readme, "--check") == 1


def test_missing_markers_or_file_are_named(readme, monkeypatch, capsys):
    readme.write_text(readme.read_text().replace("<!-- results:begin -->", ""))
    with pytest.raises(ValueError, match="results:begin"):
        results.render(readme.read_text(), readme.parent)
    assert call(monkeypatch, "--readme", readme) == 1
    assert call(monkeypatch, "--readme", readme.parent / "none.md") == 1
