"""Environments that people bring, from the one-line commands, as a user types them."""

import itertools
import re
import shutil
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from conftest import ROOT

from dreamer.evaluation import random_returns
from lab.spaces import TASKS, TwoJoints

ENVS = [
    "MountainCarContinuous-v0",
    "Taxi-v4",  # masks
    "Blackjack-v1",  # a Tuple of observations
    "BipedalWalker-v3",
    "lab.spaces:TwoJoints-v0",  # MultiDiscrete actions, a Dict of observations
    "lab.spaces:FrozenLakeNotSlippery-v1",
]
TINY = "--steps 3e2 --prefill 100 --train-ratio 2 --deter 16 --hidden 16 --max-episode-steps 50"


def dreamer(*words: object) -> str:
    """What `python -m dreamer ...` prints."""
    command = [sys.executable, "-m", "dreamer", *map(str, words)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.scripts
@pytest.mark.parametrize("env", ENVS)
def test_check_train_and_evaluate(env, tmp_path):
    assert dreamer("check", "--env", env, *TINY.split()).startswith("environment")
    said = dreamer("train", "--env", env, *TINY.split(), "--run-dir", tmp_path)
    assert "python -m dreamer evaluate " in said and "agent.pt" in said
    said = dreamer("evaluate", tmp_path / "agent.pt", "--episodes", 2)
    assert f"{env.partition(':')[2] or env}: return " in said and " over 2 episodes" in said


@pytest.mark.scripts
def test_the_readmes_example_runs(tmp_path):
    """With fewer steps, and from another folder."""
    page = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your own environment")[2]
    (code,) = re.findall(r"```python\n(.*?)```", page.partition("\n## ")[0], re.S)
    small = code.replace("15_000", "300, prefill=100, evals=1, max_episode_steps=50")
    assert small.count("300, prefill") == 1 and "load_agent" in small
    small = small.replace("train_ratio=64", "train_ratio=2").replace("episodes=100", "episodes=2")
    shutil.copytree(ROOT / "dreamer", tmp_path / "dreamer")
    command = [sys.executable, "-c", small]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout.split()[-1]) < 10 and (tmp_path / "runs/car/agent.pt").exists()


def test_the_reference_of_two_joints():
    """What lab/spaces.py says of the best that can be had."""
    turns = [np.array(a) for a in itertools.product(range(3), repeat=2)]
    greedy, chance = [], random_returns("TwoJoints-v0", 100).mean()
    for seed in range(100):
        env = gym.make("TwoJoints-v0")
        env.reset(seed=seed)
        arm, total, done = env.unwrapped, 0.0, False
        assert isinstance(arm, TwoJoints)
        while not done:
            best = max(turns, key=lambda a: arm.agreement(arm.angles + arm.TURN * (a - 1)))  # noqa: B023
            _, reward, _, done, _ = env.step(best)
            total += reward
        greedy.append(total)
    best = np.mean(greedy)
    assert best == pytest.approx(17.3, abs=0.3) and chance == pytest.approx(0, abs=1.5)
    assert TASKS["two_joints"][1] == pytest.approx(0.9 * best, abs=0.3)
