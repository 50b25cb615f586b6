"""The numbered scripts, as a user runs them, and what is committed of them."""

import dataclasses
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from lab import results
import numpy as np
import pytest
import torch

from dreamer import evaluate, load_agent
from dreamer.checkpoint import load_checkpoint, read_log

ROOT = Path(__file__).resolve().parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
TASKS = {stem: task for task, stem in results.SCRIPTS.items() if stem[:2] != "09"}


def call(cwd, *words, timeout=300):
    """A finished process of `python WORDS` in the folder `cwd`, which must end well."""
    command = [sys.executable, *map(str, words)]
    process = subprocess.run(
        command, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=timeout
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


# ---------------------------------------------------------------- what is committed


@pytest.mark.parametrize("task", TASKS.values())
def test_what_is_shipped_was_made_with_the_script_s_config(task):
    script = importlib.import_module(results.SCRIPTS[task])
    config = dataclasses.asdict(script.CONFIG)
    data = results.load(results.RESULTS / f"{task}.json")
    assert (data["env_id"], data["threshold"]) == (script.ENV, script.THRESHOLD)
    configs = [run["config"] for run in data["runs"]]
    assert configs == [{**config, "seed": seed} for seed in range(20, 25)]
    path = ROOT / "assets" / "agents" / f"{task}.pt"
    assert dataclasses.asdict(load_agent(path, "cpu").config) in configs


@pytest.mark.parametrize("task", ["pendulum", "cartpole"])
def test_what_is_shipped_of_09_was_made_with_its_config(task):
    script = importlib.import_module("09_dreamer_pixels")
    data = results.load(results.RESULTS / f"pixel_{task}.json")
    assert (data["env_id"], data["threshold"]) == script.TASKS[task]
    configs = [dataclasses.asdict(script.CONFIG) | {"seed": seed} for seed in range(3)]
    assert [run["config"] for run in data["runs"]] == configs
    agent = load_agent(ROOT / "assets" / "agents" / f"pixel_{task}.pt", "cpu")
    assert dataclasses.asdict(agent.config) in configs and agent.images == ((64, 64, 3),)


@pytest.mark.scripts
@pytest.mark.parametrize("task", results.SCRIPTS)
def test_the_shipped_agents_do_their_task(task):
    data = results.load(results.RESULTS / f"{task}.json")
    agent = load_agent(ROOT / "assets" / "agents" / f"{task}.pt", "cpu")
    final = np.mean([np.mean(run["final_returns"]) for run in data["runs"]])
    halfway = (final + data["random_return"]) / 2
    assert evaluate(agent, data["env_id"], 10, seed=1).mean() > halfway


# ---------------------------------------------------------------- as a user runs them


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the repository, all of it committed: whatever a script writes is seen."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    tree = tmp_path_factory.mktemp("tree") / "repository"
    unwanted = (".git", ".venv", "runs", "build", "*.egg-info", "*cache*", ".hypothesis")
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*unwanted))
    me = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "-q"], ["add", "-A"], [*me, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *words], cwd=tree, check=True)
    return tree


def changes(tree):
    """What git sees of what was written, but for what it ignores."""
    command = ["git", "status", "--porcelain", "--untracked-files=all"]
    return subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True).stdout


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def smoke(tree, stem):
    """(what it printed, its folder) of a script's smoke run, which may write there and nowhere
    else."""
    assets, runs = contents(tree / "assets"), set(contents(tree / "runs"))
    printed = call(tree, f"{stem}.py", "--smoke")
    assert changes(tree) == "" and contents(tree / "assets") == assets
    run_dir = tree / "runs" / "smoke" / stem / "seed0"
    new = set(contents(tree / "runs")) - runs
    assert new and all(path.parent == run_dir for path in new)
    return printed, run_dir


@pytest.mark.scripts
@pytest.mark.parametrize("stem", TASKS)
def test_a_smoke_run_keeps_all_in_its_folder_and_says_what_to_do_next(stem, tree):
    printed, run_dir = smoke(tree, stem)
    figure = f"{stem[:2]}_{TASKS[stem]}_training.png"
    names = {"agent.pt", "checkpoint.pt", "config.json", "log.jsonl", "result.json", figure}
    assert {path.name for path in run_dir.iterdir()} == {".lock", *names}

    result = json.loads((run_dir / "result.json").read_text())
    keys = ("return", "worst_episode", "threshold", "minutes", "config", "entry")
    assert set(result) >= set(keys)
    assert result["config"]["steps"] == 300 and result["entry"]["seed"] == 0
    assert result["return"] == pytest.approx(np.mean(result["entry"]["final_returns"]), rel=1e-3)

    verdict, *last = printed.splitlines()[-5:]
    env_id = importlib.import_module(stem).ENV
    assert verdict.startswith(f"{env_id}, seed 0: mean return {result['return']:.1f} over 2 greedy")
    assert verdict.endswith(f"threshold {result['threshold']} NOT reached")
    said = dict(line.split(":", 1) for line in last)
    assert list(said) == ["Figure", "Agent", "Watch it", "Next"]
    assert (tree / said["Figure"].split(" (")[0].strip()) == run_dir / figure
    assert (tree / said["Agent"].strip()) == run_dir / "agent.pt"
    scripts = re.findall(r"\S+\.py", said["Next"])
    assert scripts and all((tree / name).exists() for name in scripts)

    python, *words = shlex.split(said["Watch it"])
    assert Path(python).name.startswith("python")
    if env_id != "Acrobot-v1":  # a window shows that one for half a minute
        watched = call(tree, *words, "--episodes", "1")
        assert re.fullmatch(r"episode 0: return -?\d+\.\d\n", watched)
    assert changes(tree) == ""


