"""A run, one thing at a time: rows of the replay, random actions, when updates are due, the log."""

import contextlib
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from agents import as_tensors
from conftest import ACTION_SPACES, lived, quiet_train, tiny_config, walk

from dreamer import Config, DreamerAgent, Layout, load_agent, run
from dreamer.checkpoint import load_checkpoint, read_log
from dreamer.envs import native_action
from dreamer.machine import tune_cpu
from dreamer.networks import Decoder
from dreamer.run import PREFILL_HOLD, REPORTS, RandomHolds, Run


@pytest.mark.parametrize("kind", ["discrete from 5", "box"])
def test_the_replay_holds_what_happened(kind, tmp_path):
    """Row t: obs_t, the reward that came with it, the action chosen there; a row of its own for
    the final observation; a time limit is last, but not terminal."""
    seen: list[dict] = []
    quiet_train(walk(kind, seen), run_dir=tmp_path)
    seen = lived(seen)
    replay = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    rows = {name: replay[name].numpy() for name in ("obs", "action", "reward")}
    flags = {name: replay[name].numpy() for name in ("is_first", "is_last", "is_terminal")}
    space, t, ends = ACTION_SPACES[kind](), 0, []
    for i, event in enumerate(seen):
        if t == len(rows["reward"]):
            break  # the observation that the run ended with, not yet acted upon
        np.testing.assert_array_equal(rows["obs"][t], event["obs"])
        first = event["event"] == "reset"
        assert rows["reward"][t] == np.float32(0 if first else event["reward"])
        assert flags["is_first"][t] == first
        last = not first and (event["terminated"] or event["truncated"])
        assert flags["is_last"][t] == last
        assert flags["is_terminal"][t] == (last and event["terminated"])
        if last:
            assert (rows["action"][t] == 0).all()
            ends.append("terminal" if event["terminated"] else "time limit")
        else:
            taken = native_action(space, rows["action"][t])
            np.testing.assert_allclose(taken, seen[i + 1]["action"], rtol=1e-6)
        t += 1
    assert t == len(rows["reward"]) == 60 + len(ends)
    assert set(ends) == {"terminal", "time limit"}


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_what_the_actor_met_is_what_training_meets(kind, tmp_path, monkeypatch):
    """The states that `act` filtered in a run equal those that `observe` makes of the replayed
    rows, given the same random numbers: exploration, clipping and episode ends included."""
    act, met, noise = DreamerAgent.act, [], []

    def recorded(self, obs, is_first, state=None, greedy=False, rng=None):
        seed = len(met)
        noise.append(torch.rand(1, 3, generator=torch.Generator().manual_seed(seed)))
        rng = torch.Generator().manual_seed(seed)
        action, state = act(self, obs, is_first, state, greedy, rng)
        met.append(state)
        return action, state

    monkeypatch.setattr(DreamerAgent, "act", recorded)
    agent = quiet_train(walk(kind), tiny_config(train_ratio=0), tmp_path).agent
    replay = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    # `act` never saw the final rows of episodes; what is drawn there is erased by the next row.
    acted = (~replay["is_last"]).nonzero()[:, 0].tolist()
    assert len(acted) == len(met) == 60 < len(replay["reward"])
    uniform = torch.zeros(len(replay["reward"]), 1, 3)
    uniform[acted] = torch.stack(noise)
    obs, action, is_first = (replay[name][None] for name in ("obs", "action", "is_first"))
    monkeypatch.setattr(torch, "rand", lambda size, **_: uniform.view(size))
    with torch.no_grad():
        post, _ = agent.rssm.observe(agent.encoder(obs), action, is_first, agent.rng)
    for row, state in zip(acted, met, strict=True):
        torch.testing.assert_close(state.deter, post.deter[:, row], rtol=0, atol=1e-5)
        assert torch.equal(state.stoch, post.stoch[:, row])


BOX = Layout(numbers=2, action_numbers=2)


def random_pushes(count: int, warm_up: int = 0, **settings) -> list[int]:
    """Lengths of the random actions among so many choices of action, as they are held."""
    hold, lengths = RandomHolds(BOX, Config(**settings), 0), []
    for t in range(count):
        left, before = hold.left, hold.action
        action = hold.draw(warm_up=t < warm_up)
        if action is not None:
            assert (left > 0) == np.array_equal(action, before)
            lengths += [0] if left == 0 else []
            lengths[-1] += 1
    return lengths


