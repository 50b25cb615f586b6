"""The numbered scripts, as a user runs them, and what is committed of them."""

import dataclasses
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from dreamer import evaluate, load_agent
from lab import results

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
STEMS = {task: stem for task, stem in results.SCRIPTS.items() if stem[:2] != "09"}


def call(cwd, *words):
    """What `python WORDS` prints in the folder `cwd`; it must end well."""
    command = [sys.executable, *map(str, words)]
    process = subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


NEW = ("cartpole",)  # made with today's code; all others are older


@pytest.mark.parametrize("task", results.SCRIPTS)
def test_what_is_shipped_was_made_with_the_script_s_config(task):
    pixels = task.startswith("pixel")
    script = importlib.import_module("09_dreamer_pixels" if pixels else STEMS[task])
    made_on = script.TASKS[task[6:]] if pixels else (script.ENV, script.THRESHOLD)
    data = results.load(results.RESULTS / f"{task}.json")
    assert (data["env_id"], data["threshold"]) == made_on
    config = dataclasses.asdict(script.CONFIG)
    if task not in NEW:
        config["replay_value_weight"] = 0.3
    seeds = range(40, 50) if task in NEW else range(3) if pixels else range(20, 25)
    wanted = [config | {"seed": seed} for seed in seeds]
    assert [run["config"] for run in data["runs"]] == wanted
    agent = load_agent(ROOT / "assets" / "agents" / f"{task}.pt", "cpu")
    assert dataclasses.asdict(agent.config) in wanted
    assert agent.layout.images == (((64, 64, 3),) if pixels else ())


@pytest.mark.scripts
@pytest.mark.parametrize("task", results.SCRIPTS)
def test_the_shipped_agents_do_their_task(task):
    data = results.load(results.RESULTS / f"{task}.json")
    agent = load_agent(ROOT / "assets" / "agents" / f"{task}.pt", "cpu")
    final = np.mean([np.mean(run["final_returns"]) for run in data["runs"]])
    assert evaluate(agent, episodes=10, seed=1).mean() > (final + data["random_return"]) / 2


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the repository, all of it committed: whatever a script writes is seen."""
    tree = tmp_path_factory.mktemp("tree") / "repository"
    unwanted = (".git", ".venv", "runs", "build", "*.egg-info", "*cache*", ".hypothesis")
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*unwanted))
    me = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "-q"], ["add", "-A"], [*me, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *words], cwd=tree, check=True)
    return tree


def smoke(tree, name, *words):
    """(what it printed, its folder) of a smoke run, which may write there and nowhere else."""
    before = set(tree.glob("runs/**/*.*"))
    printed = call(tree, *words, "--smoke")
    command = ["git", "status", "--porcelain", "--untracked-files=all"]
    assert subprocess.run(command, cwd=tree, check=True, capture_output=True).stdout == b""
    run_dir = tree / "runs" / "smoke" / name / "seed0"
    new = set(tree.glob("runs/**/*.*")) - before
    assert new and all(path.parent == run_dir for path in new)
    return printed, run_dir


@pytest.mark.scripts
@pytest.mark.parametrize("task", STEMS)
def test_a_smoke_run_keeps_all_in_its_folder_and_says_what_to_do_next(task, tree):
    stem = STEMS[task]
    printed, run_dir = smoke(tree, stem, f"{stem}.py")
    figure = f"{stem[:2]}_{task}_training.png"
    names = {"agent.pt", "checkpoint.pt", "config.json", "log.jsonl", "result.json", figure}
    assert {path.name for path in run_dir.iterdir()} == {".lock", *names}
    result = json.loads((run_dir / "result.json").read_text())
    assert result["config"]["steps"] == 300 and result["entry"]["seed"] == 0

    said = dict(line.split(":", 1) for line in printed.splitlines()[-5:])
    assert (tree / said["Figure"].split(" (")[0].strip()) == run_dir / figure
    assert (tree / re.findall(r"\S+\.py", said["Next"])[0]).exists()
    if task != "acrobot":  # a window shows that one for half a minute
        watched = call(tree, *shlex.split(said["Watch it"])[1:], "--episodes", "1")
        assert re.search(r"^episode 0: return -?\d+\.\d$", watched, re.MULTILINE)


PIXELS = "_filmstrip.png _dream.gif"
DRAWING = [
    ("01_world_model_demo", "01", "_world_model.png _open_loop.png"),
    ("04_visualize", "04_cartpole", ".gif _dreams.png _latents.png"),
    ("09_dreamer_pixels_pendulum", "09_pixel_pendulum", PIXELS),
    ("09_dreamer_pixels_cartpole", "09_pixel_cartpole", PIXELS),
]


@pytest.mark.scripts
@pytest.mark.parametrize(("name", "stem", "pictures"), DRAWING)
def test_a_smoke_run_of_a_script_that_draws(name, stem, pictures, tree):
    """04 looks into the agent of the user's own run where there is one."""
    words = ["--task", name.rpartition("_")[2]] if stem[:2] == "09" else []
    own = tree / "runs" / "smoke" / "02_dreamer_cartpole" / "seed0" / "agent.pt"
    own.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(tree / "assets" / "agents" / "cartpole.pt", own)
    (script,) = tree.glob(f"{name[:2]}_*.py")
    printed, run_dir = smoke(tree, name, script.name, *words)
    names = {"result.json", *(stem + end for end in pictures.split())}
    assert {path.name for path in run_dir.iterdir()} >= names
    assert json.loads((run_dir / "result.json").read_text())["config"]["hidden"] == 16
    assert (str(own.relative_to(tree)) in printed) == (name == "04_visualize")
