"""`Config`: every number of the algorithm, with its symbol, unit, range and source.

v1 and v2 are the two versions of arXiv 2301.04104, "authors" is their code. A field reads
`number(default, smallest, largest)`. The groups are those of `--help`; `Config` joins them.
"""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


def number(default: float, low: float, high: float) -> Any:
    """A field of `Config`: its default, its smallest and its largest value."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class RunConfig:
    """Tasks differ in the first three."""

    steps: int = number(10_000, 1, 10**9)  # environment steps in all: action_repeat for each action
    train_ratio: float = number(128, 0, 10**6)  # replayed rows per environment step
    action_repeat: int = number(1, 1, 1000)  # environment steps that an action is held (Atari: 4)
    seed: int = number(0, 0, 2**31 - 1)  # of weights, environments, sampling and noise
    envs: int = number(1, 1, 1000)  # environments that are stepped together; steps count all
    vectorization_mode: Literal["sync", "async"] = "sync"  # async: each one in its own process
    max_episode_steps: int = number(100_000, 1, 10**9)  # episodes are cut there, as by a time limit


@dataclass(frozen=True)
class ExperienceConfig:
    capacity: int = number(200_000, 2, 10**8)  # replay rows
    prefill: int = number(1_000, 0, 10**9)  # first environment steps: random (at most half of all)
    explore: float = number(0.05, 0, 0.9)  # later, up to this share of the steps is random
    explore_hold: int = number(256, 1, 10**4)  # a random action is held for up to this many rows
    batch_size: int = number(16, 1, 10**4)  # B, windows per update (authors: 16)
    seq_len: int = number(16, 2, 10**4)  # T, rows per window (authors: 64)
    recency: float = number(2, 1, 100)  # 1: all windows equally likely; 2: newer ones, 1/sqrt(age)


@dataclass(frozen=True)
class NetworksConfig:
    deter: int = number(128, 1, 10**4)  # D, size of the GRU state: larger is slower
    hidden: int = number(128, 1, 10**4)  # width of every MLP
    layers: int = number(2, 1, 20)  # blocks of every MLP except the RSSM's, which have 1
    depth: int = number(8, 1, 1024)  # channels of an image's first stage (authors: 8 to 192)
    categoricals: int = number(16, 1, 1000)  # S, number of categoricals in a latent
    classes: int = number(16, 2, 1000)  # K, classes of each
    unimix: float = number(0.01, 0, 0.5)  # uniform share in latents and discrete policy (v1 and v2)


@dataclass(frozen=True)
class WorldModelConfig:
    beta_obs: float = number(3, 0, 10**6)  # weight of the squared error (v2: 1/2, of plain symlog)
    free_nats: float = number(1, 0, 1000)  # a KL below this is not reduced further, nats (v2)
    beta_dyn: float = number(1, 0, 100)  # β_dyn (v2: 1; v1: 0.5)
    beta_rep: float = number(0.1, 0, 100)  # β_rep (v1 and v2)
    model_lr: float = number(2e-3, 0, 1)  # Adam's first learning rate (authors: 4e-5, larger nets)


@dataclass(frozen=True)
class DreamsConfig:
    imag_starts: int = number(64, 1, 10**6)  # N, dreams per update, random starts (authors: all)
    imag_horizon: int = number(15, 1, 1000)  # H, actions of a dream (v1 and v2)
    gamma: float = number(0.99, 0, 1)  # γ, discount from row to row (v1 and v2: 0.997)
    lam: float = number(0.95, 0, 1)  # λ of the returns (v1 and v2)


@dataclass(frozen=True)
class ActorCriticConfig:
    actor_grad: Literal["reinforce", "pathwise"] = "reinforce"  # v2: reinforce for all actions
    ent_coef: float = number(3e-3, 0, 100)  # η, weight of the policy's entropy (v2: 3e-4)
    actor_lr: float = number(1e-3, 0, 1)  # Adam's first learning rate
    critic_lr: float = number(2e-3, 0, 1)  # Adam's first learning rate
    slow_rate: float = number(0.1, 0, 1)  # step of the slow critic per update (v1 and v2: 0.02)
    slow_weight: float = number(1, 0, 100)  # of what keeps the critic near its slow copy (v2)
    replay_value_weight: float = number(3, 0, 100)  # of the critic's loss on real rewards (v2: 0.3)
    grad_clip: float = number(100, 1e-6, 1e9)  # largest gradient norm of model, actor and critic
    lr_halving: int = number(2_000, 1, 10**9)  # updates until rates halve (rate_factor)


@dataclass(frozen=True)
class ReportsConfig:
    """Greedy evaluations. They take evals x eval_episodes episodes, and train on nothing."""

    evals: int = number(10, 0, 10**6)  # evaluations, evenly spread over the run
    eval_episodes: int = number(2, 1, 10**4)  # episodes of each
    eval_envs: int = number(20, 0, 1000)  # of them at once, at most; 0: in training's environments


@dataclass(frozen=True)
class Config(  # dataclasses put the fields of the last base first
    ReportsConfig,
    ActorCriticConfig,
    DreamsConfig,
    WorldModelConfig,
    NetworksConfig,
    ExperienceConfig,
    RunConfig,
):
    """All numbers of a run, in one flat record: `Config(steps=6_000, train_ratio=96)`.

    Raises ValueError naming field, value and range for anything out of range or of a wrong type.
    """

    def __post_init__(self) -> None:
        types = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            kind, value = types[field.name], getattr(self, field.name)
            if typing.get_origin(kind) is Literal:
                names = typing.get_args(kind)
                ok, allowed = value in names, f"one of {names}"
            else:
                low, high = field.metadata["range"]
                ok = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
                ok = ok and low <= value <= high and (kind is float or value == int(value))  # 1e4
                word = "a whole number" if kind is int else "a number"
                allowed = f"{word} from {low:g} to {high:g}"
            if not ok:
                raise ValueError(f"Config.{field.name} must be {allowed}, got {value!r}")
            if kind in (int, float):  # NumPy's numbers go into no JSON and no checkpoint
                object.__setattr__(self, field.name, kind(value))
        if self.seq_len > (most := self.capacity // self.envs):
            raise ValueError(f"Config.seq_len must be at most {most}, the capacity of a stream")

    @property
    def warm_up(self) -> int:
        """Environment steps of random actions at first: `prefill`, but at most half of all."""
        return min(self.prefill, self.steps // 2)

    def updates_after(self, steps: int) -> int:
        """Gradient updates due after so many environment steps; the warm-up's steps owe none."""
        rows = max(0, steps - self.warm_up) * self.train_ratio
        return int(rows / (self.batch_size * self.seq_len))
