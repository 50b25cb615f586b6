"""Environments that people bring, from the one-line commands, as a user types them."""

import subprocess
import sys

import pytest
from conftest import ROOT

ENVS = ["MountainCarContinuous-v0", "Taxi-v4", "Blackjack-v1", "CliffWalking-v1"]
ENVS += ["LunarLanderContinuous-v3", "BipedalWalker-v3", "lab.spaces:FrozenLakeNotSlippery-v1"]
ENVS += ["lab.spaces:TwoJoints-v0"]  # MultiDiscrete actions, a Dict of observations
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
    judge = said.partition("Judge it:  python -m dreamer ")[2].splitlines()[0].split()
    said = dreamer(*judge, "--episodes", 2)
    assert said.startswith(env.rpartition(":")[2] + ": return ") and " over 2 episodes" in said
