"""The replay buffer against plain Python lists. Every row tells its environment, episode and
step."""

import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dreamer.replay_buffer import Layout, ReplayBuffer
from dreamer.rssm import State

LAYOUT = Layout(numbers=3, action_numbers=2)
STATE = (2, 2, 3)  # sizes D, S, K
FIELDS = ("obs", "action", "reward", "is_first", "is_last", "is_terminal")


def row(stream: int, episode: int, step: int, last: bool = False, terminal: bool = False) -> dict:
    """A row from which (stream, episode, step) can be read back in every number."""
    return {
        "obs": np.array([stream, episode, step], np.float32),
        "action": np.array([step, -1000 * stream - episode], np.float32),
        "reward": 1e6 * stream + 1e3 * episode + step,
        "is_first": step == 0,
        "is_last": last,
        "is_terminal": terminal,
    }


def state(first: int, second: int) -> State:
    """A state from which two numbers can be read back, the second one up to 8."""
    latent = torch.nn.functional.one_hot(torch.tensor([second // 3 % 3, second % 3]), 3)
    return State(torch.tensor([[first / 100, second / 8]]), latent[None].float(), torch.zeros(1, 2))


def add(buffer: ReplayBuffer, rows: list[dict], states=None, streams=None) -> None:
    """Write rows (and states of batch 1) of several environments at once."""
    fields = {name: np.array([row[name] for row in rows]) for name in FIELDS}
    joined = None if states is None else State(*map(torch.cat, zip(*states, strict=True)))
    buffer.add(**fields, state=joined, streams=streams)


def filled(capacity: int, *episodes: list[int], terminal: bool = False) -> ReplayBuffer:
    """A buffer with episodes of these lengths in each stream."""
    buffer = ReplayBuffer(capacity, LAYOUT, STATE, len(episodes))
    for stream, lengths in enumerate(episodes):
        for episode, steps in enumerate(lengths):
            for step in range(steps):
                last = step == steps - 1
                new = row(stream, episode, step, last, last and terminal)
                add(buffer, [new], streams=np.array([stream]))
    return buffer


def saved_and_loaded(buffer: ReplayBuffer, into: ReplayBuffer) -> ReplayBuffer:
    """Through a file, as a checkpoint does it."""
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    into.load_state_dict(torch.load(file, weights_only=True))
    return into


class AgainstLists(RuleBasedStateMachine):
    """Adding, sampling, renewing states, saving and loading, in any order, act as one list of its
    newest rows for each environment does."""

    @initialize(streams=st.integers(1, 3), length=st.integers(2, 8))
    def make(self, streams, length):
        self.length, self.capacity = length, streams * length + streams - 1  # the rest is no use
        self.buffer = ReplayBuffer(self.capacity, LAYOUT, STATE, streams)
        self.model: list[list[dict]] = [[] for _ in range(streams)]
        self.now = [(0, 0)] * streams  # episode and step that come next

    @property
    def shortest(self) -> int:
        return min(map(len, self.model))

    @rule(data=st.data(), count=st.integers(1, 6), known=st.booleans())
    def add(self, data, count, known):
        everywhere = list(range(len(self.model)))
        streams = data.draw(st.lists(st.sampled_from(everywhere), min_size=1, unique=True))
        for _ in range(count):
            rows, states = [], []
            for stream in streams:
                episode, step = self.now[stream]
                end = data.draw(st.sampled_from(["no", "no", "terminal", "truncated"]))
                rows.append(row(stream, episode, step, end != "no", end == "terminal"))
                states.append(state(episode, step % 9))
                self.now[stream] = (episode, step + 1) if end == "no" else (episode + 1, 0)
            some = None if streams == everywhere else np.array(streams)
            add(self.buffer, rows, states if known else None, some)
            for stream, new, then in zip(streams, rows, states, strict=True):
                new["state"] = then if known else None
                self.model[stream] = [*self.model[stream], new][-self.length :]

    def find(self, reward: float) -> tuple[list[dict], int]:
        """The list that the row with this reward is in, and its place."""
        rows = self.model[int(reward / 1e6)]
        return rows, [r["reward"] for r in rows].index(reward)

    @precondition(lambda self: self.shortest)
    @rule(data=st.data(), batch=st.integers(1, 5), seed=st.integers(0, 999))
    def sample(self, data, batch, seed):
        length = data.draw(st.integers(1, self.shortest))
        windows = self.buffer.sample(batch, length, np.random.default_rng(seed))
        for b in range(batch):
            rows, start = self.find(windows["reward"][b, 0])
            expected = rows[start : start + length]
            assert len(expected) == length  # the window ends before the write head
            for name in FIELDS:
                np.testing.assert_array_equal(windows[name][b], [r[name] for r in expected])
            before = rows[start - 1] if start else {"action": np.zeros(2), "state": None}
            zero = State(torch.zeros(1, 2), torch.zeros(1, 2, 3), torch.zeros(1, 2))
            then = before["state"] or zero
            np.testing.assert_array_equal(windows["prev_deter"][b], then.deter[0].half().float())
            np.testing.assert_array_equal(windows["prev_stoch"][b], then.stoch[0])
            np.testing.assert_array_equal(windows["prev_action"][b], before["action"])

    @precondition(lambda self: self.shortest)
    @rule(data=st.data(), seed=st.integers(0, 99))
    def new_states_reach_the_rows_that_were_sampled(self, data, seed):
        length = data.draw(st.integers(1, self.shortest))
        windows = self.buffer.sample(2, length, np.random.default_rng(seed))
        found = [self.find(reward) for reward in windows["reward"].flat]
        new = [state(seed, place % 9) for _, place in found]
        parts = (torch.cat(part).unflatten(0, (2, length)) for part in zip(*new, strict=True))
        self.buffer.refresh(windows["index"], State(*parts))
        for (rows, place), then in zip(found, new, strict=True):
            rows[place]["state"] = then

    @rule(dirty=st.integers(0, 20))
    def save_and_load(self, dirty):
        streams = len(self.model)
        fresh = ReplayBuffer(self.capacity, LAYOUT, STATE, streams)
        for step in range(dirty):
            add(fresh, [row(stream, 99, step) for stream in range(streams)])
        self.buffer = saved_and_loaded(self.buffer, fresh)

    @rule(extra=st.integers(1, 5))
    def too_long_a_window_is_refused(self, extra):
        with pytest.raises(ValueError, match=rf"seq_len.*\({self.shortest}\)"):
            self.buffer.sample(1, self.shortest + extra, np.random.default_rng(0))

    @invariant()
    def the_size_is_that_of_the_lists(self):
        if hasattr(self, "model"):
            assert len(self.buffer) == sum(map(len, self.model))


TestAgainstLists = AgainstLists.TestCase
TestAgainstLists.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


ROWS = [3, 1000, 1001, 1002, 1003, 1004, 1005, 2000, 2001, 2002]  # the newest ten of 4 + 6 + 3


@pytest.mark.parametrize("recency", [1, 2, 3.5])
def test_windows_are_as_likely_as_their_age_says(recency):
    """Of ages (newest first) 0 to 6 out of 7, age a has u^recency between a/7 and (a + 1)/7: with
    1, all are equally likely."""
    windows = filled(10, [4, 6, 3]).sample(7000, 4, np.random.default_rng(0), recency)
    starts, counts = np.unique(windows["reward"][:, 0], return_counts=True)
    assert starts.tolist() == ROWS[:7]
    expected = 7000 * np.diff((np.arange(8) / 7) ** (1 / recency))[::-1]
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())


@pytest.mark.parametrize("recency", [1.0, 2.0])
def test_a_single_environment_takes_one_random_number_for_each_window(recency):
    """A run with one environment repeats what it was before there could be several."""
    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    windows = filled(10, [4, 6, 3]).sample(50, 4, rng, recency)
    for window, u in zip(windows["reward"], again.random(50), strict=True):
        newest = len(ROWS) - 4
        start = newest - int(7 * u**recency)
        assert window.tolist() == ROWS[start : start + 4]
    assert rng.random() == again.random()


def test_environments_are_equally_likely_however_many_rows_they_have():
    """12,000 windows of two rows: 5 places in stream 0, 9 in stream 1, whose ring is full, and one
    in stream 2."""
    buffer = filled(30, [3, 3], [4, 6, 3], [2])
    starts = buffer.sample(12_000, 2, np.random.default_rng(0))["reward"][:, 0]
    streams = (starts // 1e6).astype(int)
    assert np.abs(np.bincount(streams) - 4000).max() < 5 * np.sqrt(12_000 * 2 / 9)
    for stream, places in enumerate((5, 9, 1)):
        counts = np.unique(starts[streams == stream], return_counts=True)[1]
        assert len(counts) == places
        assert np.abs(counts - 4000 / places).max() < 5 * np.sqrt(4000 / places)


def test_windows_cross_episodes_but_not_the_write_head():
    windows = filled(8, [3, 3, 5]).sample(500, 8, np.random.default_rng(0))
    assert (windows["reward"] == [1000, 1001, 1002, 2000, 2001, 2002, 2003, 2004]).all()
    assert windows["is_first"][0].tolist() == [True, False, False, True] + [False] * 4


def test_no_window_crosses_from_one_environment_to_another():
    """Both rings are full, and their heads are in different places."""
    windows = filled(12, [8], [10]).sample(500, 6, np.random.default_rng(0))
    assert set(windows["reward"][:, 0]) == {2, 1e6 + 4}
    assert (np.diff(windows["reward"], axis=1) == 1).all()
    assert (windows["prev_action"] == 0).all()  # nothing is known of what was before


def test_truncation_is_last_but_not_terminal():
    """So the continue target `1 - is_terminal` stays 1 at a time limit."""
    for terminal in (False, True):
        window = filled(10, [3, 3], terminal=terminal).sample(1, 6, np.random.default_rng(0))
        assert window["is_last"][0].tolist() == [False, False, True] * 2
        assert window["is_terminal"][0].tolist() == [False, False, terminal] * 2


def test_batches_have_the_documented_shapes_and_types():
    batch = filled(20, [9], [7]).sample(4, 5, np.random.default_rng(0))
    flags = dict.fromkeys(["is_first", "is_last", "is_terminal"], ((4, 5), np.dtype(bool)))
    numbers = {"obs": (4, 5, 3), "action": (4, 5, 2), "reward": (4, 5)}
    numbers |= {"prev_deter": (4, 2), "prev_stoch": (4, 2, 3), "prev_action": (4, 2)}
    expected = {name: (shape, np.dtype(np.float32)) for name, shape in numbers.items()} | flags
    expected["index"] = (4, 5), np.dtype(np.int64)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == expected


def test_a_layout_knows_its_sizes_by_hand():
    mixed = Layout(2, 1, (3, 4), ((8, 9, 3), (10, 8, 1)), action_categories=(2, 5))
    assert (mixed.vector_size, mixed.pixels, mixed.obs_size) == (10, 216 + 80, 306)
    assert (mixed.action_size, mixed.discrete) == (7, True)
    camera = Layout(images=((8, 8, 1),), action_numbers=3)
    assert (camera.vector_size, camera.pixels, camera.obs_size) == (0, 64, 64)
    assert (camera.action_size, camera.discrete) == (3, False)


def test_pixels_are_kept_as_bytes():
    rng = np.random.default_rng(0)
    layout = Layout(numbers=2, images=((8, 8, 1),), action_categories=(3,))
    replay, other = (ReplayBuffer(20, layout, STATE, streams=2) for _ in range(2))
    assert replay.rows["pixels"].dtype == np.uint8 and replay.rows["obs"].shape == (20, 2)
    assert replay.rows["action"].shape == (20, 3)
    obs = np.concatenate([rng.normal(size=(8, 2, 2)), rng.integers(0, 256, (8, 2, 64))], -1)
    obs, nothing = obs.astype(np.float32), np.zeros(2)
    for both in obs:
        replay.add(both, np.eye(3)[:2], nothing, nothing, nothing, nothing)
    for buffer in (replay, saved_and_loaded(replay, other)):
        found = buffer.sample(20, 8, np.random.default_rng(0))
        assert found["obs"].dtype == np.float32
        stream = found["action"][:, 0].argmax(-1)  # the action tells
        assert set(stream) == {0, 1}
        np.testing.assert_array_equal(found["obs"], obs[:, stream].swapaxes(0, 1))


@pytest.mark.parametrize(("length", "capacity"), [(4, 11), (14, 11), (4, 4), (14, 10), (4, 9)])
def test_rows_go_into_another_capacity(length, capacity):
    """A run that is given more steps goes on as if its buffer had always been that large. The
    other environment has two rows."""
    into = ReplayBuffer(2 * capacity, LAYOUT, STATE, streams=2)
    buffer = saved_and_loaded(filled(20, [length], [2]), into)
    kept = [float(step) for step in range(length)][-10:], [1e6, 1e6 + 1]
    for step in range(4):
        pairs = set().union(*(itertools.pairwise(rewards[-capacity:]) for rewards in kept))
        windows = buffer.sample(900, 2, np.random.default_rng(0))["reward"]
        assert set(map(tuple, windows.tolist())) == pairs
        new = [row(0, 7, step), row(1, 7, step)]
        add(buffer, new)
        kept = tuple([*rewards, r["reward"]] for rewards, r in zip(kept, new, strict=True))


def test_loading_refuses_too_many_rows():
    saved = filled(20, [3], [14]).state_dict()  # as if both had ten
    with pytest.raises(ValueError, match="10 saved rows"):
        ReplayBuffer(19, LAYOUT, STATE, streams=2).load_state_dict(saved)
