"""The long fault tests: python -m pytest -m slow tests/run/test_faults_slow.py

Each writes its figures to assets/results/faults.json, from which docs/faults.md has its table.
"""

import itertools
import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from agents import adversarial_update
from conftest import quiet_train, tiny_config
from faults import assert_same_runs, kill_often, log_rows, record, refusal, train_child

from dreamer import Config, Layout, load_agent, run
from dreamer.agent import DreamerAgent
from dreamer.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow


def test_killed_25_times(tmp_path):
    steps, kills, whole, killed = 3_000, 25, tmp_path / "whole", tmp_path / "killed"
    train_child(whole, steps)
    in_writing = kill_often(killed, steps, kills, np.random.default_rng(7))
    assert in_writing >= 5
    assert_same_runs(whole, killed)
    found = f"{kills} kills, {in_writing} of them while a checkpoint was half written: weights, "
    found += f"replay and {len(log_rows(killed))} log rows equal an uninterrupted run's"
    record("killed", "SIGKILL at random moments, resumed after each", found)


def test_damaged_checkpoints(tmp_path):
    """Every tenth of the length, every bit of the first line, and random bits behind it."""
    path, config = tmp_path / "checkpoint.pt", tiny_config()
    quiet_train("CartPole-v1", config, tmp_path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    header = content.index(b"\n") + 1
    bits = list(itertools.product(range(header), range(8)))
    bits += [(int(rng.integers(header, len(content))), int(rng.integers(8))) for _ in range(3_000)]
    for position, bit in bits:
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        path.write_bytes(changed)
        refusal(path, lambda: load_checkpoint(path))
    for tenth in range(10):
        path.write_bytes(content[: len(content) * tenth // 10])
        refusal(path, lambda: load_agent(path, "cpu"))
        refusal(path, lambda: quiet_train("CartPole-v1", config, tmp_path, resume=True))
    path.write_bytes(content)
    load_agent(path, "cpu")
    found = f"10 cut short and {len(bits):,} with a flipped bit, all refused"
    record("damaged", "Damaged checkpoints", found)


def test_adversarial_numbers():
    """10,000 updates for either kind of action and of actor gradient."""
    updates, discrete = 10_000, Layout(numbers=2, action_categories=(2,))
    continuous = Layout(numbers=2, action_numbers=2)
    kinds = [(discrete, "reinforce"), (continuous, "reinforce"), (continuous, "pathwise")]
    largest = 0.0
    for layout, actor_grad in kinds:
        config = tiny_config(actor_grad=actor_grad, deter=8, hidden=8, imag_horizon=3)
        agent, rng = DreamerAgent(layout, config), np.random.default_rng(1)
        for _ in range(updates):
            adversarial_update(agent, rng)
        assert all(value.isfinite().all() for value in agent.state_dict().values())
        largest = max(largest, *(p.abs().max().item() for p in agent.parameters()))
    fault = "Constant observations, rewards over ten orders of magnitude"
    found = f"{len(kinds)} agents x {updates:,} updates: all weights finite, the largest"
    record("adversarial", fault, f"{found} {largest:.1f}")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_is_flat(tmp_path, monkeypatch):
    """50,000 steps with checkpoints, reports and evaluations; the replay is full after 5,000."""
    resident: dict[int, float] = {}  # MB, at each thousandth step of an environment

    class Watched(gym.Wrapper):
        taken = 0

        def step(self, action):
            self.taken += 1
            if self.taken % 1_000 == 0:  # environments of evaluations take fewer
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                resident[self.taken] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            return super().step(action)

    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 1)
    config = tiny_config(steps=50_000, capacity=5_000, train_ratio=1, evals=5, prefill=100)
    quiet_train(lambda: Watched(gym.make("CartPole-v1")), config, tmp_path)
    start, end = resident[10_000], resident[50_000]
    assert end < start + 8
    found = f"resident memory {start:.0f} MB at step 10,000, {end:.0f} MB at step 50,000"
    record("memory", "50,000 environment steps, the replay full from step 5,000 on", found)


def test_determinism(tmp_path):
    """At the default sizes, through the prefill and 100 updates."""
    tasks = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "LunarLander-v3"]
    config = Config(steps=400, train_ratio=64, prefill=100, seed=3, evals=1, eval_episodes=2)
    for env in tasks:
        for name in ("first", "second"):
            quiet_train(env, config, tmp_path / env / name)
        assert_same_runs(tmp_path / env / "first", tmp_path / env / "second")
    found = f"{len(tasks)} tasks: weights, replay and log equal, bit for bit"
    record("determinism", "The same seed twice", found)
