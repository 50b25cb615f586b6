"""Replay: a ring of rows in preallocated numpy arrays, sampled as (B, T) windows.

The time diagram that the whole package relies on:

    step t      0          1          2        row t holds what arrived with obs_t,
    obs        x_0        x_1        x_2       plus the action chosen on seeing it
    reward      0         r_1        r_2       r_t: received on arriving at x_t
    action     a_0        a_1         -        deter_t is computed from a_{t-1}
    is_first  True                             state and previous action are erased here
    is_last                          True      the episode ends here, for whatever reason
    is_terminal                      True      ... because the task ended (not a time limit)

                       R_t = r_{t+1} + γ c_{t+1} [(1 - λ) v_{t+1} + λ R_{t+1}]

A step t is one choice of an action, `action_repeat` steps of the environment. The final observation
of an episode has a row of its own, whose action is zeros and is never used. The continue
target c_t is `1 - is_terminal_t`: a time limit (truncation) ends the episode but not the task, and
what would follow it still has value. The next row is the first of the next episode. A window may
start in mid-episode and may cross episodes: no padding, no masks.
"""

from typing import Any

import numpy as np
import torch

FIELDS = ("obs", "action", "reward", "is_first", "is_last", "is_terminal")


class ReplayBuffer:
    """The last `capacity` rows of experience, oldest overwritten first; adding is O(1).

    Raises ValueError for a capacity below 2. Memory is touched only as rows come in.
    """

    def __init__(self, capacity: int, obs_size: int, action_size: int):
        if capacity < 2:
            raise ValueError(f"capacity must be at least 2 rows, got {capacity}")
        self.capacity = capacity
        self.size = 0  # rows filled
        self.head = 0  # where the next row is written
        self.rows = {
            "obs": np.zeros((capacity, obs_size), np.float32),
            "action": np.zeros((capacity, action_size), np.float32),
            "reward": np.zeros(capacity, np.float32),
            "is_first": np.zeros(capacity, bool),
            "is_last": np.zeros(capacity, bool),
            "is_terminal": np.zeros(capacity, bool),
        }

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
    ) -> None:
        """Write one row (see the time diagram). Raises ValueError for NaN, infinity or a wrong
        shape, and writes nothing then."""
        values = dict(
            zip(FIELDS, (obs, action, reward, is_first, is_last, is_terminal), strict=True)
        )
        for name in ("obs", "action", "reward"):
            value = np.asarray(values[name], np.float32)
            if value.shape != self.rows[name].shape[1:]:
                expected = self.rows[name].shape[1:]
                raise ValueError(f"{name} must have shape {expected}, got {value.shape}")
            if not np.isfinite(value).all():
                raise ValueError(f"{name} must be finite (float32), got {values[name]}")
        for name in FIELDS:
            self.rows[name][self.head] = values[name]
        self.head = (self.head + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def sample(
        self, batch_size: int, seq_len: int, rng: np.random.Generator, recency: float = 1.0
    ) -> dict[str, np.ndarray]:
        """Randomly drawn windows: every field with leading shape (B, T).

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
        index = (start[:, None] + np.arange(seq_len)) % self.capacity  # (B, T)
        return {name: rows[index] for name, rows in self.rows.items()}

    def state_dict(self) -> dict[str, Any]:
        """Filled rows (as tensors that share memory with the buffer) and the write position."""
        rows = {name: torch.from_numpy(rows[: self.size]) for name, rows in self.rows.items()}
        return {**rows, "capacity": self.capacity, "head": self.head}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when the rows are of another capacity or shape."""
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"capacity must be that of the saved buffer, {state['capacity']}, "
                f"got {self.capacity}"
            )
        size = len(state["reward"])
        for name, rows in self.rows.items():
            saved = state[name].numpy()
            if saved.shape != (size, *rows.shape[1:]):
                raise ValueError(
                    f"{name}: saved rows have shape {saved.shape[1:]}, not {rows.shape[1:]}"
                )
            rows[:size] = saved
        self.size, self.head = size, state["head"]
