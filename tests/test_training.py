"""The training loop: what environments it takes, what it records, and exact resumption."""

from __future__ import annotations

import importlib.util
import json
import signal
import warnings
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ACTION_SPACES, Walk, tiny_config, walk
from hypothesis import given
from hypothesis import strategies as st

from dreamer import evaluation
from dreamer.agent import Config, DreamerAgent
from dreamer.checkpoint import load_checkpoint
from dreamer.envs import AgentEnv
from dreamer.evaluation import evaluate, random_returns
from dreamer.networks import Decoder
from dreamer.replay_buffer import ReplayBuffer
from dreamer.rssm import State
from dreamer.training import PREFILL_HOLD, Trainer, load_agent, train
from dreamer.utils import derive_seed

CPU = torch.device("cpu")


def run(env, config=None, run_dir=None, **kwargs):
    return train(env, config or tiny_config(), run_dir, device="cpu", progress=False, **kwargs)


def weights(agent: DreamerAgent) -> list[torch.Tensor]:
    return list(agent.state_dict().values())


def same(xs: list[torch.Tensor], ys: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


# ---------------------------------------------------------------- environments


def test_box_actions_are_rescaled_and_clipped_by_hand():
    env = AgentEnv(walk("box"))  # bounds [-2, 2] and [0, 10]
    for action, expected in [
        ([0, 0], [0, 5]),
        ([-1, 1], [-2, 10]),
        ([0.5, -0.5], [1, 2.5]),
        ([7, -7], [2, 0]),
    ]:
        np.testing.assert_allclose(env.native_action(np.array(action, np.float32)), expected)


def test_discrete_actions_are_counted_from_the_spaces_start():
    assert AgentEnv(walk("discrete")).native_action(np.array([0.0, 0.0, 1.0])) == 2
    assert AgentEnv(walk("discrete from 5")).native_action(np.array([0.0, 1.0])) == 6


bounds = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@given(bounds, bounds, st.floats(-3, 3, width=32, allow_subnormal=False))
def test_every_native_action_is_in_the_space(one, other, action):
    low, high = min(one, other), max(one, other)
    space = gym.spaces.Box(low, high, (1,), np.float32)
    env = AgentEnv(lambda: Walk(space))
    assert space.contains(env.native_action(np.array([action], np.float32)))


@pytest.mark.parametrize(
    ("low", "high", "dtype", "natives"),
    [
        (-100, 100, np.int8, [-100, 0, 50, 100]),
        (0, 3, np.int64, [0, 2, 2, 3]),  # 1.5 is rounded to the even number
        (-2_000_000_000, 2_000_000_000, np.int32, [-2e9, 0, 1e9, 2e9]),
        (-3e38, 3e38, np.float32, [-3e38, 0, 1.5e38, 3e38]),
    ],
)
def test_actions_of_every_type_and_size_reach_their_whole_range(low, high, dtype, natives):
    env = AgentEnv(lambda: Walk(gym.spaces.Box(low, high, (1,), dtype)))
    for action, native in zip([-1, 0, 0.5, 1], natives, strict=True):
        found = env.native_action(np.float32([action]))
        assert found.dtype == dtype and env.action_space.contains(found)
        assert float(found[0]) == pytest.approx(native, rel=1e-6)


@pytest.mark.parametrize("kind", ACTION_SPACES)
def test_random_actions_cover_the_space(kind):
    env, rng = AgentEnv(walk(kind)), np.random.default_rng(0)
    actions = np.stack([env.random_action(rng) for _ in range(300)])
    if env.discrete:
        assert (actions.sum(1) == 1).all() and (actions.sum(0) > 60).all()
    else:
        assert actions.min(0).max() < -0.9 and actions.max(0).min() > 0.9
        assert np.abs(actions).max() <= 1


def test_an_action_is_held_for_as_many_steps_as_asked():
    """Nine steps in threes of 4, 4 and 1: the time limit cuts the last one short."""
    seen: list[dict] = []
    env = AgentEnv(walk(seen=seen, drift=0.01), action_repeat=4)
    env.reset(seed=0)
    actions = np.eye(3, dtype=np.float32)
    answers = [env.step(action) for action in actions]
    taken = seen[1:]
    assert [e["action"] for e in taken] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    for (obs, reward, terminated, truncated), part in zip(
        answers, (taken[:4], taken[4:8], taken[8:]), strict=True
    ):
        np.testing.assert_array_equal(obs, part[-1]["obs"])
        assert reward == pytest.approx(sum(e["reward"] for e in part))
        assert not terminated and truncated == (part[-1] is taken[-1])
    assert (env.steps, env.episode_steps) == (12, 9)
    env.reset(seed=1)
    assert (env.steps, env.episode_steps) == (12, 0)


SPACES = gym.spaces
UNSUPPORTED_ACTIONS = [
    SPACES.MultiDiscrete([3, 2]),
    SPACES.MultiBinary(4),
    SPACES.Box(-np.inf, np.inf, (2,)),
    SPACES.Box(np.float32([-1, 0]), np.float32([1, np.inf])),
    SPACES.Box(-1, 1, (2, 2)),
    SPACES.Tuple([SPACES.Discrete(2)]),
]
UNSUPPORTED_OBSERVATIONS = [
    SPACES.Discrete(5),
    SPACES.Box(0, 255, (8, 8, 3), np.uint8),
    SPACES.Box(-1, 1, ()),
    SPACES.Dict({"x": SPACES.Box(-1, 1, (2,))}),
]


@pytest.mark.parametrize("space", UNSUPPORTED_ACTIONS, ids=str)
def test_unsupported_action_spaces_are_named(space):
    with pytest.raises(ValueError) as error:
        run(lambda: Walk(space))
    assert "Walk: action space" in str(error.value) and str(space) in str(error.value)


@pytest.mark.parametrize("space", UNSUPPORTED_OBSERVATIONS, ids=str)
def test_unsupported_observation_spaces_are_named(space):
    env = Walk(SPACES.Discrete(2))
    env.observation_space = space
    with pytest.raises(ValueError) as error:
        run(lambda: env)
    assert "Walk: observation space" in str(error.value) and str(space) in str(error.value)


class Faulty(Walk):
    """Gives `value` as a part of its answer to the 7th step of all."""

    def __init__(self, field: str, value: object):
        super().__init__(gym.spaces.Discrete(3))
        self.field, self.value, self.count = field, value, 0

    def step(self, action):
        obs, reward, *rest = super().step(action)
        self.count += 1
        if self.count == 7:
            if self.field == "observation":
                obs = np.array([0.5, self.value])
            else:
                reward = self.value
        return obs, reward, *rest


@pytest.mark.parametrize("field", ["observation", "reward"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e39])
def test_numbers_that_are_not_finite_name_environment_step_and_value(field, value):
    with pytest.raises(ValueError) as error:
        run(lambda: Faulty(field, value))
    text = str(error.value)
    assert text.startswith(f"Faulty: {field} at step 7") and (
        str(value) in text or "-1.e+39" in text
    )


# ---------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("kind", ACTION_SPACES)
def test_every_supported_space_trains(kind):
    """`Walk` itself refuses actions outside its space."""
    config = tiny_config(evals=2)
    result = run(walk(kind), config)
    fresh = DreamerAgent(2, result.agent.action_size, result.agent.discrete, config)
    assert not same(weights(result.agent), weights(fresh))
    assert all(p.isfinite().all() for p in result.agent.parameters())
    assert [row["step"] for row in result.evals] == [30, 60]


@pytest.mark.parametrize("kind", ["discrete from 5", "box"])
def test_the_replay_holds_what_happened(kind, tmp_path):
    """Row t: obs_t, the reward that came with it, the action chosen there; a row of its own for
    the final observation; a time limit is last, but not terminal."""
    seen: list[dict] = []
    run(walk(kind, seen), run_dir=tmp_path)
    replay = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    rows = {name: replay[name].numpy() for name in ("obs", "action", "reward")}
    flags = {name: replay[name].numpy() for name in ("is_first", "is_last", "is_terminal")}
    env, t, ends = AgentEnv(walk(kind)), 0, []
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
            taken = env.native_action(rows["action"][t])
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
    agent = run(walk(kind), tiny_config(train_ratio=0), tmp_path).agent
    replay = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    # `act` never saw the final rows of episodes; what is drawn there is erased by the next row.
    acted = (~replay["is_last"]).nonzero()[:, 0].tolist()
    assert len(acted) == len(met) == 60 < len(replay["reward"])
    uniform = torch.zeros(len(replay["reward"]), 1, 3)
    uniform[acted] = torch.stack(noise)
    rows = (replay[name][None] for name in ("obs", "action", "is_first"))
    obs, action, is_first = rows
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: uniform.view(shape))
    with torch.no_grad():
        post, _ = agent.rssm.observe(agent.encoder(obs), action, is_first, agent.rng)
    for row, state in zip(acted, met, strict=True):
        torch.testing.assert_close(state.deter, post.deter[:, row], rtol=0, atol=1e-5)
        assert torch.equal(state.stoch, post.stoch[:, row])