def test_the_prefill_is_random_actions_that_are_held():
    lengths = random_pushes(20_000, warm_up=10_000, explore=0)
    assert 10_000 <= sum(lengths) < 10_000 + PREFILL_HOLD  # and not one step after it
    assert set(lengths) == set(range(1, PREFILL_HOLD + 1))
    assert np.median(lengths) == pytest.approx(PREFILL_HOLD**0.5, abs=1)  # log-uniform


@pytest.mark.parametrize("longest", [1, 64])
def test_later_random_actions_are_held_and_have_the_asked_share(longest):
    lengths = random_pushes(100_000, explore=0.1, explore_hold=longest)
    assert sum(lengths) == pytest.approx(10_000, rel=0.1)
    assert set(lengths) >= set(range(1, min(longest, 30) + 1)) and max(lengths) <= longest
    assert np.mean(np.array(lengths) >= longest**0.5) == pytest.approx(  # log-uniform
        1 - np.log(np.ceil(longest**0.5)) / np.log(longest + 1), abs=0.05
    )
    assert random_pushes(1_000, explore=0) == []


def test_the_policy_acts_where_nothing_is_held_and_within_bounds(monkeypatch):
    """Two of three environments act by themselves; the prefill is counted in all steps."""
    calls: list[bool] = []

    def draw(self, warm_up):
        calls.append(warm_up)
        return np.float32([0.5, 0.5]) if len(calls) % 3 == 0 else None

    monkeypatch.setattr(RandomHolds, "draw", draw)
    one = Run(walk("box"), tiny_config(envs=3, action_repeat=2, steps=60, prefill=20))
    found = one.explore(np.float32([[7, -7], [0.1, 0.2], [0, 0]]))
    np.testing.assert_array_equal(found, np.float32([[1, -1], [0.1, 0.2], [0.5, 0.5]]))
    for one.step in (0, 18, 24):
        one.explore(found)
    assert calls[3:] == [True] * 6 + [False] * 3 and one.stride == 6
    one.opened.close()


def test_updates_follow_the_train_ratio_and_wait_for_the_prefill():
    config = tiny_config(steps=60, prefill=20, train_ratio=18, batch_size=3, seq_len=6)
    reports = quiet_train(walk(), config).reports
    assert [row["step"] for row in reports] == list(range(21, 61))
    assert [row["update"] for row in reports] == list(range(1, 41))


def act(run: Run) -> None:
    """A turn of the loop in `train`."""
    action, state = run.agent.act(run.obs, run.is_first, run.state)
    action = run.explore(action)
    step = run.envs.step(action)
    run.replay.add(run.obs, action, run.reward, run.is_first, state=state)
    run.advance(action, state, *step)


@pytest.fixture
def begun(tmp_path):
    """A function that begins a run and takes so many steps, without updates."""
    opened = []

    def begin(steps: int, /, kind: str = "box", **settings) -> Run:
        opened.append(Run(walk(kind), tiny_config(**settings), tmp_path, device="cpu"))
        opened[-1].__enter__()
        while opened[-1].step < steps:
            act(opened[-1])
        return opened[-1]

    yield begin
    for one in opened:
        one.opened.close()


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_windows_begin_where_acting_was(kind, begun):
    """Without updates each row keeps the state that acting had there. Whatever row a window starts
    in, filtering it leads to the state of that very row."""
    run = begun(30, kind)
    window = run.replay.sample(200, 3, np.random.default_rng(0))
    with torch.no_grad():
        _, _, post, _ = run.agent.world_model_loss(as_tensors(window))
    kept = run.replay.rows["deter"][window["index"][:, 0]].astype(np.float32)
    acted = ~window["is_last"][:, 0]  # the final row has no action, and nobody begins there
    assert window["is_first"][acted, 0].any() and kept[acted].std(0).min() > 0.01
    np.testing.assert_allclose(post.deter[acted, 0], kept[acted], atol=1e-3)
    assert (run.replay.rows["stoch"][: len(run.replay)].min(1) >= 0).sum() == 30


@pytest.mark.parametrize(
    "wrapper", [gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward]
)
@pytest.mark.filterwarnings("error")
def test_wrappers_with_running_statistics_are_named(wrapper):
    with pytest.warns(UserWarning, match=rf"^Walk: {wrapper.__name__} keeps running statistics"):
        quiet_train(lambda: gym.wrappers.ClipReward(wrapper(walk()()), -1, 1))
    quiet_train(lambda: gym.wrappers.RecordEpisodeStatistics(walk()()))


