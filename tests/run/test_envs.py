"""Environments as the agent sees them: scaled actions, odd observations, and what is refused."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from conftest import ACTION_SPACES, Odd, Walk, lived, quiet_train, tiny_config, walk
from hypothesis import given
from hypothesis import strategies as st

from dreamer import evaluate
from dreamer.agent import DreamerAgent
from dreamer.checkpoint import load_checkpoint
from dreamer.envs import AgentEnv, EnvFault
from dreamer.evaluation import random_returns

# ---------------------------------------------------------------- actions


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
    if env.segments:
        assert env.segments == (env.action_size,)
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
    taken = lived(seen)[1:]
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


def test_an_action_that_the_environment_changes_is_held_all_the_same():
    seen: list[float] = []

    class Greedy(Walk):
        def step(self, action):
            seen.append(float(action[0]))
            action *= 0.5
            return super().step(action)

    env = AgentEnv(lambda: Greedy(ACTION_SPACES["box"](), drift=0.01), action_repeat=3)
    env.reset(seed=0)
    env.step(np.float32([1, 1]))
    assert seen == [2.0, 2.0, 2.0]


# ---------------------------------------------------------------- other spaces

SPACES = gym.spaces


@pytest.mark.parametrize(
    ("space", "action", "native"),
    [
        (SPACES.MultiDiscrete([3, 2]), [0, 0, 1, 1, 0], [2, 0]),
        (SPACES.MultiBinary(4), [0, 1, 1, 0, 1, 0, 0, 1], [1, 0, 0, 1]),
        (SPACES.Box(-1, 1, (2, 2)), [0.5, -1, 0, 9], [[0.5, -1], [0, 1]]),
    ],
    ids=str,
)
def test_actions_of_several_parts_by_hand(space, action, native):
    """`Walk` itself refuses actions outside its space."""
    env = AgentEnv(lambda: Walk(space))
    found = env.native_action(np.float32(action))
    assert space.contains(found) and env.action_size == len(action)
    np.testing.assert_array_equal(found, native)
    agent = quiet_train(lambda: Walk(space)).agent
    assert (agent.action_size, agent.segments) == (env.action_size, env.segments)
    assert all(p.isfinite().all() for p in agent.parameters())


class Seeing(Walk):
    """A walk of which one thing is observed, always the same."""

    def __init__(self, space: gym.Space, thing: object):
        super().__init__(ACTION_SPACES["discrete"]())
        self.observation_space, self.thing = space, thing

    def reset(self, **kwargs):
        return self.thing, super().reset(**kwargs)[1]

    def step(self, action):
        return self.thing, *super().step(action)[1:]


@pytest.mark.parametrize(
    ("space", "thing", "obs"),
    [
        (SPACES.Discrete(5), 3, [0, 0, 0, 1, 0]),
        (SPACES.Box(-1, 1, ()), 0.5, [0.5]),
        (SPACES.Box(-1, 1, (2, 2)), [[0.5, 0.25], [-1, 1]], [0.5, 0.25, -1, 1]),
        (SPACES.Dict({"x": SPACES.Box(-1, 1, (2,))}), {"x": np.float32([0.5, -1])}, [0.5, -1]),
    ],
    ids=str,
)
def test_observations_of_every_shape_become_vectors_by_hand(space, thing, obs):
    env = AgentEnv(lambda: Seeing(space, thing))
    assert env.obs_size == len(obs)
    for found in (env.reset(0), env.step(np.eye(3)[0])[0]):
        assert found.tolist() == obs and found.dtype == np.float32
    run = quiet_train(lambda: Seeing(space, thing))
    assert run.replay.rows["obs"][0].tolist() == obs
    assert all(p.isfinite().all() for p in run.agent.parameters())


# ---------------------------------------------------------------- what is refused


def test_an_environment_in_the_place_of_its_maker_is_refused():
    env = gym.make("CartPole-v1")
    with pytest.raises(ValueError, match="pass an environment's id, or a function"):
        AgentEnv(env)
    env.close()


def test_a_function_that_gives_the_same_environment_twice_is_refused():
    env, message = walk()(), "Walk: .*must make a new one each"
    with pytest.raises(ValueError, match=message):
        evaluate(DreamerAgent(2, 3, True, tiny_config()), lambda: env, 2)
    with pytest.raises(ValueError, match=message):
        quiet_train(lambda: env, tiny_config(evals=2))


# ---------------------------------------------------------------- what comes back


def failing(error: Exception):
    def change(*values):
        raise error

    return change


FAULTS = {
    "NaN observation": (
        lambda obs, *r: (obs * np.nan, *r),
        r"observation at step 3 is not finite in float32: \[nan nan\]",
    ),
    "infinite observation": (
        lambda obs, *r: (np.array([1, np.inf]), *r),
        r"observation at step 3 is not finite in float32: \[ ?1\. inf\]",
    ),
    "too large for float32": (
        lambda obs, *r: (obs.astype(np.float64) * 1e300, *r),
        "observation at step 3 is not finite in float32: .*e\\+",
    ),
    "NaN reward": (
        lambda obs, reward, *r: (obs, float("nan"), *r),
        "reward at step 3 is not finite in float32: nan",
    ),
    "infinite reward": (
        lambda obs, reward, *r: (obs, -np.inf, *r),
        "reward at step 3 is not finite in float32: -inf",
    ),
    "a reward too large for float32": (
        lambda obs, reward, *r: (obs, -1e39, *r),
        "reward at step 3 is not finite in float32: -1e\\+39",
    ),
    "no reward": (
        lambda obs, reward, *r: (obs, "much", *r),
        "reward at step 3 is not a number: 'much'",
    ),
    "another shape": (
        lambda obs, *r: (np.zeros(3), *r),
        r"observation at step 3 is not 2 numbers: array\(\[0., 0., 0.\]\)",
    ),
    "an error": (
        failing(ZeroDivisionError("no gravity")),
        "step at step 3 raised ZeroDivisionError: no gravity",
    ),
}


@pytest.mark.parametrize("change, message", FAULTS.values(), ids=FAULTS)
def test_a_fault_names_environment_step_and_value(change, message):
    env = AgentEnv(lambda: Odd(change, 3))
    env.reset(seed=0)
    action = np.eye(3)[0]
    env.step(action), env.step(action)
    with pytest.raises(EnvFault, match="^Odd: " + message):
        env.step(action)


def test_the_sum_of_a_held_actions_rewards_must_be_finite():
    env = AgentEnv(lambda: Odd(lambda obs, *_: (obs, 2e38, False, False)), action_repeat=4)
    env.reset(seed=0)
    with pytest.raises(EnvFault, match="reward at step 4 is not finite in float32: 7.9+.*e\\+38"):
        env.step(np.eye(3)[0])


BUFFER = np.zeros(2, np.float32)


def reused(obs, *rest):
    BUFFER[:] = obs
    return BUFFER, *rest


ODD = {  # what comes back -> the observations that must be learned from
    "float64": (lambda obs, *r: (obs.astype(np.float64), *r), lambda obs: obs),
    "uint8": (lambda obs, *r: (np.uint8([7, 255]), *r), lambda obs: [7, 255]),
    "list": (lambda obs, *r: (obs.tolist(), *r), lambda obs: obs),
    "not contiguous": (lambda obs, *r: (np.repeat(obs, 3)[::3], *r), lambda obs: obs),
    "one buffer": (reused, lambda obs: obs),
    "far outside": (lambda obs, *r: (obs * 1e30, *r), lambda obs: obs * np.float32(1e30)),
}


@pytest.mark.parametrize("change, expected", ODD.values(), ids=ODD)
def test_unusual_observations_are_learned_from(tmp_path, change, expected):
    seen: list[dict] = []
    agent = quiet_train(lambda: Odd(change, seen=seen), tiny_config(steps=40), tmp_path).agent
    assert all(p.isfinite().all() for p in agent.parameters())
    steps = [i for i, event in enumerate(seen) if event["event"] == "step"]
    replay = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    rows = np.array([expected(seen[i]["obs"]) for i in steps], np.float32)
    arrived = replay["obs"][~replay["is_first"]].numpy()
    np.testing.assert_allclose(arrived, rows[: len(arrived)], rtol=1e-6)
    assert len(arrived) >= 39


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_huge_rewards_and_one_step_episodes_are_learned_from(kind):
    rewards = iter([1e8, -1e8] * 1000)
    change = lambda obs, *_: (obs, next(rewards), True, False)  # noqa: E731
    agent = quiet_train(lambda: Odd(change, kind=kind), tiny_config(steps=50, evals=1)).agent
    assert all(p.isfinite().all() for p in agent.parameters())


@pytest.mark.parametrize("repeat", [1, 4])  # 25 is no multiple of 4
def test_an_endless_episode_is_cut_in_training_and_evaluation(tmp_path, repeat):
    settings = {"max_episode_steps": 25, "evals": 1, "eval_cost": 9, "action_repeat": repeat}
    endless = lambda: Odd(lambda obs, reward, *_: (obs, reward, False, False))  # noqa: E731
    with pytest.warns(UserWarning, match="Odd: an episode that did not end in 25 steps was cut"):
        run = quiet_train(endless, tiny_config(**settings), tmp_path)
    assert [row["length"] for row in run.episodes] == [25, 25]
    assert [(row["length"], len(row["returns"])) for row in run.evals] == [(25, 1)]
    replay = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    assert replay["is_last"].sum() == 2 and not replay["is_terminal"].any()
    with pytest.warns(UserWarning, match="cut"):
        assert len(evaluate(run.agent, endless, 2)) == 2
    with pytest.warns(UserWarning, match="cut"):
        assert len(random_returns(endless, 2)) == 2
