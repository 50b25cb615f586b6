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

Each of several environments writes a stream of its own, and a window lies in one stream.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamer.rssm import Posterior, State


@dataclass(frozen=True)
class Layout:
    """What the flat vectors of an observation (O,) and an action (A,) consist of, in this order.

    An image's pixels are whole numbers from 0 to 255, channels last, row by row. An action is
    either numbers from -1 to 1 or one-hot vectors, one after another.
    """

    numbers: int = 0
    flags: int = 0  # entries that are 0 or 1
    categories: tuple[int, ...] = ()  # sizes of one-hot vectors
    images: tuple[tuple[int, int, int], ...] = ()  # (H, W, C) of each
    action_numbers: int = 0
    action_categories: tuple[int, ...] = ()  # sizes of one-hot vectors

    @property
    def vector_size(self) -> int:
        """Entries of an observation before its pixels."""
        return self.numbers + self.flags + sum(self.categories)

    @property
    def pixels(self) -> int:
        return sum(map(math.prod, self.images))

    @property
    def obs_size(self) -> int:
        return self.vector_size + self.pixels  # O

    @property
    def action_size(self) -> int:
        return self.action_numbers + sum(self.action_categories)  # A

    @property
    def discrete(self) -> bool:
        return bool(self.action_categories)


class ReplayBuffer:
    """The last `capacity` rows of experience, oldest overwritten first; adding is O(1).

    state: sizes (D, S, K) of the model's state, whose one-hot vectors are kept as class numbers.
    Pixels are kept as uint8. streams: environments, which share the capacity equally. Memory is
    touched only as rows come in.
    """

    def __init__(
        self, capacity: int, layout: Layout, state: tuple[int, int, int], streams: int = 1
    ):
        self.layout, self.length = layout, capacity // streams  # rows of a stream
        deter, categoricals, self.classes = state
        self.size = np.zeros(streams, np.int64)  # rows filled, of each stream
        self.head = np.zeros(streams, np.int64)  # where each writes its next row
        rows = streams * self.length  # stream after stream
        self.rows = {
            "obs": np.zeros((rows, layout.vector_size), np.float32),
            "action": np.zeros((rows, layout.action_size), np.float32),
            "reward": np.zeros(rows, np.float32),
            **{flag: np.zeros(rows, bool) for flag in ("is_first", "is_last", "is_terminal")},
            "deter": np.zeros((rows, deter), np.float16),  # numbers from -1 to 1
            "stoch": np.zeros((rows, categoricals), np.int16),
        }
        if layout.pixels:
            self.rows["pixels"] = np.zeros((rows, layout.pixels), np.uint8)

    @property
    def row_bytes(self) -> int:
        return sum(rows[:1].nbytes for rows in self.rows.values())

    def __len__(self) -> int:
        return int(self.size.sum())

    def filled(self) -> np.ndarray:
        """Index of every row that is filled, stream after stream and oldest first."""
        ranges = map(np.arange, self.head - self.size, self.head)
        return np.concatenate([i * self.length + t % self.length for i, t in enumerate(ranges)])

    def can_sample(self, seq_len: int) -> bool:
        """Whether every stream holds a window of so many rows."""
        return bool(self.size.min() >= seq_len)

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        is_first: np.ndarray,
        is_last: np.ndarray | bool = False,
        is_terminal: np.ndarray | bool = False,
        state: State | None = None,
        streams: np.ndarray | None = None,
    ) -> None:
        """Write a row into each stream (see the time diagram).

        obs (N, O), action (N, A), all else (N,); state: of the model (batch N), zeros if None;
        streams (N,): which ones, all of them if None.
        """
        streams = np.arange(len(self.size)) if streams is None else streams
        index = streams * self.length + self.head[streams]
        numbers, pixels = np.split(obs, [self.layout.vector_size], -1)
        values: dict[str, Any] = {"obs": numbers, "action": action, "reward": reward}
        values |= {"is_first": is_first, "is_last": is_last, "is_terminal": is_terminal}
        values |= {"deter": 0, "stoch": -1}
        if self.layout.pixels:
            values["pixels"] = pixels
        for name, value in values.items():
            self.rows[name][index] = value
        if state is not None:
            self.refresh(index, state)
        self.head[streams] = (self.head[streams] + 1) % self.length
        self.size[streams] = np.minimum(self.size[streams] + 1, self.length)

    def sample(
        self, batch_size: int, seq_len: int, rng: np.random.Generator, recency: float = 1.0
    ) -> dict[str, np.ndarray]:
        """Draw windows: the fields of a row with leading shape (B, T); what was in the rows before
        them, `prev_deter` (B, D), `prev_stoch` (B, S, K) and `prev_action` (B, A), zeros before the
        oldest row; and `index` (B, T), for `refresh`.

        All streams are equally likely. A window's age is the oldest one's times u^recency, u
        uniform from 0 to 1: with 1 all windows are equally likely, with 2 the likelihood falls as
        1/sqrt(age). No window crosses the write head, where the newest row meets the oldest.
        Raises ValueError when a stream holds fewer than `seq_len` rows.
        """
        if not self.can_sample(seq_len):
            raise ValueError(
                f"seq_len must be at most the rows collected ({self.size.min()}), got {seq_len}"
            )
        stream = rng.integers(len(self.size), size=batch_size)
        head, size = self.head[stream], self.size[stream]
        age = (size - seq_len + 1) * rng.random(batch_size) ** recency
        start = head - seq_len - age.astype(np.int64)
        first = (stream * self.length)[:, None]  # the stream's first row
        index = first + (start[:, None] + np.arange(seq_len)) % self.length
        before, known = first[:, 0] + (start - 1) % self.length, (start > head - size)[:, None]

        names = "obs", "action", "reward", "is_first", "is_last", "is_terminal"
        batch = {name: self.rows[name][index] for name in names}
        if self.layout.pixels:
            seen = batch["obs"], self.rows["pixels"][index]
            batch["obs"] = np.concatenate(seen, -1, dtype=np.float32)
        no_class = np.zeros(self.classes, np.float32)  # of class -1
        codes = np.vstack([np.eye(self.classes, dtype=np.float32), no_class])
        return {
            **batch,
            "prev_deter": self.rows["deter"][before].astype(np.float32) * known,
            "prev_stoch": codes[np.where(known, self.rows["stoch"][before], -1)],
            "prev_action": self.rows["action"][before] * known,
            "index": index,
        }

    def refresh(self, index: np.ndarray, states: State | Posterior) -> None:
        """Keep new states (..., D) and (..., S, K) in the rows `index` (...)."""
        self.rows["deter"][index] = states.deter.detach().cpu()
        self.rows["stoch"][index] = states.stoch.detach().argmax(-1).cpu()

    def state_dict(self) -> dict[str, Tensor]:
        """All rows, stream after stream and oldest first, and how many each stream has."""
        order = self.filled()
        rows = {name: torch.from_numpy(rows[order]) for name, rows in self.rows.items()}
        return {**rows, "size": torch.from_numpy(self.size.copy())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take in what `state_dict` gave. Raises ValueError where the rows do not fit."""
        self.size[:] = state["size"].numpy()
        if self.size.max() > self.length:
            raise ValueError(f"{self.size.max()} saved rows do not fit into {self.length}")
        self.head = self.size.copy()
        for name, rows in self.rows.items():
            rows[self.filled()] = state[name].numpy()
        self.head %= self.length