def test_the_log_tells_every_episode_once(tmp_path):
    seen: list[dict] = []
    result = run(walk(seen=seen), tiny_config(evals=3), tmp_path)
    steps = [row["step"] for row in result.episodes]
    assert len(set(steps)) == len(steps) and steps == sorted(steps)
    assert sum(row["length"] for row in result.episodes) == steps[-1] <= 60
    totals, total = [], 0.0
    for event in without_evaluations(seen):
        total = 0.0 if event["event"] == "reset" else total + event["reward"]
        if event["event"] == "step" and (event["terminated"] or event["truncated"]):
            totals.append(total)
    np.testing.assert_allclose([row["return"] for row in result.episodes], totals, rtol=1e-5)
    for kind in (result.reports, result.evals):
        steps = [row["step"] for row in kind]
        assert len(set(steps)) == len(steps) and steps == sorted(steps) and steps


def without_evaluations(seen: list[dict]) -> list[dict]:
    """The events of a run without those of its evaluations, which reset 3 environments at once."""
    kept, i = [], 0
    while i < len(seen):
        if [e["event"] for e in seen[i : i + 3]] == ["reset"] * 3:
            open_episodes, i = 3, i + 3
            while open_episodes:
                open_episodes -= seen[i]["terminated"] or seen[i]["truncated"]
                i += 1
        else:
            kept.append(seen[i])
            i += 1
    return kept


