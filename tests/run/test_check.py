"""`python -m dreamer check`: the page to read before an hour is spent."""

import re
import time

import gymnasium as gym
import numpy as np
import pytest
from conftest import tiny_config, walk

import dreamer.check
from dreamer.check import check
from dreamer.envs import EnvFault


def page(env, **changes):
    rows = list(check(env, tiny_config(**changes)))
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_a_page_on_cartpole():
    many = {"steps": 40_000, "capacity": 30_000}
    found = page("CartPole-v1", train_ratio=4.5, evals=3, eval_episodes=7, **many)
    assert found["environment"] == "CartPole-v1"
    assert found["observations"].endswith("(4,), float32)") and found["actions"] == "Discrete(2)"
    assert found["layout"] == "numbers=4, action_categories=(2,)"
    assert found["time limit"] == "500 steps"
    assert found["reset by a seed"] == "repeats itself"
    assert found["rendering"] == "human, rgb_array"
    assert found["rewards"] == "1 to 1, mean 1"
    episodes, low, high = map(int, re.findall(r"\d+", found["random episodes"])[:3])
    mean = float(found["random episodes"].split()[-1])
    assert 900 < mean * episodes < 1001 and low < 20 < high
    assert found["learning"].startswith("9,995 updates in 40,000 steps, ")
    # A row: 4 numbers, 2 action entries and the reward in float32, three flags, the state as 12
    # numbers in float16 and 3 classes in int16.
    row = 4 * (4 + 2 + 1) + 3 + 2 * (12 + 3)
    assert found["replay"] == f"about 30,000 rows, {30_000 * row / 1e6:,.1f} MB"
    assert found["evaluations"].startswith("3 of 7 episodes: at most 10,500 steps, ")
    speed = float(found["speed"].split()[0].replace(",", ""))  # steps a second
    update = float(re.search(r"(\d+) ms each", found["learning"])[1]) / 1000
    minutes = float(found["time"].split()[1].replace(",", ""))
    assert minutes * 60 == pytest.approx(40_000 / speed + 9_995 * update, abs=9_995 * 0.0006 + 4)
    assert not any(name.startswith(("warning", "never")) for name in found)


class Slow(gym.Env):
    """A number that never varies, one out of bounds, no pictures, no end, no reward, slow steps."""

    metadata: dict = {}
    observation_space = gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (1,)), b=gym.spaces.Box(0, 9, (2,)))
    action_space = gym.spaces.Box(-1, 1, (1,))
    closed = 0

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.seen(), {}

    def step(self, action):
        time.sleep(0.05)
        self.time += 1
        return self.seen(), 0.0, False, False, {}

    def seen(self):
        return {"a": [0.5], "b": [3, 10 * self.time]}

    def close(self):
        Slow.closed += 1


def test_what_is_odd_is_said(monkeypatch):
    monkeypatch.setattr(dreamer.check, "SECONDS", 0.12)
    found = page(Slow, steps=144_000, evals=5, eval_episodes=2, max_episode_steps=700)
    assert found["random episodes"] == "none ended in 3 random actions"
    assert found["warning"].startswith("no reward at all in 3 random actions")
    assert found["out of bounds"] == "1 of 3: b[1]"
    assert found["never varied"] == "2 of 3: a, b[0]"
    assert found["rendering"] == "none: watch will not work"
    assert found["time limit"] == "700 steps"
    assert found["evaluations"].startswith("5 of 2 episodes: at most 7,000 steps, ")
    assert 120 < float(found["time"].split()[1]) < 180  # 144,000 steps of 0.05 s: two hours


def test_a_mask_and_an_unseeded_environment():
    found = page("Taxi-v4")
    assert found["layout"] == "flags=6, categories=(500,), action_categories=(6,)"
    assert "one action moves" not in found and "out of bounds" not in found

    class Forgetful(gym.ObservationWrapper):
        def observation(self, observation):
            return np.random.default_rng().random(2)

    assert page(lambda: Forgetful(walk()()))["reset by a seed"].startswith("differs")


def test_a_fault_is_named_and_the_environment_is_closed(monkeypatch):
    monkeypatch.setattr(Slow, "closed", 0)
    monkeypatch.setattr(Slow, "step", lambda self, action: 7)
    with pytest.raises(EnvFault, match="^Slow: step at step 1 must return observation, reward"):
        page(Slow)
    half = check(Slow, tiny_config())
    next(half)
    half.close()
    assert Slow.closed == 2
