"""What the tests share: a small `Config`, tiny environments, and pytest and hypothesis settings."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dreamer import Config, train
from dreamer.run import Run

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and one under nohup this
phases = [phase for phase in Phase if phase is not Phase.shrink or "CI" not in os.environ]
settings.register_profile(  # a state machine that fails is soon found, and shrunk for minutes
    "suite", deadline=None, derandomize=True, max_examples=100, phases=phases
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def all_floats():
    """Training flushes denormal numbers to zero, in the whole process; hypothesis refuses that."""
    torch.set_flush_denormal(False)


@pytest.fixture
def one_scale(monkeypatch):
    """Two-hot bins from -e^4 to e^4: with stirred weights the usual ones read values of 1e6."""
    small = torch.linspace(-4, 4, 255)
    small = small.sign() * small.abs().expm1()
    small = (small - small.flip(0)) / 2
    monkeypatch.setattr("dreamer.networks.twohot_bins", lambda num_bins=255: small.clone())


def tiny_config(**changes: Any) -> Config:
    """A `Config` whose updates take milliseconds, with `changes` on top."""
    small = dict(steps=60, train_ratio=4, capacity=500, prefill=20, batch_size=3, seq_len=6)
    small |= dict(deter=12, hidden=16, layers=1, categoricals=3, classes=4)
    small |= dict(imag_starts=7, imag_horizon=4, evals=0, eval_episodes=3)
    return Config(**{**small, **changes})


def quiet_train(env: Any, config: Config | None = None, run_dir: Any = None, **kwargs: Any) -> Run:
    """`train` on the CPU without a progress bar."""
    return train(env, config or tiny_config(), run_dir, device="cpu", progress=False, **kwargs)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run of 60 steps on `walk()`, not to be written to."""
    run_dir = tmp_path_factory.mktemp("finished")
    quiet_train(walk(), tiny_config(evals=2), run_dir)
    return run_dir


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A finished run that may be damaged."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def resume(run_dir: Path, env: Any = None, **changes: Any) -> Run:
    """Go on with a run like the one in `finished`."""
    return quiet_train(env or walk(), tiny_config(**{"evals": 2, **changes}), run_dir, resume=True)


class Walk(gym.Env):
    """A noisy walk in the plane; leaving the circle of radius 1.5 terminates the episode, a time
    limit of 9 steps truncates it. Refuses actions that its space does not contain. `seen`, a list
    that all environments of one test share, receives every reset and step, with the environment."""

    def __init__(self, action_space: gym.Space, seen: list[dict] | None = None, drift: float = 0.4):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = action_space
        self.seen = [] if seen is None else seen
        self.drift = drift

    def tell(self, event: str, **what: Any) -> None:
        self.seen.append({"event": event, "env": self, "obs": self.position.copy(), **what})

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.position, self.time = np.zeros(2, np.float32), 0
        self.tell("reset", seed=seed)
        return self.position.copy(), {}

    def step(self, action: Any):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.time += 1
        push = self.np_random.normal(0, self.drift, 2) + 0.01 * float(np.sum(action))
        self.position = (self.position + push).astype(np.float32)
        reward = 1.0 - float(np.abs(self.position).sum())
        terminated, truncated = bool(np.linalg.norm(self.position) > 1.5), self.time >= 9
        self.tell("step", action=action, reward=reward, terminated=terminated, truncated=truncated)
        return self.position.copy(), reward, terminated, truncated, {}


def lived(seen: list[dict]) -> list[dict]:
    """The events without resets that were followed by another one at once, as of a look at what a
    new environment says."""

    def undone(i: int) -> bool:
        later = (e["event"] for e in seen[i + 1 :] if e["env"] is seen[i]["env"])
        return seen[i]["event"] == next(later, None) == "reset"

    return [event for i, event in enumerate(seen) if not undone(i)]


ACTION_SPACES: dict[str, Callable[[], gym.Space]] = {
    "discrete": lambda: gym.spaces.Discrete(3),
    "discrete from 5": lambda: gym.spaces.Discrete(2, start=5),
    "box": lambda: gym.spaces.Box(np.float32([-2, 0]), np.float32([2, 10])),
    "box float64": lambda: gym.spaces.Box(-3.0, 1.0, (1,), dtype=np.float64),
}


def walk(kind: str = "discrete", seen: list[dict] | None = None, **kwargs: Any):
    """A function that makes a `Walk`, as `train` and `evaluate` take it."""
    return lambda: Walk(ACTION_SPACES[kind](), seen, **kwargs)


class Odd(Walk):
    """A walk that from step `since` of its life on returns what `change` makes of its own
    (obs, reward, terminated, truncated)."""

    def __init__(self, change: Callable, since: int = 1, kind: str = "discrete", seen: Any = None):
        super().__init__(ACTION_SPACES[kind](), seen)
        self.change, self.since, self.count = change, since, 0

    def step(self, action: Any):
        self.count += 1
        values = super().step(action)[:4]
        return (*(self.change(*values) if self.count >= self.since else values), {})


# Differences of two numbers must be float32 numbers themselves, hence half of the largest.
LARGEST = float(np.finfo(np.float32).max) / 2


@st.composite
def float32_arrays(draw: Any, *shape: int, largest: float = LARGEST):
    """Arrays of one magnitude from 1e-30 to `largest`, or of all magnitudes at once."""
    size = draw(st.sampled_from([1e-30, 1e-3, 1.0, 30.0, 1e3, 1e8, 1e20, largest]))
    bound = float(np.float32(min(size, largest)))
    elements = st.floats(-bound, bound, width=32, allow_subnormal=False)
    return draw(hnp.arrays(np.float32, shape, elements=elements, fill=st.nothing()))


def log_softmax64(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def hats64(x: Any, bins: np.ndarray) -> np.ndarray:
    """Two-hot weights (..., bins) of x (...), from its place between the bins, in float64."""
    numbers = np.arange(len(bins))
    place = np.interp(x, bins, numbers)
    return np.maximum(0, 1 - np.abs(place[..., None] - numbers))


def assert_close64(got: torch.Tensor, expected: Any, size: float) -> None:
    """Equal up to float32 rounding of numbers as large as `size`."""
    np.testing.assert_allclose(got.detach().double().numpy(), expected, rtol=1e-4, atol=2e-6 * size)
