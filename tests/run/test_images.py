"""Images: environments and whole runs, from 8 x 8 pixels to 96 x 96."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import quiet_train, tiny_config
from gymnasium import spaces as S
from gymnasium import wrappers

from dreamer import AgentEnv, evaluate, load_agent
from dreamer.envs import flatten, image_shape, layout_of


class Slide(gym.Env):
    """A bright block that the action moves, drawn in the type and axes of its space."""

    def __init__(self, space: S.Space):
        self.observation_space, self.action_space = space, S.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.place, self.time = int(self.np_random.integers(6)), 0
        return self.seen(self.observation_space), {}

    def step(self, action: Any):
        self.place = int(np.clip(self.place + action - 1 + self.np_random.integers(-1, 2), 0, 5))
        self.time += 1
        return self.seen(self.observation_space), self.place / 5, False, self.time == 9, {}

    def seen(self, space: Any) -> Any:
        if isinstance(space, S.Dict):
            return {name: self.seen(part) for name, part in space.items()}
        if isinstance(space, S.Discrete):
            return self.place
        if len(space.shape) == 1:
            return np.full(space.shape, self.place, space.dtype)
        rows, columns, channels = image_shape(space)
        image = np.full((rows, columns, channels), space.low.min(), space.dtype)
        image[2:5, self.place : self.place + 2] = space.high.max()
        return np.moveaxis(image, -1, 0) if space.shape[0] < rows else image.reshape(space.shape)


def box(*shape: int, dtype: Any = np.uint8, high: float = 255) -> S.Box:
    return S.Box(0, high, shape, dtype)


SHAPES = [
    (box(9, 12, 3), (9, 12, 3)),
    (box(9, 12), (9, 12, 1)),
    (box(10, 10, 10, dtype=bool, high=1), (10, 10, 10)),
    (box(9, 12, 3, dtype=np.float32, high=1), (9, 12, 3)),
    (S.Box(-1, 1, (2, 9, 12), np.float64), (9, 12, 2)),
]


@pytest.mark.parametrize(("space", "shape"), SHAPES)
def test_whole_numbers_from_0_to_255_channels_last(space, shape):
    env = AgentEnv(lambda: Slide(space))
    obs, _ = env.reset(seed=3)
    assert obs.dtype == np.float32 and env.layout.images == (shape,)
    expected, place = np.zeros(shape), env.unwrapped.place
    expected[2:5, place : place + 2] = 255
    np.testing.assert_array_equal(obs.reshape(shape), expected)


def test_other_matrices_and_vectors_are_no_images():
    for space in (S.Box(-1, 1, (12, 9)), box(7, 84), box(128)):
        assert image_shape(space) is None and layout_of(space, S.Discrete(2)).images == ()


def test_floats_are_rounded_and_what_is_not_in_the_space_is_refused():
    space = box(8, 8, 1, dtype=np.float32, high=1)
    assert set(flatten(space, np.full((8, 8, 1), 0.5, np.float32))) == {128}
    assert set(flatten(space, np.full((8, 8, 1), 1.002, np.float32))) == {255}  # of a resize
    for wrong in (np.nan, np.inf, 255, -0.1):
        with pytest.raises(ValueError):
            flatten(space, np.full((8, 8, 1), wrong, np.float32))
    # Floats from 0 to 1 would be 0 and 1 of 255.
    for image in (np.zeros((8, 9)), np.zeros((9, 8), np.uint8), np.full((8, 9), 300)):
        with pytest.raises(ValueError, match=f"{image.dtype} of shape .* is not in|beyond the bou"):
            flatten(box(8, 9), image)


CAMERAS = S.Dict(
    near=box(8, 8, 3), far=box(3, 12, 9), angles=S.Box(-9, 9, (2,)), gear=S.Discrete(6)
)
TASKS = {
    "frames stacked by a wrapper": lambda: wrappers.FrameStackObservation(Slide(box(10, 12)), 4),
    "two cameras and joint angles": lambda: Slide(CAMERAS),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
def test_images_train_and_are_resumed_and_loaded(make, tmp_path):
    """A run that is given more steps keeps its pixels; the loaded agent acts alike."""
    config = tiny_config(steps=40, depth=2, evals=1, eval_episodes=2)
    before = quiet_train(make, config, tmp_path)
    run = quiet_train(make, replace(config, steps=50), tmp_path, resume=True)
    kept, now = (r.replay.rows["pixels"][: len(before.replay)] for r in (before, run))
    assert kept.dtype == np.uint8 and kept.any() and (kept == now).all()
    assert run.reports[-1]["image_loss"] > 0
    assert {"dream_image_error", "naive_image_error"} <= run.evals[-1].keys()
    assert ("dream_obs_error" in run.evals[-1]) == bool(run.layout.vector_size)
    loaded = load_agent(tmp_path / "agent.pt", "cpu")
    np.testing.assert_array_equal(evaluate(loaded, make, 2), evaluate(run.agent, make, 2))


def test_faint_pixels_are_named():
    class Faint(Slide):
        def seen(self, space):
            return super().seen(space) // 255

    with pytest.warns(UserWarning, match="^Faint: pixels are at most 1 of 255: give them in"):
        quiet_train(lambda: Faint(box(8, 8)), tiny_config(depth=2, steps=30))


def test_a_racing_car_is_driven_by_its_pixels():
    pytest.importorskip("Box2D")
    run = quiet_train("CarRacing-v3", tiny_config(steps=30, prefill=15, depth=2))
    assert run.layout.images == ((96, 96, 3),) and run.reports[-1]["image_loss"] > 0
