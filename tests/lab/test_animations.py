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


# ---------------------------------------------------------------- states from observations


def own_observation(env):
    """What the environment itself says of its present state."""
    world = env.unwrapped
    if env.spec.id == "LunarLander-v3":  # it observes only in `step`: let no time pass there
        physics, world.world = world.world, SimpleNamespace(Step=lambda *_: None)
        obs = world.step(0)[0]
        world.world = physics
        return obs
    names = {"CartPole-v1": "state", "Pendulum-v1": "_get_obs", "Acrobot-v1": "_get_ob"}
    found = getattr(world, names[env.spec.id])
    return np.array(found() if callable(found) else found, np.float32)


@pytest.mark.parametrize("env_id", ENVS)
def test_state_set_from_an_observation_is_observed_as_such(env_id):
    env = gym.make(env_id)
    env.reset(seed=1)
    env.action_space.seed(1)
    seen = []
    for _ in range(25):
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append(obs)
        if terminated or truncated:
            env.reset()
    other = gym.make(env_id)
    other.reset(seed=2)
    for obs in seen:
        animations.set_state(other, obs)
        np.testing.assert_allclose(own_observation(other), obs, atol=2e-5)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Acrobot-v1"])
def test_dreamed_angles_need_not_lie_on_the_circle(env_id):
    env = gym.make(env_id)
    obs, _ = env.reset(seed=3)
    dreamed = obs.copy()
    dreamed[: 2 if env_id == "Pendulum-v1" else 4] *= 0.7
    animations.set_state(env, dreamed)
    np.testing.assert_allclose(own_observation(env), obs, atol=1e-5)


def test_lander_keeps_its_legs():
    env = gym.make("LunarLander-v3")
    env.reset(seed=1)
    world = env.unwrapped
    animations.set_state(env, np.array([0.3, 0.5, 0, 0, 0.8, 0, 0, 1]))
    for leg in world.legs:  # the joint's two ends are one point
        np.testing.assert_allclose(leg.joint.anchorA, leg.joint.anchorB, atol=1e-4)
        assert leg.joint.lowerLimit - 1e-4 <= leg.joint.angle <= leg.joint.upperLimit + 1e-4
    assert [leg.ground_contact for leg in world.legs] == [False, True]


@pytest.mark.parametrize("env_id", ENVS)
def test_pictures_follow_the_observation(env_id):
    env = gym.make(env_id)
    first, _ = env.reset(seed=1)
    env.close()
    moved = first * 0.5 + 0.2
    same, again, other = animations.render_observations(env_id, np.stack([first, first, moved]), 1)
    assert same.ndim == 3 and same.shape[2] == 3 and same.dtype == np.uint8
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)


# ---------------------------------------------------------------- ghosts


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v3"])
def test_the_scenery_holds_nothing_that_moves(env_id):
    """Put far outside the picture, cart and lander leave the same picture behind."""
    size = len(style.OBS_NAMES[env_id])
    away = np.zeros((1, size))
    away[0, 0] = 100
    (empty,) = animations.render_observations(env_id, away, seed=3)
    np.testing.assert_array_equal(animations.scenery(env_id, size, seed=3), empty)


def test_ghosts_show_through_behind_what_is_real():
    white, black = np.full((1, 5, 3), 255, np.uint8), np.zeros(3, np.uint8)
    real, one, two = (white.copy() for _ in range(3))
    real[0, 0] = real[0, 1] = black  # pixels: real; real and dreamed; one dream; both; nothing
    one[0, 1] = one[0, 2] = one[0, 3] = black
    two[0, 3] = black
    picture = animations.ghosts(real, [one, two], white)
    tint = animations.TINT
    np.testing.assert_array_equal(picture[0, :2], [black, black])
    np.testing.assert_allclose(picture[0, 2], 0.55 * 255 + 0.45 * tint, atol=1)
    np.testing.assert_allclose(picture[0, 3], 0.3025 * 255 + 0.6975 * tint, atol=1)
    np.testing.assert_array_equal(picture[0, 4], white[0, 4])
    np.testing.assert_array_equal(animations.ghosts(real, [], white), real)


