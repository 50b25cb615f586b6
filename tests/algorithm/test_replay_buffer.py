"""The replay buffer against a plain Python list. Every row tells its episode and step."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dreamer.replay_buffer import FIELDS, ReplayBuffer
from dreamer.rssm import State

STATE = (2, 2, 3)  # sizes D, S, K


def row(episode: int, step: int, last: bool = False, terminal: bool = False) -> dict:
    """A row from which (episode, step) can be read back in every field."""
    return {
        "obs": np.array([episode, step, -step], np.float32),
        "action": np.array([step, episode], np.float32),
        "reward": 1000.0 * episode + step,
        "is_first": step == 0,
        "is_last": last,
        "is_terminal": terminal,
        "state": None if last else state(episode, step),
    }


def state(*numbers: int) -> State:
    """A state from which two numbers can be read back, the second one up to 8."""
    first, second = numbers
    latent = torch.nn.functional.one_hot(torch.tensor([second // 3 % 3, second % 3]), 3)
    return State(torch.tensor([[first / 100, second / 8]]), latent[None].float(), torch.zeros(1, 2))


def before(rows: list[dict], start: int) -> dict[str, np.ndarray]:
    """What a window finds in the row before it."""
    found = rows[start - 1] if start else {"action": np.zeros(2), "state": None}
    kept = found["state"] or State(torch.zeros(1, 2), torch.zeros(1, 2, 3), torch.zeros(1, 2))
    return {
        "prev_deter": kept.deter[0].half().float().numpy(),
        "prev_stoch": kept.stoch[0].numpy(),
        "prev_action": found["action"],
    }


def filled(capacity: int, episodes: list[int], terminal: bool = False) -> ReplayBuffer:
    """A buffer with episodes of these lengths."""
    buffer = ReplayBuffer(capacity, 3, 2, (), STATE)
    for episode, length in enumerate(episodes):
        for step in range(length):
            last = step == length - 1
            buffer.add(**row(episode, step, last, last and terminal))
    return buffer


def saved_and_loaded(buffer: ReplayBuffer, into: ReplayBuffer) -> ReplayBuffer:
    """Through a file, as a checkpoint does it."""
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    into.load_state_dict(torch.load(file, weights_only=True))
    return into


class AgainstAList(RuleBasedStateMachine):
    """Any order of adding, sampling, saving and loading acts as a list of the newest rows does."""

    @initialize(capacity=st.integers(2, 12))
    def make(self, capacity):
        self.capacity, self.episode, self.step = capacity, 0, 0
        self.buffer = ReplayBuffer(capacity, 3, 2, (), STATE)
        self.model: list[dict] = []

    @rule(count=st.integers(1, 9), ends=st.sampled_from(["no", "terminal", "truncated"]))
    def add(self, count, ends):
        for i in range(count):
            last = ends != "no" and i == count - 1
            new = row(self.episode, self.step, last, last and ends == "terminal")
            self.buffer.add(**new)
            self.model = [*self.model, new][-self.capacity :]
            self.episode, self.step = (
                (self.episode + 1, 0) if last else (self.episode, self.step + 1)
            )

    @precondition(lambda self: self.model)
    @rule(data=st.data(), batch=st.integers(1, 5), seed=st.integers(0, 999))
    def sample(self, data, batch, seed):
        length = data.draw(st.integers(1, len(self.model)))
        windows = self.buffer.sample(batch, length, np.random.default_rng(seed))
        rewards = [r["reward"] for r in self.model]
        for b in range(batch):
            start = rewards.index(windows["reward"][b, 0])  # its reward names a row
            expected = self.model[start : start + length]
            assert len(expected) == length  # the window ends before the write head
            for name in FIELDS:
                np.testing.assert_array_equal(windows[name][b], [r[name] for r in expected])
            for name, value in before(self.model, start).items():
                np.testing.assert_array_equal(windows[name][b], value)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), seed=st.integers(0, 99))
    def new_states_reach_the_rows_that_were_sampled(self, data, seed):
        length = data.draw(st.integers(1, len(self.model)))
        windows = self.buffer.sample(2, length, np.random.default_rng(seed))
        rewards = [r["reward"] for r in self.model]
        where = [[rewards.index(x) for x in window] for window in windows["reward"]]
        new = [[state(seed, where_in % 9) for where_in in window] for window in where]
        parts = zip(*(map(torch.cat, zip(*window, strict=True)) for window in new), strict=True)
        self.buffer.refresh(windows["index"], State(*map(torch.stack, parts)))
        for rows, states in zip(where, new, strict=True):
            for i, one in zip(rows, states, strict=True):
                self.model[i] = {**self.model[i], "state": one}

    @rule(seed=st.integers(0, 99), dirty=st.booleans())
    def save_and_load(self, seed, dirty):
        fresh = ReplayBuffer(self.capacity, 3, 2, (), STATE)
        for step in range(seed if dirty else 0):
            fresh.add(**row(99, step))
        self.buffer = saved_and_loaded(self.buffer, fresh)

    @rule(extra=st.integers(1, 5))
    def too_long_a_window_is_refused(self, extra):
        with pytest.raises(ValueError, match=rf"seq_len.*\({len(self.model)}\)"):
            self.buffer.sample(1, len(self.model) + extra, np.random.default_rng(0))

    @rule(
        bad=st.sampled_from([np.nan, np.inf, -np.inf]),
        field=st.sampled_from(["obs", "action", "reward"]),
    )
    def a_bad_row_is_refused_and_leaves_no_trace(self, bad, field):
        new = row(77, 1)
        new[field] = new[field] * 0 + bad
        with pytest.raises(ValueError, match=f"{field} must be finite"):
            self.buffer.add(**new)

    @invariant()
    def the_size_is_that_of_the_list(self):
        if hasattr(self, "model"):
            assert len(self.buffer) == len(self.model) <= self.capacity


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_every_window_is_equally_likely():
    buffer = filled(10, [4, 6, 3])  # 13 rows: the oldest 3 are overwritten
    windows = buffer.sample(7000, 4, np.random.default_rng(0))
    starts, counts = np.unique(windows["reward"][:, 0], return_counts=True)
    # The newest 10 rows are step 3 of episode 0, all of episode 1 and of episode 2: 7 windows.
    assert starts.tolist() == [3, 1000, 1001, 1002, 1003, 1004, 1005]
    assert np.abs(counts - 1000).max() < 150  # five standard deviations


@pytest.mark.parametrize("recency", [2, 3.5])
def test_newer_windows_are_likelier_with_recency(recency):
    """Of ages (newest first) 0 to 6 out of 7, age a has u^recency between a/7 and (a + 1)/7."""
    buffer = filled(10, [4, 6, 3])
    windows = buffer.sample(7000, 4, np.random.default_rng(0), recency)
    starts, counts = np.unique(windows["reward"][:, 0], return_counts=True)
    assert starts.tolist() == [3, 1000, 1001, 1002, 1003, 1004, 1005]
    edges = (np.arange(8) / 7) ** (1 / recency)
    expected = 7000 * np.diff(edges)[::-1]
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())


def test_windows_cross_episodes_but_not_the_write_head():
    buffer = filled(8, [3, 3, 5])
    windows = buffer.sample(500, 8, np.random.default_rng(0))
    assert (windows["reward"] == [1000, 1001, 1002, 2000, 2001, 2002, 2003, 2004]).all()
    assert windows["is_first"][0].tolist() == [True, False, False, True] + [False] * 4


def test_truncation_is_last_but_not_terminal():
    """So the continue target `1 - is_terminal` stays 1 at a time limit."""
    for terminal in (False, True):
        window = filled(10, [3, 3], terminal).sample(1, 6, np.random.default_rng(0))
        assert window["is_last"][0].tolist() == [False, False, True] * 2
        assert window["is_terminal"][0].tolist() == [False, False, terminal] * 2


def test_batches_have_the_documented_shapes_and_types():
    batch = filled(20, [9]).sample(4, 5, np.random.default_rng(0))
    flags = dict.fromkeys(["is_first", "is_last", "is_terminal"], ((4, 5), np.dtype(bool)))
    numbers = {"obs": (4, 5, 3), "action": (4, 5, 2), "reward": (4, 5)}
    numbers |= {"prev_deter": (4, 2), "prev_stoch": (4, 2, 3), "prev_action": (4, 2)}
    expected = {name: (shape, np.dtype(np.float32)) for name, shape in numbers.items()} | flags
    expected["index"] = (4, 5), np.dtype(np.int64)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == expected


def test_a_batch_is_a_copy():
    buffer = filled(5, [5])
    buffer.sample(1, 5, np.random.default_rng(0))["obs"][:] = -1
    assert buffer.sample(1, 5, np.random.default_rng(0))["obs"][0, :, 1].tolist() == [0, 1, 2, 3, 4]


def test_the_same_seed_draws_the_same_windows():
    buffer = filled(30, [30])
    first, again, other = (
        buffer.sample(8, 3, np.random.default_rng(seed))["reward"] for seed in (1, 1, 2)
    )
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("kind", [np.float64, np.uint8, np.int64])
def test_observations_of_any_number_type_are_taken_in(kind):
    buffer = ReplayBuffer(4, 3, 2)
    strided = np.arange(6).astype(kind)[::2]
    buffer.add(strided, np.ones(2), 1.5, True, False, False)
    assert buffer.sample(1, 1, np.random.default_rng(0))["obs"].tolist() == [[[0.0, 2.0, 4.0]]]


@pytest.mark.parametrize(
    ("field", "value", "shape"),
    [("obs", np.zeros(4), r"\(3,\)"), ("action", np.zeros((1, 2)), r"\(2,\)")],
)
def test_a_row_of_the_wrong_shape_is_refused(field, value, shape):
    buffer = ReplayBuffer(4, 3, 2)
    with pytest.raises(ValueError, match=f"{field} must have shape {shape}"):
        buffer.add(**{**row(0, 0), field: value})
    assert len(buffer) == 0


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_number_beyond_float32_is_refused():
    buffer = ReplayBuffer(4, 3, 2)
    with pytest.raises(ValueError, match="reward must be finite.*1e[+]39"):
        buffer.add(**{**row(0, 0), "reward": 1e39})


@pytest.mark.parametrize("capacity", [1, 0, -5])
def test_a_capacity_without_room_is_refused(capacity):
    with pytest.raises(ValueError, match=f"capacity.*{capacity}"):
        ReplayBuffer(capacity, 3, 2)


def test_an_empty_buffer_says_so():
    with pytest.raises(ValueError, match=r"number of rows collected \(0\), got 4"):
        ReplayBuffer(10, 3, 2).sample(2, 4, np.random.default_rng(0))


@pytest.mark.parametrize(("length", "capacity"), [(4, 11), (14, 11), (4, 4), (14, 10), (4, 9)])
def test_rows_go_into_another_capacity(length, capacity):
    """A run that is given more steps goes on as if its buffer had always been that large."""
    buffer = saved_and_loaded(filled(10, [length]), ReplayBuffer(capacity, 3, 2, (), STATE))
    rewards = [float(step) for step in range(length)][-10:]
    assert len(buffer) == len(rewards)
    for step in range(3):
        buffer.add(**row(7, step))
        rewards = [*rewards, 7000.0 + step][-capacity:]
        window = buffer.sample(1, len(rewards), np.random.default_rng(0))
        assert window["reward"][0].tolist() == rewards


def test_loading_refuses_too_many_rows_and_another_shape():
    state = filled(10, [14]).state_dict()
    with pytest.raises(ValueError, match="capacity must be at least the 10 saved rows: 9"):
        ReplayBuffer(9, 3, 2, (), STATE).load_state_dict(state)
    with pytest.raises(ValueError, match="obs: saved rows have shape"):
        ReplayBuffer(10, 5, 2, (), STATE).load_state_dict(state)