def test_a_run_that_learns_nothing_says_so():
    with pytest.warns(UserWarning, match="^Walk: nothing was learned: 60 steps .* seq_len=200 row"):
        assert quiet_train(walk(), tiny_config(seq_len=200)).updates == 0


def test_a_replay_that_the_machine_cannot_hold_is_refused(monkeypatch):
    """80 rows of 2 numbers, 3 action entries, reward, flags and state: a run has at most 120."""
    monkeypatch.setattr(run, "memory", lambda: 3 * 80 * (4 * (2 + 3 + 1) + 3 + 2 * (12 + 3)) - 1)
    with pytest.raises(ValueError, match="^Walk: 80 replay rows .* lower Config.capacity"):
        quiet_train(walk(), tiny_config(capacity=80))
    assert quiet_train(walk(), tiny_config(capacity=79)).step == 60


def test_the_log_tells_every_episode_once(tmp_path):
    seen: list[dict] = []
    result = quiet_train(walk(seen=seen), tiny_config(evals=3), tmp_path)
    steps = [row["step"] for row in result.episodes]
    assert len(set(steps)) == len(steps) and steps == sorted(steps)
    assert sum(row["length"] for row in result.episodes) == steps[-1] <= 60
    totals, total = [], 0.0
    trained = [event for event in seen if event["env"] is result.envs.envs[0].unwrapped]
    assert len(trained) < len(seen)  # evaluations have environments of their own
    for event in trained:
        total = 0.0 if event["event"] == "reset" else total + event["reward"]
        if event["event"] == "step" and (event["terminated"] or event["truncated"]):
            totals.append(total)
    np.testing.assert_allclose([row["return"] for row in result.episodes], totals, rtol=1e-5)
    for kind in (result.reports, result.evals):
        steps = [row["step"] for row in kind]
        assert len(set(steps)) == len(steps) and steps == sorted(steps) and steps


def test_reports_and_evaluations_are_spread_evenly(begun):
    """Whatever the steps are divided by."""
    one = begun(0, steps=1_000)
    due = {REPORTS: [], 3: []}
    for times, steps in due.items():
        for one.step in range(1_001):
            if one.is_due(steps[-1] if steps else 0, times):
                steps.append(one.step)
    assert due == {REPORTS: list(range(5, 1_001, 5)), 3: [334, 667, 1_000]}


def test_a_report_averages_over_the_updates_since_the_last_one(begun, tmp_path):
    one = begun(20)
    one.report()  # nothing before the first update
    metrics, _ = one.agent.update(one.replay.sample(3, 6, one.replay_rng))
    for losses in ([1.0, 3.0, 8.0], [5.0]):
        for loss in losses:
            one.record({**metrics, "loss": torch.tensor(loss)})
        one.step += 1
        one.report()
    one.report()
    rows = read_log(tmp_path / "log.jsonl", "report")
    assert [(row["update"], row["loss"]) for row in rows] == [(3, 4.0), (4, 5.0)]


def test_a_run_leaves_the_number_of_threads_as_it_was(monkeypatch):
    """And has one thread itself, or as many as asked for."""
    found = []
    monkeypatch.setattr(Run, "report", lambda self: found.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    for options in ({}, {"threads": 3}):
        quiet_train(walk(), tiny_config(steps=1, train_ratio=0), **options)
    assert set(found[:2]) == {1} and set(found[2:]) == {3} and torch.get_num_threads() == 2
    tune_cpu()
    assert torch.get_num_threads() == 1


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
    assert all(p.isfinite().all() for p in saved.state_dict().values())


@pytest.mark.parametrize(
    ("scale", "offset", "reward", "said"),
    [
        (50, 101_325, 1, "^Walk: observation dimensions 1 barely vary"),  # a pressure
        (1e-3, 0, 1, "^Walk: observation dimensions 1 barely vary"),
        (1, 0, 1e-4, r"^Walk: rewards are at most 0.000\d in size, so small"),
        (1, 0, 1, None),
        (0, 7, 1, None),  # a constant says nothing
    ],
)
def test_numbers_too_faint_to_be_seen_are_named(scale, offset, reward, said):
    """The second number of the observation, and the reward."""

    def make():
        env = gym.wrappers.TransformReward(walk()(), lambda r: reward * r)
        seen = lambda obs: obs * np.float32([1, scale]) + np.float32([0, offset])  # noqa: E731
        return gym.wrappers.TransformObservation(env, seen, env.observation_space)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.warns(UserWarning, match=said) if said else contextlib.nullcontext():
            quiet_train(make)
