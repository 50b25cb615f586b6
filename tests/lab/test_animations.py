"""States are set exactly; ghosts are what moves in dreams; GIFs hold every picture."""

import os
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from lab import animations, style

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
ENVS = list(style.OBS_NAMES)


def own_observation(env):
    """What the environment itself says of where it is now; of the lander without velocities."""
    world = env.unwrapped
    if env.spec.id == "LunarLander-v3":  # it observes only in `step`: let no time pass there
        physics, world.world = world.world, SimpleNamespace(Step=lambda *_: None)
        obs = world.step(0)[0]
        world.world = physics
        return obs[[0, 1, 4, 6, 7]]
    names = {"CartPole-v1": "state", "Pendulum-v1": "_get_obs", "Acrobot-v1": "_get_ob"}
    found = getattr(world, names[env.spec.id])
    return np.array(found() if callable(found) else found, np.float32)


@pytest.mark.parametrize("env_id", ENVS)
def test_state_set_from_an_observation_is_observed_as_such(env_id):
    env, other = gym.make(env_id), gym.make(env_id)
    env.reset(seed=1)
    env.action_space.seed(1)
    other.reset(seed=2)
    for _ in range(25):
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        animations.set_state(other, obs)
        seen = obs[[0, 1, 4, 6, 7]] if env_id == "LunarLander-v3" else obs
        np.testing.assert_allclose(own_observation(other), seen, atol=2e-5)
        if env_id in ("Pendulum-v1", "Acrobot-v1"):  # a dreamed angle may leave the circle
            dreamed = obs.copy()
            dreamed[: 2 if env_id == "Pendulum-v1" else 4] *= 0.7
            animations.set_state(other, dreamed)
            np.testing.assert_allclose(own_observation(other), obs, atol=2e-5)
        if terminated or truncated:
            env.reset()


def test_ghosts_show_through_behind_what_is_real():
    white, black = np.full((1, 5, 3), 255, np.uint8), np.zeros(3, np.uint8)
    real, one, two = (white.copy() for _ in range(3))
    real[0, 0] = real[0, 1] = black  # pixels: real; real and dreamed; one dream; both; nothing
    one[0, 1] = one[0, 2] = one[0, 3] = black
    two[0, 3] = black
    picture = animations.lay_behind(real, [one, two], white)
    tint = animations.TINT
    np.testing.assert_array_equal(picture[0, :2], [black, black])
    np.testing.assert_allclose(picture[0, 2], 0.55 * 255 + 0.45 * tint, atol=1)
    np.testing.assert_allclose(picture[0, 3], 0.3025 * 255 + 0.6975 * tint, atol=1)
    np.testing.assert_array_equal(picture[0, 4], white[0, 4])
    np.testing.assert_array_equal(animations.lay_behind(real, [], white), real)


def frames_of(path):
    with Image.open(path) as gif:
        for i in range(gif.n_frames):
            gif.seek(i)
            yield np.asarray(gif.convert("RGB")), gif.info["duration"]


def test_a_gif_holds_every_picture_under_its_caption(tmp_path):
    """Without the rows of pixels in which nothing happens; the last one stays for a while."""
    pictures = np.full((4, 400, 300, 3), 200, np.uint8)
    pictures[range(4), [150, 160, 170, 180]] = 0  # the only rows that ever change
    animations.write_gif(pictures, ["", "a", "b", "long caption"], "title", tmp_path / "dream.gif")
    ink = []  # of the captions
    with Image.open(tmp_path / "dream.gif") as gif:
        for i in range(4):
            gif.seek(i)
            frame, last = np.asarray(gif.convert("RGB")), i == 3
            assert frame.shape == (48 + 30 + 30 + 30, 300, 3) and gif.n_frames == 4
            assert (frame[48:].max((1, 2)) < 60).nonzero()[0].tolist() == [30 + 10 * i]
            assert gif.info["duration"] == (2500 if last else 60)
            assert (frame[:24].min(-1) < 128).sum() > 50  # the title
            ink.append((frame[24:48].min(-1) < 128).sum())
    assert ink[0] == 0 < ink[1] <= ink[2] < ink[3]