def frames_of(path):
    with Image.open(path) as gif:
        for i in range(gif.n_frames):
            gif.seek(i)
            yield np.asarray(gif.convert("RGB")), gif.info["duration"]


def test_a_gif_holds_every_picture_under_its_caption(tmp_path):
    pictures = [np.full((30, 300, 3), 50 * i, np.uint8) for i in range(5)]
    captions = ["", "a", "b", "b", "long caption"]
    size = animations.write_gif(pictures, captions, "title", tmp_path / "dream.gif")
    assert size == (tmp_path / "dream.gif").stat().st_size
    frames = list(frames_of(tmp_path / "dream.gif"))
    assert len(frames) == 5
    assert [duration for _, duration in frames] == [60] * 4 + [2500]
    for i, (frame, _) in enumerate(frames):
        assert frame.shape == (30 + 48, 300, 3)
        np.testing.assert_allclose(frame[48:], 50 * i, atol=10)
    ink = [(frame[24:48].min(-1) < 128).sum() for frame, _ in frames]  # of the captions
    assert ink[0] == 0 < ink[1] <= ink[2] < ink[4]
    assert all((frame[:24].min(-1) < 128).sum() > 50 for frame, _ in frames)  # of the title


@pytest.mark.parametrize(("cut", "height"), [(True, 30 + 50 + 30), (False, 400)])
def test_rows_of_pixels_in_which_nothing_happens_are_cut_off_if_they_may_be(tmp_path, cut, height):
    pictures = [np.zeros((400, 50, 3), np.uint8) for _ in range(3)]
    pictures[1][150] = 255  # the only rows that ever change: 150 to 200
    pictures[2][200] = 255
    animations.write_gif(pictures, ["", "", ""], "", tmp_path / "dream.gif", cut=cut)
    frames = [frame for frame, _ in frames_of(tmp_path / "dream.gif")]
    first = 48 + (30 if cut else 150)
    assert frames[0].shape == (48 + height, 50, 3)
    assert (frames[1][first] > 200).all() and (frames[2][first + 50] > 200).all()


# ---------------------------------------------------------------- curves


def black(picture):
    return np.argwhere(picture.max(-1) < 60)


def blue(picture):
    return np.argwhere(np.abs(picture.astype(int) - animations.TINT).max(-1) < 30)


def test_curves_grow_with_time():
    """Three rows are observed. Both dreams lie a little above the truth, one ends after two rows;
    the last truth is far to the right of the first."""
    real = np.stack([np.linspace(0, 1, 9), np.linspace(5, -5, 9)], 1)
    dreams = np.stack([real[3:] + 0.1] * 2)
    dreams[0, 2:] = np.nan
    pictures = animations.curves(["one", "two"], real, dreams, "step")
    assert len(pictures) == 9 and {picture.shape for picture in pictures} == {(320, 800, 3)}
    counts = [len(blue(picture)) for picture in pictures]
    assert counts[:2] == [0, 0] < counts[2:3]  # a dream begins at the last observed row
    assert counts[3:] == sorted(counts[3:])
    ends = [blue(picture)[:, 1].max() for picture in pictures[2:]]
    assert (np.diff(ends) > 40).all()
    frame = black(pictures[0])  # axes, names, and the first dot
    later = [len(black(picture)) - len(frame) for picture in pictures[1:]]
    assert all(np.diff([0, *later]) > 0)


def test_curves_stand_beside_pictures_and_a_flat_one_has_room():
    beside = [np.full((50, 100, 3), 90 + t, np.uint8) for t in range(4)]
    pictures = animations.curves(["flat"], np.zeros((4, 1)), np.zeros((2, 2, 1)), "step", beside)
    for t, picture in enumerate(pictures):
        assert picture.shape == (320, 800, 3)
        assert (picture[135:185, 110:210] == 90 + t).all()
        assert len(black(picture[:, 320:]))
