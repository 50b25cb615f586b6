"""Images: environments and whole runs, from 8 x 8 pixels to 96 x 96."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import quiet_train, tiny_config
from dreamer.spaces import image_shape, image_shapes
from gymnasium import spaces as S
from gymnasium import wrappers

from dreamer import AgentEnv, evaluate, load_agent
from dreamer.check import check
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


# ---------------------------------------------------------------- environments


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
    assert image_shapes(S.Dict({"x": space, "y": S.Discrete(2)})) == ((shape,) if shape else ())


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
    obs = env.reset(3)
    assert obs.dtype == np.float32 and obs.shape == (env.obs_size,)
    assert set(obs) == {0, 255}
    image, place = obs.reshape(env.images[0]), env.env.unwrapped.place
    expected = np.zeros(env.images[0])
    expected[2:5, place : place + 2] = 255
    np.testing.assert_array_equal(image, expected)


def test_floats_are_rounded():
    env = AgentEnv(lambda: Slide(box(8, 8, 1, dtype=np.float32, high=1)))
    env.env.unwrapped.seen = lambda space: np.full((8, 8, 1), 0.5, np.float32)
    assert set(env.reset(0)) == {128}
    for wrong in (np.nan, np.inf, 255):
        env.env.unwrapped.seen = lambda space, x=wrong: np.full((8, 8, 1), x, np.float32)
        with pytest.raises(ValueError, match="observation at step 0 is not in Box"):
            env.reset(0)


@pytest.mark.parametrize(
    ("space", "advice"),
    [
        (box(7, 64, 3), "sides of an image are at least 8 pixels"),
        (box(1, 64, 3), "sides of an image are at least 8 pixels"),
        (box(4, 8, 8, 3), "two or three axes"),
        (S.Box(-np.inf, np.inf, (8, 8, 3)), "need bounds"),
        (S.Box(1, 1, (8, 8, 3)), "need bounds"),
        (S.Dict({"x": S.Box(-np.inf, np.inf, (8, 8, 3))}), "need bounds"),
    ],
)
def test_what_is_not_supported_gets_one_sentence(space, advice):
    with pytest.raises(ValueError, match=f"^Slide: .* is not supported: .*{advice}"):
        AgentEnv(lambda: Slide(space))


def test_check_says_what_it_is():
    found = dict(check(lambda: Slide(box(3, 10, 12)), tiny_config(steps=1000, capacity=5000)))
    assert (
        found["observations"] == "Box((3, 10, 12), uint8): an image of 10 x 12 pixels, 3 channels"
    )
    assert found["pixels"].startswith("0 to 255 of 255, 17.5% of them")
    assert found["replay"].startswith("2,000 rows or fewer, 0.") and "observed" not in found
    camera = S.Dict({"camera": box(8, 8), "angles": S.Box(-9, 9, (2,))})
    found = dict(check(lambda: Slide(camera), tiny_config()))
    assert found["observations"].endswith(": 2 numbers and an image of 8 x 8 pixels, 1 channel")
    assert found["observed"] == "0 to 5"


# ---------------------------------------------------------------- whole runs


STACKED = "four frames of greyscale, by Gymnasium's wrapper"
TASKS = {
    "greyscale": lambda: Slide(box(10, 12)),
    "greyscale with a channel": lambda: Slide(box(10, 12, 1)),
    "colour": lambda: Slide(box(16, 12, 3)),
    "channels first": lambda: Slide(box(3, 16, 12)),
    "floats": lambda: Slide(box(10, 10, 3, dtype=np.float32, high=1)),
    "bool planes": lambda: Slide(box(10, 10, 4, dtype=bool, high=1)),
    STACKED: lambda: wrappers.FrameStackObservation(Slide(box(10, 12)), 4),
    "camera and joint angles": lambda: Slide(
        S.Dict({"camera": box(16, 16, 3), "angles": S.Box(-9, 9, (2,)), "gear": S.Discrete(6)})
    ),
    "two cameras": lambda: Slide(S.Dict({"near": box(8, 8, 3), "far": box(3, 12, 9)})),
}


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
def test_every_kind_of_image_trains_and_is_loaded(make, tmp_path):
    run = quiet_train(make, tiny_config(steps=60, depth=2, evals=1, eval_cost=5), tmp_path)
    assert run.reports[-1]["image_loss"] > 0
    assert run.evals and {"dream_image_error", "naive_image_error"} <= run.evals[-1].keys()
    assert ("dream_obs_error" in run.evals[-1]) == bool(run.agent.obs_parts)
    loaded = load_agent(tmp_path / "agent.pt", "cpu")
    assert loaded.images == run.env.images
    np.testing.assert_array_equal(evaluate(loaded, make, 2), evaluate(run.agent, make, 2))
    with_images = play(AgentEnv(make), greedy_policy(loaded, 0), 0)
    dream = open_loop(loaded, with_images["obs"][None], with_images["action"][None], 4, 0)
    pixels = dream["obs"][..., -run.env.pixels :]
    assert pixels.shape[:2] == (1, 6) and pixels.min() >= 0 and pixels.max() <= 255


def test_an_agent_learns_to_draw():
    """What it sees: the block moves, all else stays."""
    config = tiny_config(steps=600, train_ratio=48, depth=4, batch_size=8, prefill=60)
    run = quiet_train(TASKS["greyscale"], config)
    images = run.replay.rows["pixels"][: len(run.replay)] / 255
    assert run.reports[-1]["image_loss"] < 0.5 * images.var(0).sum()  # that of the mean image


def test_an_agent_of_another_image_is_refused(tmp_path):
    agent = quiet_train(lambda: Slide(box(10, 12, 1))).agent
    with pytest.raises(ValueError, match="but the agent was made for"):
        evaluate(agent, lambda: Slide(box(12, 10, 1)), 1)


@pytest.mark.parametrize("name", ["colour", "camera and joint angles"])
def test_a_resumed_run_equals_an_uninterrupted_one(name, tmp_path):
    make, config = TASKS[name], tiny_config(steps=60, depth=2)
    whole = quiet_train(make, config, tmp_path / "whole")

    class Stop(Exception):
        pass

    class Halting(gym.Wrapper):
        steps = 0

        def step(self, action):
            Halting.steps += 1
            if Halting.steps == 40:
                raise Stop
            return super().step(action)

    with pytest.raises(ValueError, match="Stop"):
        quiet_train(lambda: Halting(make()), config, tmp_path / "parts")
    parts = quiet_train(lambda: Halting(make()), config, tmp_path / "parts", resume=True)
    assert Halting.steps > 60 and parts.step == whole.step == 60
    for one, other in zip(
        whole.agent.state_dict().values(), parts.agent.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    for key, rows in whole.replay.rows.items():
        np.testing.assert_array_equal(rows, parts.replay.rows[key])


def test_rendered_pixels_by_gymnasiums_own_wrappers():
    pytest.importorskip("pygame")
    pytest.importorskip("cv2")

    def make():
        env = wrappers.AddRenderObservation(gym.make("CartPole-v1", render_mode="rgb_array"))
        return wrappers.ResizeObservation(env, (32, 32))

    agent = quiet_train(make, tiny_config(depth=2)).agent
    assert agent.images == ((32, 32, 3),) and agent.obs_size == 32 * 32 * 3


def breakout():
    """Atari's, as docs/environments.md has it."""
    gym.register_envs(pytest.importorskip("ale_py"))
    env = gym.make("ALE/Breakout-v5", frameskip=1)
    return wrappers.AtariPreprocessing(env, screen_size=64, grayscale_obs=False)


