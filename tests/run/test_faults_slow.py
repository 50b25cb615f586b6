"""The long fault tests: python -m pytest -m slow tests/run/test_faults_slow.py

Each writes its figures to assets/results/faults.json, from which docs/faults.md has its table.
"""

import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from agents import adversarial_update
from conftest import quiet_train, tiny_config
from faults import (
    assert_same_runs,
    finish_child,
    kill_often,
    log_rows,
    record,
)

from dreamer import Config, Layout, load_agent, run
from dreamer.agent import DreamerAgent
from dreamer.checkpoint import CheckpointError, load_checkpoint

pytestmark = pytest.mark.slow


def test_killed_25_times(tmp_path):
    steps, kills = 3_000, 25
    finish_child(tmp_path / "whole", steps)
    killed, in_writing = kill_often(tmp_path / "killed", steps, kills, np.random.default_rng(7))
    assert killed == kills and in_writing >= 5
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")
    rows = len(log_rows(tmp_path / "killed"))
    record(
        "killed",
        "SIGKILL at random moments, resumed after each",
        f"{killed} kills, {in_writing} of them while a checkpoint was half written: weights, "
        f"replay, {rows} log rows and figure data equal an uninterrupted run's",
    )


def test_damaged_checkpoints(tmp_path):
    """Every tenth of the length, every bit of the first line, and random bits behind it."""
    path, config = tmp_path / "checkpoint.pt", tiny_config()
    quiet_train("CartPole-v1", config, tmp_path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    header = content.index(b"\n") + 1
    bits = [(i, bit) for i in range(header) for bit in range(8)]
    bits += [(int(rng.integers(header, len(content))), int(rng.integers(8))) for _ in range(3_000)]
    cut = [content[: len(content) * tenth // 10] for tenth in range(10)]
    flipped = 0
    for position, bit in bits:
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        path.write_bytes(changed)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
        flipped += 1
    for damaged in cut:
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_agent(path, "cpu")
        with pytest.raises(CheckpointError):
            quiet_train("CartPole-v1", config, tmp_path, resume=True)
    path.write_bytes(content)
    load_agent(path, "cpu")
    record(
        "damaged",
        "Damaged checkpoints",
        f"{len(cut)} cut short and {flipped:,} with a flipped bit, all refused",
    )


def test_adversarial_numbers():
    """10,000 updates for either kind of action and of actor gradient."""
    updates, discrete = 10_000, Layout(numbers=2, action_categories=(2,))
    continuous = Layout(numbers=2, action_numbers=2)
    kinds = [(discrete, "reinforce"), (continuous, "reinforce"), (continuous, "pathwise")]
    largest = 0.0
    for layout, actor_grad in kinds:
        config = tiny_config(actor_grad=actor_grad, deter=8, hidden=8, imag_horizon=3)
        agent = DreamerAgent(layout, config)
        rng = np.random.default_rng(1)
        for _ in range(updates):
            adversarial_update(agent, rng)
        assert all(value.isfinite().all() for value in agent.state_dict().values())
        largest = max(largest, *(p.abs().max().item() for p in agent.parameters()))
    record(
        "adversarial",
        "Constant observations, rewards over ten orders of magnitude",
        f"{len(kinds)} agents x {updates:,} updates: all weights finite, the largest {largest:.1f}",
    )


class Endless(gym.Env):
    """Random observations, episodes of 200 steps; says how much memory the process uses."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, resident: list[tuple[int, float]]):
        self.steps, self.resident = 0, resident

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.time += 1
        self.steps += 1
        if self.steps % 1_000 == 0:
            self.resident.append((self.steps, resident_mb()))
        obs = self.np_random.normal(size=4).astype(np.float32)
        return obs, 1.0, False, self.time == 200, {}


def resident_mb() -> float:
    """Memory of this process that is in RAM, in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_is_flat(tmp_path, monkeypatch):
    """50,000 steps with checkpoints, reports and evaluations; the replay is full after 5,000."""
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 1)
    resident: list[tuple[int, float]] = []
    config = tiny_config(
        steps=50_000, capacity=5_000, train_ratio=1, evals=5, eval_episodes=2, prefill=100
    )
    quiet_train(lambda: Endless(resident), config, tmp_path)
    by_step = dict(resident)  # evaluation environments take too few steps to report
    start, end = by_step[10_000], by_step[50_000]
    assert end < start + 8
    record(
        "memory",
        "50,000 environment steps, the replay full from step 5,000 on",
        f"resident memory {start:.0f} MB at step 10,000, {end:.0f} MB at step 50,000",
    )


def test_determinism(tmp_path):
    """At the default sizes, through the prefill and 100 updates."""
    tasks = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "LunarLander-v3"]
    for env in tasks:
        config = Config(steps=400, train_ratio=64, prefill=100, seed=3, evals=1, eval_episodes=2)
        for name in ("first", "second"):
            quiet_train(env, config, tmp_path / env / name)
        assert_same_runs(tmp_path / env / "first", tmp_path / env / "second")
    record(
        "determinism",
        "The same seed twice",
        f"{len(tasks)} tasks: weights, replay and log equal, bit for bit",
    )
