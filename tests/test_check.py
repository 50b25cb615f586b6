"""`python -m dreamer check`: the page to read before an hour is spent."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import tiny_config, walk

from dreamer.check import check, step_size
from dreamer.envs import EnvFault


def page(env, **changes):
    rows = list(check(env, tiny_config(**changes)))
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_a_page_on_cartpole():
    found = page("CartPole-v1", steps=400, train_ratio=4.5, evals=3, eval_episodes=7)
    assert found["environment"] == "CartPole-v1"
    assert found["observations"].endswith("(4,), float32): 4 numbers")
    assert found["actions"] == "Discrete(2): one-hot vectors of [2]"
    assert found["time limit"] == "500 steps"
    assert found["reset by a seed"] == "repeats itself"
    assert found["rewards"] == "1 to 1, mean 1"
    assert found["evaluations"].startswith("3 of up to 7 episodes, at most 0.5 steps for each")
    assert found["learning"] == "100 updates in 400 steps"
    # A row: 4 numbers and the reward in float32, the class in int32, three flags.
    assert found["replay"] == f"500 rows or fewer, {500 * (4 * 4 + 4 + 4 + 3) / 1e6:,.1f} MB"
    assert "warning" not in found and "never varied" not in found


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


def test_what_is_odd_is_said():
    class Odd(gym.ObservationWrapper):
        def observation(self, observation):
            return np.float32([7, np.random.default_rng().uniform()])

    found = page(lambda: Odd(gym.wrappers.NormalizeReward(walk()())))
    assert found["reset by a seed"].startswith("differs")
    assert found["warning"].startswith("NormalizeReward keeps running statistics")
    assert found["never varied"] == "1 of 2 numbers, the first is 0"


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