@pytest.mark.parametrize(
    ("env", "package", "image"),
    [
        ("MinAtar/Breakout-v1", "minatar.gym", (10, 10, 4)),
        ("CarRacing-v3", "Box2D", (96, 96, 3)),
        (breakout, "ale_py", (64, 64, 3)),
    ],
)
def test_environments_of_others(env, package, image):
    module = pytest.importorskip(package)
    getattr(module, "register_envs", int)()  # MinAtar's are not there before
    run = quiet_train(env, tiny_config(steps=40, prefill=20, depth=2, evals=0))
    assert run.agent.images == (image,) and run.reports[-1]["image_loss"] > 0


# ---------------------------------------------------------------- pictures of what it sees


def test_the_films_rows_and_frames(tmp_path):
    from PIL import Image

    from lab import pixels

    agent = quiet_train(TASKS["colour"], tiny_config(depth=2)).agent
    episode, pictures = pixels.watched(agent, TASKS["colour"], seed=0)
    rows = len(episode["obs"])
    assert rows == 10
    shapes = {name: images.shape for name, images in pictures.items()}
    assert shapes == {
        "real": (rows, 16, 12, 3),
        "seen": (rows, 16, 12, 3),
        "dream": (rows - pixels.CONTEXT, 16, 12, 3),
    }
    np.testing.assert_array_equal(pictures["real"][3].ravel(), episode["obs"][3])
    short = lambda: wrappers.TimeLimit(TASKS["colour"](), 2)  # noqa: E731
    for env, frames in (TASKS["colour"], rows), (short, 3):
        paths = pixels.draw_all(agent, env, 0, tmp_path, "slide")
        assert Image.open(paths[1]).n_frames == frames and Image.open(paths[0]).width > 800


def test_the_probe_reads_what_is_there(monkeypatch):
    """Of states that are a linear map of the truth, all of it; of noise, nothing."""
    from lab import pixels

    rng = np.random.default_rng(0)
    told: list[np.ndarray] = []

    def tell(world):
        told.append(rng.normal(size=3))
        return told[-1]

    monkeypatch.setattr(pixels, "true_state", tell)
    agent = quiet_train(TASKS["greyscale"]).agent

    def linear(agent, episode, seed):
        truth = np.array(told[-len(episode["obs"]) :])
        return torch.from_numpy(truth @ np.array([[1.0, 2, 0], [0, 1, 1], [3, 0, 1]]))

    monkeypatch.setattr(pixels, "filter_episode", linear)
    found = pixels.linear_probe(agent, TASKS["greyscale"], episodes=40)
    assert min(found["r2"]) > 0.99

    def noise(agent, episode, seed):
        return torch.from_numpy(rng.normal(size=(len(episode["obs"]), 3)))

    monkeypatch.setattr(pixels, "filter_episode", noise)
    assert max(pixels.linear_probe(agent, TASKS["greyscale"], episodes=40)["r2"]) < 0.2
