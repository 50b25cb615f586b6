"""Tools of the fault tests: a training child that can be killed, exact comparisons, figures.

As a program, `python tests/faults.py RUN_DIR STEPS` is that child: it trains on CartPole, or goes
on with it, prints its step before every checkpoint, and writes `figure.json` at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import tiny_config

from dreamer import training
from dreamer.agent import DreamerAgent
from dreamer.checkpoint import load_checkpoint, write_json
from lab import results

ENV = "CartPole-v1"
ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "assets" / "results" / "faults.json"


# ---------------------------------------------------------------- a run that is killed


def child_config(steps: int):
    """One update for each step, evaluations and reports in between."""
    return tiny_config(steps=steps, train_ratio=18, prefill=30, evals=4, capacity=2_000)


def train_child(run_dir: Path, steps: int) -> None:
    """Train, or go on; keep what a training figure is drawn from."""
    run = training.train(ENV, child_config(steps), run_dir, True, "cpu", progress=False)
    returns = training.evaluate(run.agent, ENV, 3, seed=1)
    write_json(run_dir / "figure.json", results.run_entry(run, returns))


def checkpoint_every_few_steps(steps: int = 7) -> None:
    """By steps, not by the clock: so a test means the same on a slow machine as on a fast one."""
    save = training.Trainer.try_save

    def try_save(trainer: training.Trainer) -> None:
        if trainer.step % steps == 0:
            print(trainer.step, flush=True)
            save(trainer)

    training.Trainer.try_save = try_save
    training.CHECKPOINT_SECONDS = -1


def start_child(run_dir: Path, steps: int) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(run_dir), str(steps)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def finish_child(run_dir: Path, steps: int) -> None:
    with start_child(run_dir, steps) as child:
        child.communicate()
    assert child.returncode == 0


def kill_often(run_dir: Path, steps: int, kills: int, rng: np.random.Generator) -> tuple[int, int]:
    """Start the child again and again, ending it with SIGKILL `kills` times, then let it finish.

    Life i ends about where the i-th of `kills` + 1 equal parts of the run does: at a random
    moment around a checkpoint or, every second one, while the checkpoint is being written; every
    fifth at any moment from its start on. Returns how often it was killed, and how often a
    half-written file proves that it was in mid-checkpoint.
    """
    half = run_dir / ".checkpoint.pt.tmp"
    in_writing = 0
    for i in range(kills):
        with start_child(run_dir, steps) as child:
            if i % 5 == 4:
                time.sleep(rng.uniform(0, 3))
            else:
                target = steps * (i + rng.random()) / (kills + 1)
                while int(child.stdout.readline()) < target:
                    pass
                if i % 2:
                    while not half.exists() and child.poll() is None:
                        time.sleep(1e-4)
                else:
                    time.sleep(rng.uniform(0, 0.1))
            child.kill()
        assert child.returncode == -9, "the run ended before it was killed: give it more steps"
        in_writing += half.exists()
    finish_child(run_dir, steps)
    return kills, in_writing


# ---------------------------------------------------------------- exact comparisons


def same(a: Any, b: Any) -> bool:
    """Whether two nested values are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def timeless(value: Any) -> Any:
    """`value` without what depends on how long things took."""
    if isinstance(value, dict):
        timed = ("minutes", "cpu_minutes", "log_size")
        return {k: timeless(v) for k, v in value.items() if k not in timed}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def log_rows(run_dir: Path) -> list[dict]:
    """All rows of the log; fails on a torn line."""
    text = (run_dir / "log.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def assert_same_runs(a: Path, b: Path) -> None:
    """Weights, optimiser, replay, counters and log of two runs are equal, bit for bit."""
    first, second = (timeless(load_checkpoint(d / "checkpoint.pt")) for d in (a, b))
    assert [k for k in first if not same(first[k], second[k])] == []
    assert timeless(log_rows(a)) == timeless(log_rows(b))
    figures = [d / "figure.json" for d in (a, b) if (d / "figure.json").exists()]
    if figures:
        assert len(figures) == 2
        one, other = (timeless(json.loads(path.read_text())) for path in figures)
        assert one == other


# ---------------------------------------------------------------- bad data


def adversarial_update(agent: DreamerAgent, rng: np.random.Generator) -> None:
    """An update on constant observations, sometimes huge, and on rewards of either sign that jump
    over ten orders of magnitude, with episode ends anywhere."""
    shape = agent.config.batch_size, agent.config.seq_len
    constant = 10.0 ** rng.integers(-3, 9) if rng.random() < 0.05 else 1.0
    action = rng.uniform(-1, 1, (*shape, agent.action_size)).astype(np.float32)
    if agent.discrete:
        action = np.eye(agent.action_size, dtype=np.float32)[action.argmax(-1)]
    reward = rng.choice([-1, 1], shape) * 10.0 ** rng.uniform(-2, 8, shape)
    is_last = rng.random(shape) < 0.2
    agent.update(
        {
            "obs": np.full((*shape, agent.obs_size), constant, np.float32),
            "action": action,
            "reward": reward.astype(np.float32),
            "is_first": rng.random(shape) < 0.2,
            "is_last": is_last,
            "is_terminal": is_last & (rng.random(shape) < 0.5),
        }
    )


# ---------------------------------------------------------------- figures


def record(name: str, fault: str, found: str) -> None:
    """Keep a measured figure for the README's table of faults."""
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    command = f"python -m pytest -m slow tests/test_faults_slow.py -k {name}"
    figures[name] = {"fault": fault, "found": found, "command": command}
    write_json(FIGURES, figures)


if __name__ == "__main__":
    checkpoint_every_few_steps()
    train_child(Path(sys.argv[1]), int(sys.argv[2]))