def test_updates_follow_the_train_ratio_and_wait_for_the_prefill():
    config = tiny_config(steps=60, prefill=20, train_ratio=6, batch_size=3, seq_len=6)
    reports = run(walk(), config).reports
    assert reports[0]["step"] == 20
    assert [row["update"] for row in reports] == [step * 6 // 18 for step in range(20, 61)]


def test_with_repeated_actions_a_row_is_a_choice_and_counts_as_its_steps(tmp_path):
    """Rows hold what the last of 4 steps gave and the sum of their rewards. 60 steps are 15
    choices, and as many updates as without repeats."""
    seen: list[dict] = []
    config = tiny_config(action_repeat=4, train_ratio=6, batch_size=3, seq_len=6)
    result = run(walk("discrete", seen), config, tmp_path)
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    assert saved["counters"][:2] == [60, 60 * 6 // 18]

    rows, held, ends = [], [], []  # (obs, reward, is_first, is_last, is_terminal), by hand
    choices = length = 0
    for event in seen:
        if event["event"] == "reset":
            rows.append((event["obs"], 0.0, True, False, False))
            continue
        held.append(event)
        length += 1
        last = event["terminated"] or event["truncated"]
        if last or len(held) == 4:
            assert len({e["action"] for e in held}) == 1
            reward = sum(e["reward"] for e in held)
            rows.append((event["obs"], reward, False, last, event["terminated"]))
            held, choices = [], choices + 1
        if last:
            ends.append((4 * choices, length))
            length = 0
    assert choices == 15
    replay = saved["replay"]
    assert 0 <= len(rows) - len(replay["reward"]) <= 1  # the last one is not yet acted upon
    for t, (obs, reward, *flags) in enumerate(rows[: len(replay["reward"])]):
        np.testing.assert_array_equal(replay["obs"][t].numpy(), obs)
        assert replay["reward"][t].item() == pytest.approx(reward, rel=1e-6)
        names = ("is_first", "is_last", "is_terminal")
        assert [replay[name][t].item() for name in names] == flags
    assert any(row[-1] for row in rows) and any(row[-2] > row[-1] for row in rows)

    assert [(row["step"], row["length"]) for row in result.episodes] == ends
    assert any(length % 4 for _, length in ends)


def test_the_prefill_is_counted_in_steps_of_the_environment(tmp_path):
    trainer = Trainer(walk("box"), tiny_config(action_repeat=4, explore=0), tmp_path, CPU)
    random = []
    for trainer.step in range(0, 60, 4):  # before each choice
        random.append(trainer.explores())
        if random[-1]:
            trainer.explore()
            trainer.held_steps = 0
    assert random == [True] * 5 + [False] * 10  # 20 steps


def test_evaluation_holds_actions_as_training_did():
    seen: list[dict] = []
    agent = DreamerAgent(2, 3, True, tiny_config(action_repeat=4))
    (total,) = evaluate(agent, walk(seen=seen, drift=0.01), 1, seed=1, greedy=False)
    actions = [event["action"] for event in seen[1:]]
    assert len(actions) == 9
    assert all(len(set(actions[i : i + 4])) == 1 for i in (0, 4)) and len(set(actions)) > 1
    assert total == pytest.approx(sum(event["reward"] for event in seen[1:]))


def random_pushes(folder, count: int, **settings) -> list[int]:
    """Lengths of the random actions among so many choices of action, as they are held."""
    trainer = Trainer(walk("box"), Config(**settings), folder, torch.device("cpu"))
    lengths: list[int] = []
    for trainer.step in range(count):
        if trainer.explores():
            fresh = trainer.held_steps == 0
            before, action = trainer.held_action, trainer.explore()
            assert fresh != np.array_equal(action, before)
            if fresh:
                lengths.append(0)
            lengths[-1] += 1
    return lengths


def test_the_prefill_is_random_actions_that_are_held(tmp_path):
    settings = {"steps": 20_000, "prefill": 10_000, "explore": 0}
    lengths = random_pushes(tmp_path, 20_000, **settings)
    assert 10_000 <= sum(lengths) < 10_000 + PREFILL_HOLD  # and not one step after it
    assert set(lengths) == set(range(1, PREFILL_HOLD + 1))
    assert np.median(lengths) == pytest.approx(PREFILL_HOLD**0.5, abs=1)  # log-uniform


@pytest.mark.parametrize("longest", [1, 2, 64])
def test_later_random_actions_are_held_and_have_the_asked_share(tmp_path, longest):
    settings = {"prefill": 0, "explore": 0.1, "explore_hold": longest}
    lengths = random_pushes(tmp_path, 100_000, **settings)
    assert sum(lengths) == pytest.approx(10_000, rel=0.1)
    assert set(lengths) >= set(range(1, min(longest, 30) + 1)) and max(lengths) <= longest
    assert np.mean(np.array(lengths) >= longest**0.5) == pytest.approx(  # log-uniform
        1 - np.log(np.ceil(longest**0.5)) / np.log(longest + 1), abs=0.05
    )


def test_without_explore_later_actions_are_the_policys(tmp_path):
    assert random_pushes(tmp_path, 1_000, prefill=0, explore=0) == []


def test_a_held_action_ends_with_its_episode(tmp_path):
    trainer = Trainer(walk(), Config(prefill=1, explore=0), tmp_path, torch.device("cpu"))
    trainer.step, trainer.held_steps = 1, 40
    trainer.start_episode()
    assert trainer.explores()
    trainer.explore()
    assert trainer.held_steps == 39
    trainer.end_episode(terminated=False)
    assert not trainer.explores()


def test_episodes_are_reset_with_seeds_of_their_own():
    def seeds(seed):
        seen: list[dict] = []
        run(walk(seen=seen), tiny_config(seed=seed, train_ratio=0))
        return [e["seed"] for e in seen if e["event"] == "reset"]

    first, again, other = seeds(1), seeds(1), seeds(2)
    assert first == again and len(set(first)) == len(first) > 5
    assert not set(first) & set(other)
    seen: list[dict] = []
    agent = DreamerAgent(2, 3, True, tiny_config(seed=1))
    evaluate(agent, walk(seen=seen), 20, seed=1)
    fresh = [e["seed"] for e in seen if e["event"] == "reset"]
    assert len(set(fresh)) == 20 and not set(fresh) & set(first)


def test_same_seed_same_run():
    first, again, other = (run(walk(), tiny_config(seed=seed)) for seed in (1, 1, 2))
    assert same(weights(first.agent), weights(again.agent))
    assert first.episodes == again.episodes and first.reports == again.reports
    assert not same(weights(first.agent), weights(other.agent))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    """From the fifth update on, the decoder's loss is NaN."""
    calls, loss = [], Decoder.loss

    def failing(self, feat, obs):
        calls.append(1)
        return loss(self, feat, obs) * (float("nan") if len(calls) >= 5 else 1)

    monkeypatch.setattr(Decoder, "loss", failing)
    monkeypatch.setattr("dreamer.training.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(FloatingPointError, match=r"Walk: update 5 at step \d+ .*loss"):
        run(walk(), run_dir=tmp_path)
    assert len(calls) == 5
    saved = weights(load_agent(tmp_path / "checkpoint.pt"))
    assert all(p.isfinite().all() for p in saved)


# ---------------------------------------------------------------- evaluation


def test_evaluation_does_not_disturb_training():
    """A run with evaluations in between ends with the weights of a run without."""
    with_evals = run(walk(), tiny_config(evals=6))
    without = run(walk(), tiny_config(evals=0))
    assert len(with_evals.evals) >= 4 and not without.evals
    assert same(weights(with_evals.agent), weights(without.agent))
    assert with_evals.episodes == without.episodes


def test_evaluation_repeats_itself_and_leaves_all_generators_alone():
    agent = DreamerAgent(2, 3, True, tiny_config())
    states = [agent.rng.get_state(), torch.get_rng_state(), torch.tensor(np.random.get_state()[1])]
    for greedy in (True, False):
        first, again, other = (evaluate(agent, walk(), 6, seed, greedy) for seed in (1, 1, 2))
        assert first.shape == (6,) and (first == again).all() and (first != other).any()
    after = [agent.rng.get_state(), torch.get_rng_state(), torch.tensor(np.random.get_state()[1])]
    assert same(states, after)


class Named(gym.Env):
    """Every observation tells the episode's name and time, and the action must repeat them.
    An episode of name n takes n % 5 + 1 steps, each worth n."""

    observation_space = gym.spaces.Box(0, 1000, (2,), np.float32)
    action_space = gym.spaces.Box(0, 1000, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.name, self.time = seed % 997, 0
        return np.array([self.name, 0], np.float32), {}

    def step(self, action):
        np.testing.assert_allclose(action, [self.name, self.time], atol=0.01)
        self.time += 1
        obs = np.array([self.name, self.time], np.float32)
        return obs, float(self.name), self.time > self.name % 5, False, {}


class Echo:
    """In the agent's place: its action repeats the observation, and its state must come back
    with the rows of the same episodes."""

    config, device = tiny_config(), CPU
    obs_size, action_size, discrete = 2, 2, False

    def act(self, obs, is_first, state, greedy, rng):
        names = torch.from_numpy(obs[:, :1].copy())
        if state is None:
            assert is_first.all()
        else:
            assert not is_first.any()
            assert torch.equal(state.deter, names) and torch.equal(state.stoch[:, 0], names)
        return obs / 500 - 1, State(names, names[:, None], names)


def test_open_loop_error_by_hand(monkeypatch):
    """A world of one number: each action is added to it, and is the reward. The dream of a model
    that knows this is right on every row of an episode, first to last; rows of the next episode,
    which starts anew from -50, do not count."""
    replay, number, reward = ReplayBuffer(200, 1, 1), 0.0, 0.0
    rng = np.random.default_rng(0)
    for t in range(200):
        first, last = t % 10 == 0, t % 10 == 9
        if first:
            number, reward = -50.0, 0.0
        action = float(rng.integers(1, 4))
        replay.add(np.array([number]), np.array([action]), reward, first, last, last)
        number, reward = number + action, action

    class Knowing:
        config, device = SimpleNamespace(imag_horizon=4), CPU
        rssm = reward = decoder = property(lambda self: self)

        def encoder(self, obs):
            return obs

        encoder.norm = lambda obs: obs

        def observe(self, embed, action, is_first, rng):
            return None, embed[:, -1]

        def imagine(self, state, policy, horizon, rng):
            rows = [torch.cat([state, torch.zeros_like(state)], 1)]
            for t in range(horizon):
                action = policy(None, t)
                rows.append(torch.cat([rows[-1][:, :1] + action, action], 1))
            return torch.stack(rows, 1)  # (N, H+1, 2): number and reward

        def __call__(self, feat):
            return feat[..., :1]

        def predict(self, feat):
            return feat[..., 1]

    monkeypatch.setattr(evaluation, "get_feat", lambda dream: dream)
    error = evaluation.open_loop_error(Knowing(), replay, seed=3, context=2)
    assert error["dream_obs_error"] == 0 and error["dream_reward_error"] == 0

    probe = np.random.default_rng(derive_seed(3, evaluation.PROBE))
    moved = []
    for obs, is_last in zip(*map(replay.sample(64, 6, probe).get, ("obs", "is_last")), strict=True):
        for t in range(2, 6):
            if is_last[t - 1]:
                break
            moved.append(abs(obs[t, 0] - obs[1, 0]))
    assert len(moved) < 64 * 4  # some windows cross an end
    assert error["naive_obs_error"] == pytest.approx(np.mean(moved))


def test_a_function_that_gives_the_same_environment_twice_is_refused():
    env, message = walk()(), "Walk: .*must make a new one each"
    with pytest.raises(ValueError, match=message):
        evaluate(DreamerAgent(2, 3, True, tiny_config()), lambda: env, 2)
    with pytest.raises(ValueError, match=message):
        run(lambda: env, tiny_config(evals=2))


@pytest.mark.parametrize(
    ("offset", "spread", "warned"),
    [(101_325, 50, True), (0, 1e-3, True), (0, 1, False), (7, 0, False)],
)
def test_numbers_too_faint_to_be_seen_are_named(offset, spread, warned):
    """The second number: of a pressure the agent would see nothing; a constant says nothing."""

    class Faint(Walk):
        def step(self, action):
            obs, *rest = super().step(action)
            return self.seen_as(obs), *rest

        def reset(self, **kwargs):
            obs, info = super().reset(**kwargs)
            return self.seen_as(obs), info

        def seen_as(self, obs):
            return np.array([obs[0], offset + spread * obs[1]], np.float32)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(lambda: Faint(ACTION_SPACES["discrete"]()))
    found = [str(w.message) for w in caught if "hardly" in str(w.message)]
    assert len(found) == warned and all("Faint: numbers [1] of" in text for text in found)


def test_evaluation_keeps_observations_actions_and_states_of_episodes_together():
    names: list[int] = []

    class Recorded(Named):
        def reset(self, **kwargs):
            answer = super().reset(**kwargs)
            names.append(self.name)
            return answer

    returns = evaluate(Echo(), Recorded, 12, seed=3)
    assert len({n % 5 for n in names}) > 2  # episodes of different lengths
    assert returns.tolist() == [n * (n % 5 + 1) for n in names]


class Clock(gym.Env):
    """Three steps, each worth 1, then the task or the time is over."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, terminated: bool):
        self.terminated = terminated

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time == 3
        return np.zeros(1, np.float32), 1.0, over and self.terminated, over, {}


@pytest.mark.parametrize("terminated", [True, False])
def test_calibration_by_hand(terminated):
    """γ = 0.5, three rewards of 1; a constant critic. A time limit bootstraps on it."""
    agent = DreamerAgent(1, 2, True, tiny_config(gamma=0.5))
    with torch.no_grad():
        agent.critic.mlp[-1].bias[160] = 100  # sure of one bin
    value = agent.critic.bins[160].item()
    assert value > 1
    returns, details = evaluate(agent, lambda: Clock(terminated), 2, 0, details=True)
    behind = 0.0 if terminated else value
    achieved = [1.75 + behind / 8, 1.5 + behind / 4, 1 + behind / 2]
    assert returns.tolist() == [3.0, 3.0]
    assert details["value_pred"] == pytest.approx(value, rel=1e-5)
    assert details["value_real"] == pytest.approx(np.mean(achieved), rel=1e-5)
    assert details["value_corr"] == 0.0  # a constant correlates with nothing


def test_calibration_discounts_from_choice_to_choice():
    """Three rewards of 1, of which the first two come with one choice; γ = 0.5."""
    agent = DreamerAgent(1, 2, True, tiny_config(gamma=0.5, action_repeat=2))
    returns, details = evaluate(agent, lambda: Clock(True), 2, 0, details=True)
    assert returns.tolist() == [3.0, 3.0]
    assert details["value_real"] == pytest.approx(np.mean([2.5, 1.0]))


def test_random_returns_are_those_of_whole_episodes():
    assert random_returns(lambda: Clock(True), 4).tolist() == [3.0] * 4
    mean = random_returns("CartPole-v1", 200).mean()
    assert 19 < mean < 26  # about 22.3, with a standard error of 0.8


# ---------------------------------------------------------------- resume


def interrupted_walk(kind: str, at: list[int]):
    """A `walk` that gets a Ctrl-C at about these steps of the run; and each time is made anew by a
    later `train`, which takes the steps of the present episode again."""
    clock = SimpleNamespace(alarms=list(at))

    class Interrupted(Walk):
        taken = 0

        def step(self, action):
            answer = super().step(action)
            self.taken += 1
            if clock.alarms and self.taken + self.offset == clock.alarms[0]:
                clock.alarms.pop(0)
                signal.raise_signal(signal.SIGINT)
            return answer

    Interrupted.__name__ = "Walk"
    Interrupted.offset = 0

    def make(offset: int):
        def env():
            world = Interrupted(ACTION_SPACES[kind]())
            world.offset = offset
            return world

        return env

    return make, clock


@pytest.mark.parametrize(
    ("kind", "repeat", "alarms"),
    [
        ("discrete", 1, [13, 32, 33, 51]),
        ("box", 1, [13, 32, 33, 51]),
        ("discrete", 3, [13, 29, 36, 51]),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(kind, repeat, alarms, tmp_path):
    """Ctrl-C within the prefill, in mid-episode, and again soon after: weights, optimiser, replay,
    generators and log are those of a run that was never stopped, number for number."""
    # An update every 4.5 steps, a report every step: some stops fall between updates.
    config = tiny_config(evals=3, explore=0.3, explore_hold=6, action_repeat=repeat)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(walk(kind), config, whole)
    make, clock = interrupted_walk(kind, alarms)
    offset = stops = mid_episode = 0
    while clock.alarms:
        with pytest.raises(KeyboardInterrupt):
            run(make(offset), config, parts, resume=True)
        saved = load_checkpoint(parts / "checkpoint.pt")
        again = repeat * len(saved["episode_actions"])  # steps that the next `train` takes again
        offset = saved["counters"][0] - again
        stops += 1
        mid_episode += again > 0
    assert stops == 4 and mid_episode >= 3
    result = run(make(offset), config, parts, resume=True)

    first, second = (load_checkpoint(path / "checkpoint.pt") for path in (whole, parts))
    for value in (first, second):
        del value["minutes"], value["log_size"]
    assert flat(first) == flat(second)
    assert len(flat(first)) > 100
    logs = [read_rows(path / "log.jsonl") for path in (whole, parts)]
    assert logs[0] == logs[1]
    keys = [(row["kind"], row["step"]) for row in logs[1]]
    assert len(keys) == len(set(keys)) and {kind for kind, _ in keys} == {
        "episode",
        "report",
        "eval",
    }
    assert len(result.evals) == 3


def read_rows(path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "minutes"} for row in rows]


def flat(value, name: str = "") -> dict[str, object]:
    """A nested checkpoint as one dictionary of plain numbers."""
    if isinstance(value, torch.Tensor):
        return {name: value.tolist()}
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in items for k, v in flat(part, f"{name}.{key}").items()}
    return {name: value}


def test_without_resume_a_run_starts_anew(tmp_path):
    first = run(walk(), run_dir=tmp_path)
    again = run(walk(), run_dir=tmp_path)
    assert first.episodes == again.episodes
    assert same(weights(first.agent), weights(again.agent))


def test_a_finished_run_is_not_trained_on(tmp_path):
    first = run(walk(), run_dir=tmp_path)
    again = run(walk(), run_dir=tmp_path, resume=True)
    assert same(weights(first.agent), weights(again.agent))
    assert first.episodes == again.episodes
    assert again.minutes == pytest.approx(first.minutes, abs=0.01) and again.minutes > 0
    assert again.cpu_minutes == pytest.approx(first.cpu_minutes, abs=0.01) and again.cpu_minutes > 0


def test_a_loaded_agent_acts_as_the_trained_one(tmp_path):
    agent = run(walk("box"), run_dir=tmp_path).agent
    loaded = load_agent(tmp_path / "checkpoint.pt", "cpu")
    assert same(weights(agent), weights(loaded))
    assert (evaluate(agent, walk("box"), 5, 1) == evaluate(loaded, walk("box"), 5, 1)).all()


def test_evaluate_says_what_does_not_fit():
    agent = DreamerAgent(1, 2, True, tiny_config())
    with pytest.raises(ValueError, match=r"(?s)Pendulum.*\(3, 1, False\).*\(1, 2, True\)"):
        evaluate(agent, "Pendulum-v1", 1)
    with pytest.raises(ValueError, match="at least 1 episode, got 0"):
        evaluate(agent, walk(), 0)
    env = gym.make("CartPole-v1")
    with pytest.raises(ValueError, match="pass its id, or a function"):
        evaluate(agent, env, 1)
    env.close()


def test_without_tensorboard_nothing_is_touched(tmp_path, monkeypatch):
    run(walk(), run_dir=tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        run(walk(), run_dir=tmp_path, tensorboard=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# ---------------------------------------------------------------- learning


def test_it_learns_cartpole():
    """3,000 environment steps: far beyond the 22 of random actions. (A minute or two. Rounding
    differs between processors: three seeds of one, for a measure, had 205, 288 and 448.)"""
    config = Config(
        steps=3000,
        prefill=500,
        train_ratio=128,
        deter=64,
        hidden=64,
        layers=1,
        categoricals=8,
        classes=8,
        batch_size=8,
        seq_len=16,
        imag_starts=64,
        evals=0,
    )
    agent = run("CartPole-v1", config).agent
    returns = evaluate(agent, "CartPole-v1", 20, seed=1)
    assert returns.mean() > 150, returns
