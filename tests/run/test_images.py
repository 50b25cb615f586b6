"""Images: environments and whole runs, from 8 x 8 pixels to 96 x 96."""

import signal
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import quiet_train, tiny_config
from faults import assert_same_runs
from gymnasium import spaces as S
from gymnasium import wrappers

from dreamer import AgentEnv, evaluate, load_agent
from dreamer.envs import flatten, image_shape
from dreamer.evaluation import greedy_policy, open_loop, play


class Slide(gym.Env):
    """A bright block at `place`, moved by the action and by chance; reward where it is central.
    `space` says how it is drawn: in what type, and in what order the axes come."""

    def __init__(self, space: S.Space):
        self.observation_space, self.action_space = space, S.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.place, self.time = int(self.np_random.integers(6)), 0
        return self.seen(self.observation_space), {}

    def step(self, action: Any):
        self.place = int(np.clip(self.place + action - 1 + self.np_random.integers(-1, 2), 0, 5))
        self.time += 1
        reward = float(self.place in (2, 3))
        return self.seen(self.observation_space), reward, False, self.time == 9, {}

    def seen(self, space: Any) -> Any:
        if isinstance(space, S.Dict):
            return {name: self.seen(part) for name, part in space.items()}
        if isinstance(space, S.Discrete):
            return self.place
        if len(space.shape) == 1:
            return np.full(space.shape, self.place, space.dtype)
        image = np.full(space.shape, space.low.min(), space.dtype)
        if image_shape(space) != space.shape and len(space.shape) == 3:
            image = np.moveaxis(image, 0, -1)  # a view: drawn with the channels last
        image[2:5, self.place : self.place + 2] = space.high.max()
        return image if image.shape == space.shape else np.moveaxis(image, -1, 0)


def box(*shape: int, dtype: Any = np.uint8, high: float = 255) -> S.Box:
    return S.Box(0, high, shape, dtype)


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (box(64, 48, 3), (64, 48, 3)),
        (box(3, 64, 48), (64, 48, 3)),
        (box(10, 10, 10, dtype=bool, high=1), (10, 10, 10)),
        (box(84, 84), (84, 84, 1)),
        (box(84, 84, 1), (84, 84, 1)),
        (box(4, 84, 84), (84, 84, 4)),
        (S.Box(-1, 1, (12, 9)), None),
        (box(128), None),
        (box(7, 84), None),
    ],
)
def test_what_is_an_image(space, shape):
    assert image_shape(space) == shape


@pytest.mark.parametrize(
    "space",
    [
        box(9, 12, 3),
        box(3, 9, 12),
        box(9, 12),
        box(9, 12, 4, dtype=bool, high=1),
        box(9, 12, 3, dtype=np.float32, high=1),
        S.Box(-1, 1, (2, 9, 12), np.float64),
    ],
    ids=str,
)
def test_whole_numbers_from_0_to_255_channels_last(space):
    env = AgentEnv(lambda: Slide(space))
    obs, _ = env.reset(seed=3)
    (shape,) = env.layout.images
    assert obs.dtype == np.float32 and obs.shape == (env.layout.obs_size,)
    expected, place = np.zeros(shape), env.unwrapped.place
    expected[2:5, place : place + 2] = 255
    np.testing.assert_array_equal(obs.reshape(shape), expected)


def test_floats_are_rounded_and_must_be_within_bounds():
    space = box(8, 8, 1, dtype=np.float32, high=1)
    assert set(flatten(space, np.full((8, 8, 1), 0.5, np.float32))) == {128}
    assert set(flatten(space, np.full((8, 8, 1), 1.002, np.float32))) == {255}  # of a resize
    for wrong in (np.nan, np.inf, 255, -0.1):
        with pytest.raises(ValueError):
            flatten(space, np.full((8, 8, 1), wrong, np.float32))
    with pytest.raises(ValueError, match="float64 of shape .* is not in Box"):
        flatten(box(8, 8), np.zeros((8, 8)))  # floats from 0 to 1 would be 0 and 1 of 255


TASKS = {
    "greyscale": lambda: Slide(box(10, 12)),
    "four frames by Gymnasium's wrapper": lambda: wrappers.FrameStackObservation(
        Slide(box(10, 12)), 4
    ),
    "camera and joint angles": lambda: Slide(
        S.Dict({"camera": box(16, 16, 3), "angles": S.Box(-9, 9, (2,)), "gear": S.Discrete(6)})
    ),
    "two cameras": lambda: Slide(S.Dict({"near": box(8, 8, 3), "far": box(3, 12, 9)})),
}


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
def test_every_kind_of_image_trains_and_is_loaded(make, tmp_path):
    run = quiet_train(make, tiny_config(steps=50, depth=2, evals=1, eval_episodes=2), tmp_path)
    assert run.reports[-1]["image_loss"] > 0
    assert {"dream_image_error", "naive_image_error"} <= run.evals[-1].keys()
    assert ("dream_obs_error" in run.evals[-1]) == bool(run.layout.vector_size)
    loaded = load_agent(tmp_path / "agent.pt", "cpu")
    assert loaded.layout == run.layout
    np.testing.assert_array_equal(evaluate(loaded, make, 2), evaluate(run.agent, make, 2))
    with_images = play(AgentEnv(make), greedy_policy(loaded, 0), 0)
    dream = open_loop(loaded, with_images["obs"][None], with_images["action"][None], 4, 0)
    pixels = dream["obs"][..., -run.layout.pixels :]
    assert pixels.shape[:2] == (1, 6) and pixels.min() >= 0 and pixels.max() <= 255


def test_a_resumed_run_of_images_equals_an_uninterrupted_one(tmp_path):
    make, config = TASKS["camera and joint angles"], tiny_config(steps=60, depth=2)
    quiet_train(make, config, tmp_path / "whole")

    class Halting(gym.Wrapper):
        steps = 0

        def step(self, action):
            Halting.steps += 1
            if Halting.steps == 40:
                signal.raise_signal(signal.SIGINT)
            return super().step(action)

    with pytest.raises(KeyboardInterrupt):
        quiet_train(lambda: Halting(make()), config, tmp_path / "parts")
    quiet_train(lambda: Halting(make()), config, tmp_path / "parts", resume=True)
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.filterwarnings("error")
def test_faint_pixels_are_named():
    class Faint(Slide):
        def seen(self, space):
            return super().seen(space) // 255

    with pytest.warns(UserWarning, match="^Faint: pixels are at most 1 of 255: give them in"):
        quiet_train(lambda: Faint(box(8, 8)), tiny_config(depth=2))
    quiet_train(lambda: Slide(box(8, 8)), tiny_config(depth=2))