@pytest.mark.scripts
def test_a_smoke_run_of_a_world_model_alone(tree):
    printed, run_dir = smoke(tree, "01_world_model_demo")
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {"01_world_model.png", "01_open_loop.png", "result.json"}
    result = json.loads((run_dir / "result.json").read_text())
    assert set(result) >= {"error_by_dream_length", "minutes", "config"}
    assert result["config"]["hidden"] == 16
    assert str(run_dir.relative_to(tree)) in printed.splitlines()[-1]


@pytest.mark.scripts
@pytest.mark.parametrize("task", ["pendulum", "cartpole"])
def test_a_smoke_run_from_pixels(task, tree):
    printed = call(tree, "09_dreamer_pixels.py", "--smoke", "--task", task)
    run_dir = tree / "runs" / "smoke" / f"09_dreamer_pixels_{task}" / "seed0"
    ends = "training.png", "filmstrip.png", "dream.gif"
    pictures = {f"09_pixel_{task}_{end}" for end in ends}
    assert {path.name for path in run_dir.iterdir()} >= {"agent.pt", "result.json", *pictures}
    assert "NOT reached" in printed and changes(tree) == ""
    call(tree, "04_visualize.py", "--smoke", "--agent", run_dir / "agent.pt")
    names = {path.name for path in (tree / "runs/smoke/04_visualize/seed0").iterdir()}
    found = {name for name in names if name.startswith("04_Pixel")}
    assert {name.rpartition("_")[2] for name in found} >= {"filmstrip.png", "dream.gif"}


@pytest.mark.scripts
def test_a_smoke_run_that_looks_into_agents(tree):
    """Into that of the user's own run where there is one, and into the committed others."""
    own = tree / "runs" / "smoke" / "02_dreamer_cartpole" / "seed0" / "agent.pt"
    own.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(tree / "assets" / "agents" / "cartpole.pt", own)
    printed, run_dir = smoke(tree, "04_visualize")
    assert f"CartPole-v1: {own.relative_to(tree)}" in printed
    names = {path.name for path in run_dir.iterdir()}
    for task in TASKS.values():
        pictures = [f"04_{task}{end}" for end in (".gif", "_dreams.png", "_latents.png")]
        if f"agents{os.sep}{task}.pt" in printed or task == "cartpole":
            assert names >= set(pictures)
    result = json.loads((run_dir / "result.json").read_text())
    assert set(result) >= {"tasks", "minutes", "config"} and "cartpole" in result["tasks"]
    assert str(run_dir.relative_to(tree)) in printed.splitlines()[-1]


@pytest.mark.scripts
@pytest.mark.parametrize("stem", ["07_sample_efficiency", "08_ablations"])
def test_comparisons_are_drawn_without_a_change_of_what_is_committed(stem, tree):
    call(tree, f"{stem}.py", "--plot-only")
    assert changes(tree) == ""
    assert (tree / "runs" / stem / f"{stem}.png").exists()


@pytest.mark.scripts
def test_ctrl_c_tells_how_to_go_on_and_that_ends_as_if_nothing_had_been(tmp_path):
    script = os.path.relpath(ROOT / "02_dreamer_cartpole.py", tmp_path)
    words = [script, "--smoke", "--steps", "500", "--seed", "3", "--device", "cpu", "--out"]
    call(tmp_path, *words, "whole")
    whole, run_dir = (tmp_path / out / Path(script).stem / "seed3" for out in ("whole", "my out"))

    process = subprocess.Popen(
        [sys.executable, *words, "my out"], cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, text=True
    )
    log, deadline = run_dir / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and read_log(log, "report")):  # it is learning
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert 100 <= load_checkpoint(run_dir / "checkpoint.pt")["counters"][0] < 500
    assert not (run_dir / "result.json").exists()

    python, *command = shlex.split(printed.splitlines()[-1])
    assert Path(python).samefile(sys.executable)
    assert command == [*words, "my out", "--resume"]
    call(tmp_path, *command)

    def rows(folder):
        lines = (folder / "log.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "minutes"} for line in lines]

    def weights(folder):
        return load_agent(folder / "agent.pt", "cpu").state_dict()

    assert rows(run_dir) == rows(whole)
    before = weights(run_dir)
    assert all(torch.equal(x, before[name]) for name, x in weights(whole).items())

    # Once it is finished, the same command trains no more.
    saved = log.read_bytes()
    assert "mean return" in call(tmp_path, *command)
    assert log.read_bytes() == saved
    assert all(torch.equal(x, before[name]) for name, x in weights(run_dir).items())
