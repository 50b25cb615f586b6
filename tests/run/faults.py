"""Tools of the fault tests: a child that can be killed, full disks, exact comparisons, figures.

As a program, `python tests/run/faults.py RUN_DIR STEPS [ENVS MODE]` is that child: it trains on
CartPole, or goes on with it, and prints its step before every checkpoint.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ACTION_SPACES, ROOT, Walk, quiet_train, tiny_config

from dreamer import run
from dreamer.checkpoint import CheckpointError, load_checkpoint, write_json
from dreamer.run import Run

FIGURES = ROOT / "assets" / "results" / "faults.json"


def train_child(run_dir: Path, steps: int, envs: int = 1, mode: str = "sync") -> None:
    """Train, or go on, with an update for each step, evaluations and reports in between."""
    several = {"envs": envs, "vectorization_mode": mode, "prefill": 30, "capacity": 2_000}
    config = tiny_config(steps=steps, train_ratio=18, evals=4, **several)
    quiet_train("CartPole-v1", config, run_dir, resume=True)


def start(*command: Any, **options: Any) -> subprocess.Popen:
    """A Python process that finds the package and the tests' tools."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.Popen([sys.executable, *map(str, command)], env=env, text=True, **options)


def kill_often(run_dir: Path, steps: int, kills: int, rng: Any, *words: int | str) -> int:
    """Start the child again and again, ending it with SIGKILL `kills` times, then let it finish.

    Life i ends in the i-th of `kills` + 1 equal parts of the run: at a random moment around a
    checkpoint or, every second one, while it is being written; every fifth at any moment from its
    start on. Returns how often a half-written file proves that it was in mid-checkpoint.
    """
    half, command = run_dir / ".checkpoint.pt.tmp", (__file__, run_dir, steps, *words)
    in_writing = 0
    for i in range(kills):
        with start(*command, stdout=subprocess.PIPE) as child:
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
    assert start(*command, stdout=subprocess.DEVNULL).wait() == 0
    return in_writing


class Hook(Walk):
    """A walk that calls functions at some of its steps."""

    def __init__(self, at_step: dict[int, Callable], kind: str = "discrete"):
        super().__init__(ACTION_SPACES[kind]())
        self.at_step, self.count = at_step, 0

    def step(self, action: Any):
        self.count += 1
        self.at_step.get(self.count, int)()
        return super().step(action)


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


def assert_same_runs(a: Path, b: Path, except_for: Sequence[str] = ()) -> None:
    """Weights, optimiser, replay, counters and log of two runs are equal, bit for bit."""
    first, second = (timeless(load_checkpoint(d / "checkpoint.pt")) for d in (a, b))
    different = [k for k in first if not same(first[k], second[k]) and k not in except_for]
    assert not different, different
    assert timeless(log_rows(a)) == timeless(log_rows(b))


def refusal(path: Path, call: Callable[[], Any]) -> str:
    """The one sentence with which `call` refuses the file at `path`."""
    with pytest.raises(CheckpointError) as error:
        call()
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 500
    return text


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """The system writes a part and then no more: no file grows beyond 2,000 bytes."""
    resource = pytest.importorskip("resource", reason="Windows has no limits of this kind")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def record(name: str, fault: str, found: str) -> None:
    """Keep a measured figure for the table of faults."""
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    command = f"python -m pytest -m slow tests/run/test_faults_slow.py -k {name}"
    figures[name] = {"fault": fault, "found": found, "command": command}
    write_json(FIGURES, figures)


if __name__ == "__main__":
    save = run.try_save

    def try_save(run: Run) -> None:
        """By steps, not by the clock: a test means the same on a slow machine as on a fast one."""
        if run.step % 7 == 0:
            print(run.step, flush=True)
            save(run)

    run.try_save, run.CHECKPOINT_SECONDS = try_save, -1
    folder, *words = sys.argv[1:]
    train_child(Path(folder), *(int(word) if word.isdigit() else word for word in words))
