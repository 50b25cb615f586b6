"""What the tests share: a small `Config`, tiny environments, and pytest and hypothesis settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import settings

from dreamer.agent import Config

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def all_floats():
    """Training flushes denormal numbers to zero, in the whole process; hypothesis refuses that."""
    torch.set_flush_denormal(False)


def tiny_config(**changes: Any) -> Config:
    """A `Config` whose updates take milliseconds, with `changes` on top."""
    small = dict(
        steps=60,
        train_ratio=4,
        capacity=500,
        prefill=20,
        batch_size=3,
        seq_len=6,
        deter=12,
        hidden=16,
        layers=1,
        categoricals=3,
        classes=4,
        imag_starts=7,
        imag_horizon=4,
        evals=0,
        eval_episodes=3,
    )
    return Config(**{**small, **changes})


class Walk(gym.Env):
    """A noisy walk in the plane; leaving the circle of radius 1.5 terminates the episode, a time
    limit of 9 steps truncates it. Refuses actions that its space does not contain.

    `seen` is a list that all environments of one test share: it receives every reset and step,
    as dictionaries.
    """

    def __init__(self, action_space: gym.Space, seen: list[dict] | None = None, drift: float = 0.4):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = action_space
        self.seen = [] if seen is None else seen
        self.drift = drift

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.position, self.time = np.zeros(2, np.float32), 0
        self.seen.append({"event": "reset", "seed": seed, "obs": self.position.copy()})
        return self.position.copy(), {}

    def step(self, action: Any):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.time += 1
        push = self.np_random.normal(0, self.drift, 2) + 0.01 * float(np.sum(action))
        self.position = (self.position + push).astype(np.float32)
        reward = 1.0 - float(np.abs(self.position).sum())
        terminated = bool(np.linalg.norm(self.position) > 1.5)
        truncated = self.time >= 9
        self.seen.append(
            {
                "event": "step",
                "action": action,
                "obs": self.position.copy(),
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
            }
        )
        return self.position.copy(), reward, terminated, truncated, {}


ACTION_SPACES: dict[str, Callable[[], gym.Space]] = {
    "discrete": lambda: gym.spaces.Discrete(3),
    "discrete from 5": lambda: gym.spaces.Discrete(2, start=5),
    "box": lambda: gym.spaces.Box(np.float32([-2, 0]), np.float32([2, 10])),
    "box float64": lambda: gym.spaces.Box(-3.0, 1.0, (1,), dtype=np.float64),
}


def walk(kind: str = "discrete", seen: list[dict] | None = None, **kwargs: Any):
    """A function that makes a `Walk`, as `train` and `evaluate` take it."""
    return lambda: Walk(ACTION_SPACES[kind](), seen, **kwargs)
