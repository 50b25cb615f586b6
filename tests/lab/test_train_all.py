"""train_all.py: which jobs it makes, and what it brings to assets/."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
from conftest import ROOT

import train_all
from dreamer.cli import parse
from lab import cli, results

CARTPOLE = importlib.import_module("02_dreamer_cartpole")
CONFIG = dataclasses.asdict(CARTPOLE.CONFIG)


def call(*words):
    """Exit status of `train_all.py WORDS`."""
    return train_all.main(parse(train_all.Flags, "", list(map(str, words))))


@pytest.fixture
def started(monkeypatch):
    """The jobs that would run, in that order, in groups as they are started; all go well."""
    groups = []

    def run_jobs(jobs, workers=1, scheduler=None):
        groups.append(list(jobs))
        return []

    monkeypatch.setattr(train_all, "run_jobs", run_jobs)
    return groups


def test_it_leaves_the_long_comparisons_alone_and_looks_at_agents_last(started):
    assert call("--seeds", "3", "1", "3") == 0
    learning, drawing = [[(job.name[:2], job.name[-1]) for job in group] for group in started]
    twice = [(number, seed) for number in ("02", "03", "05", "06", "09", "09") for seed in "31"]
    assert learning == [("01", "3"), *twice] and drawing == [("04", "3")]
    assert [job.fresh for group in started for job in group] == [False] * 13 + [True]


def test_a_job_is_known_by_the_folder_and_config_of_its_script(started, tmp_path):
    call("--only", "02", "--seeds", "4", "--steps", "500", "--out", tmp_path)
    ((job,), _) = started
    assert job.config == {**CONFIG, "seed": 4, "steps": 500}
    assert job.folder == str(tmp_path / "02_dreamer_cartpole" / "seed4")
    stem, words = job.arguments
    args = cli.parse(f"{stem}.py", None, CARTPOLE.CONFIG, words)  # what the job itself will find
    assert str(args.run_dir) == job.folder and dataclasses.asdict(args.config) == job.config
    assert args.resume and not job.fresh

    call("--only", "09", "--fresh", "--smoke")
    for job, task in zip(started[2], ("pendulum", "cartpole"), strict=True):
        assert job.path == ROOT / "runs" / "smoke" / f"09_dreamer_pixels_{task}" / "seed0"
        assert ("--task", task) == tuple(job.arguments[1][-3:-1]) and job.fresh
        assert job.config["steps"] == cli.SMOKE["steps"]


def test_what_is_no_whole_run_cannot_be_published(started):
    for more in ["--steps", "500"], ["--smoke"]:
        with pytest.raises(SystemExit, match="2"):
            call("--publish", *more)
    assert not started


def make_entry(seed, ret, config=CONFIG):
    """What a results file keeps of a run."""
    head = {"seed": seed, "config": {**config, "seed": seed}, "cpu": "A CPU"}
    return {**head, "final_returns": [ret, ret], "diagnostics": []}


def make_run(out, seed, ret, config=CONFIG):
    """The folder of a complete run; its agent is a file that holds its return."""
    folder, entry = out / "02_dreamer_cartpole" / f"seed{seed}", make_entry(seed, ret, config)
    folder.mkdir(parents=True)
    result = {"env_id": "CartPole-v1", "threshold": 475, "config": entry["config"], "entry": entry}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "agent.pt").write_text(f"{ret:g}")


@pytest.fixture
def publish(monkeypatch, tmp_path, started):
    """`train_all.py --publish`, from out/ to assets/ of this test's folder; nothing is run, drawn
    (see `publish.drawn`) or measured. Returns what is in assets/ then."""
    (tmp_path / "assets" / "results").mkdir(parents=True)
    monkeypatch.setattr(cli, "ASSETS", tmp_path / "assets")
    monkeypatch.setattr(results, "draw", lambda *args: publish.drawn.append(args))
    monkeypatch.setattr(results, "random_returns", lambda *args: np.zeros(1))
    monkeypatch.setattr(results, "write_card", lambda: publish.drawn.append("card"))

    def publish(*words, status=0):
        assert call("--publish", "--out", tmp_path / "out", *words) == status
        paths = (tmp_path / "assets").rglob("*.*")
        return sorted(path.relative_to(tmp_path / "assets").as_posix() for path in paths)

    publish.drawn = []
    return publish


@pytest.mark.parametrize(("returns", "median"), [([9, 1, 5], 5), ([4, 3, 2, 1], 2)])
def test_the_median_seed_s_agent_is_published(publish, tmp_path, returns, median):
    for seed, ret in enumerate(returns):
        make_run(tmp_path / "out", seed, ret)
    make_run(tmp_path / "out", 9, 100.0, {**CONFIG, "gamma": 0.5})  # must not count
    publish("--only", "02")
    assert (tmp_path / "assets" / "agents" / "cartpole.pt").read_text() == str(median)


def test_numbers_are_merged_and_drawn(publish, tmp_path):
    """Of the committed seeds seed 0 is run again. The median, seed 1, did not run here."""
    path = tmp_path / "assets" / "results" / "cartpole.json"
    before = [make_entry(0, 100.0), make_entry(1, 450.0)]
    path.write_text(json.dumps({"random_return": 22.5, "runs": before}))
    make_run(tmp_path / "out", 0, 400.0)
    make_run(tmp_path / "out", 3, 500.0)
    assert publish("--only", "02", "--seeds", "0", "3") == ["results/cartpole.json"]
    data = results.load(path)
    runs = [(run["seed"], run["final_returns"][0]) for run in data["runs"]]
    assert runs == [(0, 400.0), (1, 450.0), (3, 500.0)]
    figure = tmp_path / "assets" / "02_cartpole_training.png"
    assert publish.drawn == [("CartPole-v1", data["runs"], 475, 22.5, figure), "card"]


def test_pictures_and_numbers_without_a_learning_curve_are_copied(publish, tmp_path, started):
    pictures = {"01_world_model_demo": "01_open_loop.png", "04_visualize": "04_cartpole.gif"}
    for script, picture in pictures.items():
        for name in (picture, "result.json", "checkpoint.pt", "output.txt"):
            path = tmp_path / "out" / script / "seed0" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} of {script}")
    numbers = ["results/visualize.json", "results/world_model_demo.json"]
    assert publish("--only", "01", "04") == [*pictures.values(), *numbers]
    text = (tmp_path / "assets" / "results" / "visualize.json").read_text()
    assert text == "result.json of 04_visualize"
    assert "--shipped" in started[1][0].arguments[1]  # 04 looks at the agents of assets/


def test_what_is_not_complete_is_not_published(publish, monkeypatch):
    monkeypatch.setattr(train_all, "run_jobs", lambda jobs, *_: list(jobs))
    assert publish(status=1) == []
