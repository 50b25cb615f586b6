"""A run, one thing at a time: rows of the replay, random actions, when updates are due, the log."""

import json
from contextlib import nullcontext

import gymnasium as gym
import numpy as np
import pytest
import torch
from agents import as_tensors
from conftest import ACTION_SPACES, lived, quiet_train, tiny_config, walk

from dreamer import Config, Layout, load_agent, run, train
from dreamer.checkpoint import read_log
from dreamer.envs import native_action
from dreamer.networks import Decoder
from dreamer.run import PREFILL_HOLD, REPORTS, RandomHolds, Run


@pytest.mark.parametrize(
    ("kind", "repeat"), [("discrete from 5", 1), ("box", 1), ("discrete", 4), ("box float64", 4)]
)
def test_replay_and_log_hold_what_happened(kind, repeat):
    """Row t: obs_t, the reward that came with it, the action chosen there; a row of its own for
    the final observation; a time limit is last, but not terminal. With repeats, rows hold what the
    last step gave and the sum of the rewards, and 60 steps are as many updates as without."""
    seen: list[dict] = []
    result = quiet_train(walk(kind, seen), tiny_config(action_repeat=repeat, train_ratio=6))
    assert (result.step, result.updates) == (60, 40 * 6 // 18)

    rows, held, episodes = [], [], []  # by hand; a row: obs, reward, is_first, is_last, is_terminal
    actions, choices = [], 0
    for event in lived(seen):
        if event["event"] == "reset":
            rows.append((event["obs"], 0.0, True, False, False))
            ret = length = 0
            continue
        held.append(event)
        ret, length = ret + event["reward"], length + 1
        last = event["terminated"] or event["truncated"]
        if last or len(held) == repeat:
            total = sum(e["reward"] for e in held)
            rows.append((event["obs"], total, False, last, event["terminated"]))
            actions += [[e["action"] for e in held], *([[]] if last else [])]
            held, choices = [], choices + 1
        if last:
            episodes.append((choices * repeat, length, pytest.approx(ret, rel=1e-5)))
    assert choices == 60 // repeat

    replay, count = result.replay.rows, len(result.replay)
    assert 0 <= len(rows) - count <= 1  # the last one is not yet acted upon
    for t, (obs, reward, *expected) in enumerate(rows[:count]):
        np.testing.assert_array_equal(replay["obs"][t], obs)
        assert replay["reward"][t] == pytest.approx(reward, rel=1e-6)
        assert [replay[name][t] for name in ("is_first", "is_last", "is_terminal")] == expected
        for action in actions[t]:
            taken = native_action(ACTION_SPACES[kind](), replay["action"][t])
            np.testing.assert_allclose(action, taken, rtol=1e-6)
        assert actions[t] or not replay["action"][t].any()
    assert any(row[-1] for row in rows) and any(row[-2] > row[-1] for row in rows)
    assert [(e["step"], e["length"], e["return"]) for e in result.episodes] == episodes


def test_in_a_file_the_bar_is_a_few_lines_and_a_callback_gets_every_row(tmp_path, capsys):
    told: list[dict] = []
    train(walk(), tiny_config(evals=9), tmp_path, device="cpu", callback=told.append)
    assert 1 <= capsys.readouterr().err.count("\r") <= 3
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert told == rows and {row["kind"] for row in told} == {"episode", "report", "eval"}


def random_pushes(count: int, warm_up: int = 0, **settings) -> list[int]:
    """Lengths of the random actions among so many choices of action, as they are held."""
    hold, lengths = RandomHolds(Layout(numbers=2, action_numbers=2), Config(**settings), 0), []
    for t in range(count):
        left, before = hold.left, hold.action
        action = hold.draw(warm_up=t < warm_up)
        if action is not None:
            assert (left > 0) == np.array_equal(action, before)
            lengths += [0] if left == 0 else []
            lengths[-1] += 1
    return lengths


@pytest.mark.parametrize(
    ("longest", "share", "settings"),
    [
        (PREFILL_HOLD, 0.5, dict(warm_up=25_000, explore=0)),  # the prefill, and not one step more
        (64, 0.1, dict(explore=0.1, explore_hold=64)),
        (1, 0.1, dict(explore=0.1, explore_hold=1)),
    ],
)
def test_random_actions_are_held_and_have_the_asked_share(longest, share, settings):
    lengths = random_pushes(50_000, **settings)
    assert sum(lengths) == pytest.approx(50_000 * share, rel=0.15 if share < 0.5 else 0.001)
    assert set(lengths) >= set(range(1, min(longest, 20) + 1)) and max(lengths) <= longest
    half = np.log(np.ceil(longest**0.5)) / np.log(longest + 1)  # log-uniform
    assert np.mean(np.array(lengths) >= longest**0.5) == pytest.approx(1 - half, abs=0.07)


def test_the_policy_acts_where_nothing_is_held_and_within_bounds(monkeypatch):
    """Two of three environments act by themselves; the prefill is counted in all steps."""
    calls = []

    def draw(self, warm_up):
        calls.append(warm_up)
        return np.float32([0.5, 0.5]) if len(calls) % 3 == 0 else None

    monkeypatch.setattr(RandomHolds, "draw", draw)
    one = Run(walk("box"), tiny_config(envs=3, action_repeat=2, steps=60, prefill=20))
    found = one.explore(np.float32([[7, -7], [0.1, 0.2], [0, 0]]))
    np.testing.assert_array_equal(found, np.float32([[1, -1], [0.1, 0.2], [0.5, 0.5]]))
    for one.step in (18, 24):
        one.explore(found)
    assert calls == [True] * 6 + [False] * 3 and one.stride == 6
    one.opened.close()


@pytest.fixture
def begun(tmp_path):
    """A run that has taken 30 steps of the loop in `train`, without updates."""
    with Run(walk("box"), tiny_config(train_ratio=0), tmp_path, device="cpu") as run:
        while run.step < 30:
            action, state = run.agent.act(run.obs, run.is_first, run.state)
            action = run.explore(action)
            step = run.envs.step(action)
            run.replay.add(run.obs, action, run.reward, run.is_first, state=state)
            run.advance(action, state, *step)
        yield run


def test_windows_begin_where_acting_was(begun):
    """Without updates each row keeps the state that acting had there. Whatever row a window starts
    in, filtering it leads to the state of that very row."""
    window = begun.replay.sample(200, 3, np.random.default_rng(0))
    with torch.no_grad():
        _, _, post, _ = begun.agent.world_model_loss(as_tensors(window))
    kept = begun.replay.rows["deter"][window["index"][:, 0]].astype(np.float32)
    acted = ~window["is_last"][:, 0]  # the final row has no action, and nobody begins there
    assert window["is_first"][acted, 0].any() and kept[acted].std(0).min() > 0.01
    np.testing.assert_allclose(post.deter[acted, 0], kept[acted], atol=1e-3)
    assert (begun.replay.rows["stoch"][: len(begun.replay)].min(1) >= 0).sum() == 30


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    """From the fifth update on, the decoder's loss is NaN."""
    calls, loss = [], Decoder.loss

    def failing(self, guess, obs):
        calls.append(1)
        return loss(self, guess, obs) * (float("nan") if len(calls) >= 5 else 1)

    monkeypatch.setattr(Decoder, "loss", failing)
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(FloatingPointError, match=r"Walk: update 5 at step \d+ .*loss"):
        quiet_train(walk(), run_dir=tmp_path)
    saved = load_agent(tmp_path / "checkpoint.pt", "cpu")
    assert len(calls) == 5 and all(p.isfinite().all() for p in saved.state_dict().values())


@pytest.mark.parametrize(
    ("offset", "spread", "size", "warned"),
    [
        (101_325, 50, 1, "observation dimensions 1 barely vary"),  # a pressure
        (0, 1e-3, 1, "observation dimensions 1 barely vary"),
        (7, 0, 1, None),  # a constant says nothing
        (0, 1, 1e-4, r"rewards are at most 0.000\d in size, so small"),
        (0, 1, 1, None),
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers_and_rewards_too_faint_to_be_seen_are_named(offset, spread, size, warned):
    faint = lambda obs: np.array([obs[0], offset + spread * obs[1]], np.float32)  # noqa: E731
    make = lambda: gym.wrappers.TransformReward(  # noqa: E731
        gym.wrappers.TransformObservation(walk()(), faint, None), lambda reward: size * reward
    )
    with pytest.warns(UserWarning, match=f"^Walk: {warned}") if warned else nullcontext():
        quiet_train(make)


@pytest.mark.parametrize("wrapper", ["NormalizeObservation", "NormalizeReward"])
@pytest.mark.filterwarnings("error")
def test_wrappers_with_running_statistics_are_named(wrapper):
    inside, nothing = getattr(gym.wrappers, wrapper), tiny_config(train_ratio=0)
    with pytest.warns(UserWarning, match=rf"^Walk: {wrapper} keeps running statistics"):
        quiet_train(lambda: gym.wrappers.ClipReward(inside(walk()()), -1, 1), nothing)
    quiet_train(lambda: gym.wrappers.RecordEpisodeStatistics(walk()()), nothing)


def test_a_run_that_learns_nothing_says_so():
    with pytest.warns(UserWarning, match="^Walk: nothing was learned: 60 steps .* seq_len=200 row"):
        assert quiet_train(walk(), tiny_config(seq_len=200)).updates == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("part", ["obs", "image"])
def test_dreams_that_are_worse_than_no_change_are_named(part, begun):
    for dream, begun.updates, said in (1.3, 100, 1), (1.1, 100, 0), (1.3, 99, 0):
        begun.evals = [{f"dream_{part}_error": dream, f"naive_{part}_error": 1.0}]
        texts = list(begun.not_learned())
        assert len(texts) == said
        assert all("worse (error 1.3) than the guess that nothing changes (1)" in t for t in texts)


def test_a_replay_that_the_machine_cannot_hold_is_refused(monkeypatch):
    """80 rows of 2 numbers, 3 action entries, reward, flags and state: a run has at most 120."""
    monkeypatch.setattr(run, "memory", lambda: 3 * 80 * (4 * (2 + 3 + 1) + 3 + 2 * (12 + 3)) - 1)
    with pytest.raises(ValueError, match="^Walk: 80 replay rows .* lower Config.capacity"):
        quiet_train(walk(), tiny_config(capacity=80))
    assert quiet_train(walk(), tiny_config(capacity=79, train_ratio=0)).step == 60


@pytest.mark.parametrize(("times", "steps"), [(REPORTS, range(5, 1001, 5)), (3, [334, 667, 1000])])
def test_what_is_due_so_many_times_is_spread_evenly(times, steps, begun):
    begun.config, due = tiny_config(steps=1_000, train_ratio=0), [0]
    for begun.step in range(1_001):
        due += [begun.step] if begun.is_due(due[-1], times) else []
    assert due == [0, *steps]


def test_a_report_averages_over_the_updates_since_the_last_one(begun, tmp_path):
    begun.report()  # nothing before the first update
    metrics, _ = begun.agent.update(begun.replay.sample(3, 6, begun.replay_rng))
    for losses in ([1.0, 3.0, 8.0], [5.0]):
        for loss in losses:
            begun.record({**metrics, "loss": torch.tensor(loss)})
        begun.step += 1
        begun.report()
    begun.report()
    rows = read_log(tmp_path / "log.jsonl", "report")
    assert [(row["update"], row["loss"]) for row in rows] == [(3, 4.0), (4, 5.0)]


def test_a_run_leaves_threads_and_denormal_numbers_as_they_were(monkeypatch):
    """And has one thread itself, or as many as asked for; it flushes denormal numbers to zero."""
    found, tiny = [], torch.tensor(1e-40)
    look = lambda _: found.append((torch.get_num_threads(), (tiny * 1).item() == 0))  # noqa: E731
    monkeypatch.setattr(Run, "report", look)
    torch.set_num_threads(2)
    for options in ({}, {"threads": 3}):
        quiet_train(walk(), tiny_config(steps=1, train_ratio=0), **options)
    assert found == 2 * [(1, True)] + 2 * [(3, True)]
    assert torch.get_num_threads() == 2 and tiny * 1 != 0
