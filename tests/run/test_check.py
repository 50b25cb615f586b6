"""`python -m dreamer check`: the page to read before an hour is spent."""

import re
import time

import gymnasium as gym
import numpy as np
import pytest
from conftest import tiny_config, walk

import dreamer.check
from dreamer.check import check, entries, step_size
from dreamer.envs import EnvFault


def page(env, **changes):
    rows = list(check(env, tiny_config(**changes)))
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_a_page_on_cartpole():
    many = {"steps": 40_000, "capacity": 50_000}
    found = page("CartPole-v1", train_ratio=4.5, evals=3, eval_episodes=7, **many)
    assert found["environment"] == "CartPole-v1"
    assert found["observations"].endswith("(4,), float32): 4 numbers")
    assert found["actions"] == "Discrete(2): one-hot vectors of [2]"
    assert found["time limit"] == "500 steps"
    assert found["reset by a seed"] == "repeats itself"
    assert found["rewards"] == "1 to 1, mean 1"
    assert found["evaluations"].startswith("3 of up to 7 episodes, at most 0.5 steps for each")
    assert found["learning"] == "9,995 updates in 40,000 steps"
    # A row: 4 numbers and the reward in float32, the class in int32, three flags, the state as 12
    # numbers in float16 and 3 classes in int16.
    row = 4 * 4 + 4 + 4 + 3 + 2 * 12 + 2 * 3
    assert found["replay"] == f"50,000 rows or fewer, {50_000 * row / 1e6:,.1f} MB"
    assert "warning" not in found and "never varied" not in found
    assert found["rendering"] == "human, rgb_array"
    mean, _, episodes = found["random return"].partition(", mean of ")
    played = float(mean) * int(episodes.removesuffix(" episodes"))  # of 1,000 actions, 1 for each
    assert 15 < float(mean) < 30 and 900 < played < 1001
    most = re.match(
        r"at most (\d+\.\d) minutes of simulation, with evaluations; the ", found["time"]
    )
    speed = float(found["speed"].split()[0].replace(",", ""))  # steps a second
    assert float(most[1]) == pytest.approx(40_000 * 1.5 / speed / 60, abs=0.06)


def test_a_mask_categories_and_large_actions():
    found = page("Taxi-v4")
    assert found["actions"] == "Discrete(6): one-hot vectors of [6]"
    assert found["observations"] == "Discrete(500): 506 numbers"
    assert "never chosen" in found["action mask"] and "one action moves" not in found


def test_an_environment_without_an_end():
    found = page("CliffWalking-v1", max_episode_steps=5000)
    assert found["time limit"] == "none known; an episode is cut after 5,000 steps " + (
        "(max_episode_steps)"
    )
    assert found["random episodes"].startswith("none ended")
    assert found["set first"].startswith("max_episode_steps, as no episode ended")
    assert found["random return"].startswith("none ended in 1,000 actions (")


class Slow(gym.Env):
    """One number that never varies, no pictures, no end, and a twentieth of a second for a step."""

    metadata: dict = {}
    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))
    closed = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        time.sleep(0.05)
        return np.zeros(1, np.float32), 1.0, False, False, {}

    def close(self):
        Slow.closed += 1


def test_a_slow_environment(monkeypatch):
    monkeypatch.setattr(dreamer.check, "SECONDS", 0.01)
    found = page(Slow, steps=144_000, evals=5, eval_cost=1)
    assert found["observations"].endswith(": 1 number") and found["actions"].endswith(": 1 number")
    assert found["random episodes"] == "none ended, in 1 action"
    assert found["random return"] == "none ended in 1 action (0.1 s)"
    assert found["set first"].startswith("max_episode_steps, perhaps (too slow to say); ")
    assert found["rendering"] == "none: watch will not work"
    assert found["never varied"] == "1 of 1 number: 0"
    hours = float(found["time"].split()[2])  # 2 x 144,000 steps of 0.05 s are 4 hours
    assert found["time"].split()[3] == "hours" and 4 <= hours < 8


def test_the_environment_is_closed_on_every_way_out(monkeypatch):
    monkeypatch.setattr(Slow, "closed", 0)
    monkeypatch.setattr(dreamer.check, "STEPS", 1)
    page(Slow)
    assert Slow.closed == 1
    monkeypatch.setattr(Slow, "step", None)
    with pytest.raises(EnvFault):
        page(Slow)
    assert Slow.closed == 2
    half = check(Slow, tiny_config())
    next(half)
    half.close()
    assert Slow.closed == 3


def test_each_entry_of_an_observation_has_a_name():
    box, spaces = gym.spaces.Box(0, 1, (2,)), gym.spaces
    nested = spaces.Tuple([box, spaces.Discrete(2)])
    space = spaces.Dict(goal=box, arm=spaces.Dict(joint=spaces.MultiBinary(1)), more=nested)
    value = spaces.flatten(
        space, {"goal": [1, 2], "arm": {"joint": [3]}, "more": ([4, 5], np.int64(1))}
    )
    assert dict(zip(entries(space), value.tolist(), strict=True)) == {
        **{"goal[0]": 1, "goal[1]": 2, "arm.joint[0]": 3},
        **{"more[0][0]": 4, "more[0][1]": 5, "more[1][0]": 0, "more[1][1]": 1},
    }
    assert entries(box) == ["0", "1"]


def test_what_is_odd_is_said():
    class Odd(gym.ObservationWrapper):
        def observation(self, observation):
            return np.float32([7, np.random.default_rng().uniform()])

    found = page(lambda: Odd(gym.wrappers.NormalizeReward(walk()())))
    assert found["reset by a seed"].startswith("differs")
    assert found["warning"].startswith("NormalizeReward keeps running statistics")
    assert found["never varied"] == "1 of 2 numbers: 0"


def test_how_far_one_action_moves_by_hand():
    obs = np.array([[0.0, 5, 0], [1, 5, 1], [0, 5, 0], [1, 5, 1]])  # spread 1/2, steps of 1
    assert step_size(obs, np.array([True, True, False])) == pytest.approx(2)
    assert step_size(obs, np.array([False, True, False])) is None
    assert "try a larger action_repeat" in page("LunarLander-v3")["one action moves"]
    assert "action_repeat" not in page("CartPole-v1")["one action moves"]


def test_a_fault_of_the_environment_is_named():
    class Broken(gym.Wrapper):
        def step(self, action):
            return *super().step(action)[:3], {}

    with pytest.raises(EnvFault, match="step at step 1 returned 4 values"):
        page(lambda: Broken(walk()()))
