"""Replay: a ring of rows in preallocated numpy arrays, sampled as (B, T) windows.

The time diagram that the whole package relies on:

    row t       0          1          2        row t holds what arrived with obs_t,
    obs        x_0        x_1        x_2       plus the action chosen on seeing it
    reward      0         r_1        r_2       r_t: received on arriving at x_t
    action     a_0        a_1         -        deter_t is computed from a_{t-1}
    is_first  True                             state and previous action are erased here
    is_last                          True      the episode ends here, for whatever reason
    is_terminal                      True      ... because the task ended (not a time limit)
    deter, stoch  s_0    s_1          -        the model's state after x_t: a window that starts in
                                               row t+1 begins from it; replaying row t renews it

                       R_t = r_{t+1} + γ c_{t+1} [(1 - λ) v_{t+1} + λ R_{t+1}]

A row is one choice of an action, `action_repeat` steps of the environment. The final observation
of an episode has a row of its own, whose action is zeros and is never used. The continue
target c_t is `1 - is_terminal_t`: a time limit (truncation) ends the episode but not the task, and
what would follow it still has value. The next row is the first of the next episode. A window may
start in mid-episode and may cross episodes: no padding, no masks.

Acting stores its states. Each update that replays a row overwrites the row's state with the new
model's (v2, "Experience replay"; the authors' replay context).
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dreamer.rssm import Posterior, State

FIELDS = ("obs", "action", "reward", "is_first", "is_last", "is_terminal")


class ReplayBuffer:
    """The last `capacity` rows of experience, oldest overwritten first; adding is O(1).

    segments: sizes of the one-hot vectors that make up an action, none for continuous actions.
    state: sizes (D, S, K) of the model's state. pixels: so many of the last entries of an
    observation are whole numbers from 0 to 255, kept as uint8. One-hot vectors are kept as class
    numbers, so that a row is small however many classes there are. Raises ValueError for a capacity
    below 2, and where the machine has no memory for so many rows. Memory is touched only as rows
    come in.
    """

    def __init__(
        self,
        capacity: int,
        obs_size: int,
        action_size: int,
        segments: Sequence[int] = (),
        state: tuple[int, int, int] = (0, 0, 0),
        pixels: int = 0,
    ):
        if capacity < 2:
            raise ValueError(f"capacity must be at least 2 rows, got {capacity}")
        self.capacity, self.segments = capacity, tuple(segments)
        deter, categoricals, self.classes = state
        self.numbers = obs_size - pixels  # entries of an observation before its pixels
        self.size = 0  # rows filled
        self.head = 0  # where the next row is written
        self.shapes = {"obs": (obs_size,), "action": (action_size,), "reward": ()}
        row: dict[str, np.ndarray] = {
            "obs": np.zeros(self.numbers, np.float32),
            "action": np.zeros(len(segments) or action_size, np.int32 if segments else np.float32),
            "reward": np.zeros((), np.float32),
            **{flag: np.zeros((), bool) for flag in FIELDS[3:]},
            "deter": np.zeros(deter, np.float16),  # numbers from -1 to 1
            "stoch": np.zeros(categoricals, np.int16),
        }
        if pixels:
            row["pixels"] = np.zeros(pixels, np.uint8)
        need = capacity * sum(x.nbytes for x in row.values())
        try:
            if 3 * need > memory_of_this_machine():  # a checkpoint makes two copies
                raise MemoryError
            self.rows = {name: np.zeros((capacity, *x.shape), x.dtype) for name, x in row.items()}
        except MemoryError:
            raise ValueError(
                f"a replay of {capacity:,} rows needs {need / 1e9:.1f} GB, and three times that "
                "while it is saved, more than this machine has: lower Config.capacity"
            ) from None

    def __len__(self) -> int:
        return self.size

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: float,
        is_first: bool,
        is_last: bool,
        is_terminal: bool,
        state: State | None = None,
    ) -> None:
        """Write one row (see the time diagram). state: of the model (batch 1), zeros if None.
        Raises ValueError for NaN, infinity or a wrong shape, and writes nothing then."""
        values: dict[str, Any] = dict(
            zip(FIELDS, (obs, action, reward, is_first, is_last, is_terminal), strict=True)
        )
        for name, expected in self.shapes.items():
            value = np.asarray(values[name], np.float32)
            if value.shape != expected:
                raise ValueError(f"{name} must have shape {expected}, got {value.shape}")
            if not np.isfinite(value).all():
                raise ValueError(f"{name} must be finite (float32), got {values[name]}")
        values["action"] = self.encode_action(np.asarray(action))
        if "pixels" in self.rows:
            values["obs"], values["pixels"] = np.split(np.asarray(obs), [self.numbers])
        for name, value in values.items():
            self.rows[name][self.head] = value
        self.rows["deter"][self.head], self.rows["stoch"][self.head] = 0, -1
        if state is not None:
            self.refresh(np.array([self.head]), state)
        self.head = (self.head + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def encode_action(self, action: np.ndarray) -> np.ndarray:
        """An action (A,) as a row holds it: of one-hot parts the classes (G,), -1 for all zeros."""
        if not self.segments:
            return action
        parts = np.split(action, np.cumsum(self.segments)[:-1])
        return np.array([part.argmax() if part.any() else -1 for part in parts])

    def decode_action(self, action: np.ndarray) -> np.ndarray:
        """Kept actions (..., G) or (..., A) -> float32 (..., A)."""
        return one_hot(action, self.segments) if self.segments else action

    def sample(
        self, batch_size: int, seq_len: int, rng: np.random.Generator, recency: float = 1.0
    ) -> dict[str, np.ndarray]:
        """Randomly drawn windows: FIELDS with leading shape (B, T); what was in the rows before
        them, `prev_deter` (B, D), `prev_stoch` (B, S, K) and `prev_action` (B, A), zeros before the
        oldest row; and `index` (B, T), for `refresh`.

        A window's age is the oldest one's times u^recency, u uniform from 0 to 1: with 1 all
        windows are equally likely, with 2 the likelihood falls as 1/sqrt(age). No window crosses
        the write head, where the newest row meets the oldest. Raises ValueError when the buffer
        holds fewer than `seq_len` rows.
        """
        if self.size < seq_len:
            raise ValueError(
                f"seq_len must be at most the number of rows collected ({self.size}), got {seq_len}"
            )
        newest = self.head - seq_len
        age = (self.size - seq_len + 1) * rng.random(batch_size) ** recency
        start = newest - age.astype(np.int64)
        index = (start[:, None] + np.arange(seq_len)) % self.capacity
        before, known = (start - 1) % self.capacity, (start > self.head - self.size)[:, None]
        batch = {name: self.rows[name][index] for name in FIELDS}
        batch["action"] = self.decode_action(batch["action"])
        if "pixels" in self.rows:
            seen = batch["obs"], self.rows["pixels"][index]
            batch["obs"] = np.concatenate(seen, -1, dtype=np.float32)
        stoch = np.where(known, self.rows["stoch"][before], -1)
        return {
            **batch,
            "prev_deter": self.rows["deter"][before].astype(np.float32) * known,
            "prev_stoch": one_hot(stoch[..., None], [self.classes]),
            "prev_action": self.decode_action(self.rows["action"][before]) * known,
            "index": index,
        }

    def refresh(self, index: np.ndarray, states: State | Posterior) -> None:
        """Keep new states (..., D) and (..., S, K) in the rows `index` (...)."""
        self.rows["deter"][index] = states.deter.detach().cpu()
        self.rows["stoch"][index] = states.stoch.detach().argmax(-1).cpu()

    def state_dict(self) -> dict[str, Any]:
        """All rows, oldest first, as tensors."""
        order = np.arange(self.head - self.size, self.head) % self.capacity
        return {name: torch.from_numpy(rows[order]) for name, rows in self.rows.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the rows are of another shape or too many."""
        size = len(state["reward"])
        if size > self.capacity:
            raise ValueError(f"capacity must be at least the {size} saved rows: {self.capacity}")
        for name, rows in self.rows.items():
            saved = state[name].numpy()
            if saved.shape != (size, *rows.shape[1:]):
                raise ValueError(
                    f"{name}: saved rows have shape {saved.shape[1:]}, not {rows.shape[1:]}"
                )
            rows[:size] = saved
        self.size, self.head = size, size % self.capacity


def one_hot(classes: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Class numbers (..., G), -1 for none -> G one-hot vectors of these sizes side by side,
    float32 (..., sum of sizes)."""
    code = np.zeros((*classes.shape[:-1], sum(sizes)), np.float32)
    where = np.nonzero(classes >= 0)
    code[(*where[:-1], (classes + np.cumsum([0, *sizes])[:-1])[where])] = 1
    return code


def memory_of_this_machine() -> float:
    """Bytes; infinite where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf
