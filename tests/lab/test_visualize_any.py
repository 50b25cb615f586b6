"""04_visualize.py draws an agent of any environment: what it says of one that it does not know."""

import importlib
import os
import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

from lab import animations, cli  # noqa: E402

from dreamer import Config, DreamerAgent, save_agent  # noqa: E402

visualize = importlib.import_module("04_visualize")
TINY = Config(deter=8, hidden=8, layers=1, categoricals=3, classes=4)


@pytest.fixture
def lake():
    """An agent of FrozenLake, which observes a category of 16, and its task."""
    task = visualize.task_of(SimpleNamespace(env="FrozenLake-v1", agent=None))
    return DreamerAgent(16, 4, True, TINY, obs_parts=(16,)), task


# ---------------------------------------------------------------- names, episodes


@pytest.mark.parametrize(
    ("env_id", "name", "title"),
    [
        ("CartPole-v1", "cartpole", "CartPole-v1"),
        ("lab.spaces:TwoJoints-v0", "TwoJoints-v0", "TwoJoints-v0"),
        ("ale_py:ALE/Pong-v5", "ALE-Pong-v5", "ALE/Pong-v5"),
    ],
)
def test_pictures_are_named_after_the_environment(env_id, name, title):
    task = visualize.task_of(SimpleNamespace(env=env_id, agent=None))
    assert (task.name, task.env_id, task.title) == (name, env_id, title)
    assert (task in visualize.TASKS) == (name == "cartpole")


class Endless(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (4,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 4).astype(np.float32), 0.0, False, False, {}


@pytest.mark.parametrize(("longest", "points", "rows"), [(20, 2_000, 21), (10_000, 30, 31)])
@pytest.mark.filterwarnings("error:.* was cut there")
def test_endless_episodes_are_cut(longest, points, rows, monkeypatch):
    monkeypatch.setitem(
        gym.registry,
        "Endless-v0",
        gym.envs.registration.EnvSpec("Endless-v0", Endless, max_episode_steps=None),
    )
    monkeypatch.setattr(visualize, "POINTS", points)
    task = visualize.task_of(SimpleNamespace(env="Endless-v0", agent=None))
    agent = DreamerAgent(4, 2, True, Config(**{**vars(TINY), "max_episode_steps": longest}))
    for episodes in visualize.watch(agent, task, 0, steps=40):
        assert [len(episode["obs"]) for episode in episodes] == [rows] * 2
        assert all((episode["cont"] == 1).all() for episode in episodes)


# ---------------------------------------------------------------- what an observation says


def test_fewer_rows_of_a_short_episode_are_observed():
    assert [visualize.observed(rows) for rows in (3, 7, 9, 10, 500)] == [1, 3, 4, 5, 5]


def test_readings_are_of_what_varies_most():
    """Observed are a number, a flag, one of three categories, and two numbers of which the last is
    the same always. A fresh norm is symlog alone."""
    agent = DreamerAgent(7, 2, True, TINY, obs_parts=(0, 1, 3, 0, 0))
    obs = np.zeros((4, 7), np.float32)
    obs[:, 0] = [0, 0, 0.1, 0]  # the least
    obs[:, 1] = [0, 0, 0, 1]  # a spread of 0.43
    obs[[0, 1, 2, 3], [2, 2, 3, 4]] = 1  # of 0.5, 0.43 and 0.43; together 0.79
    obs[:, 5] = [9, -9, 9, -9]  # the most
    obs[:, 6] = 7

    def names(most, whole=True):
        return [name for name, _ in visualize.readings(agent, obs, most, whole)]

    category = "category (observations 2 to 4)"
    assert names(1) == ["observation 5"]
    assert names(2) == [category, "observation 5"]
    assert names(3) == ["observation 1: flag", category, "observation 5"]
    assert names(9) == ["observation 0", "observation 1: flag", category, "observation 5"]
    assert names(2, False) == ["category 0 (entry 2)", "observation 5"]
    assert names(9, False)[2:5] == [f"category {k} (entry {2 + k})" for k in range(3)]
    values = visualize.read(visualize.readings(agent, obs, 3), obs)
    np.testing.assert_array_equal(values, [[0, 0, 9], [0, 0, -9], [0, 1, 9], [1, 2, -9]])
    one = visualize.readings(agent, obs[:1], 3)  # nothing varies: something is drawn all the same
    assert [name for name, _ in one] == ["observation 0"]


# ---------------------------------------------------------------- pictures


def test_all_is_drawn_of_any_environment(lake, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        visualize.figures, "dream_figure", lambda *words, **_: titles.append(words[:3])
    )
    args = SimpleNamespace(seed=0, smoke=True, run_dir=tmp_path)
    row = visualize.visualize(*lake, args)
    assert np.isfinite([*row.values()]).all()
    ((title, names, context),) = titles
    assert (
        title.startswith(("FrozenLake-v1: only ", "FrozenLake-v1: 5 "))
        and len(names) <= visualize.PANELS
    )
    with Image.open(tmp_path / "04_FrozenLake-v1_latents.png") as picture:
        assert picture.width > 1_000
    with Image.open(tmp_path / "04_FrozenLake-v1.gif") as gif:
        assert gif.n_frames > context and row["gif_bytes"] < 1e6


def test_states_that_are_the_same_are_one_point_of_the_map(lake, tmp_path, monkeypatch):
    agent, task = lake
    drawn = {}
    monkeypatch.setattr(
        visualize.figures, "latents_figure", lambda title, points, *_: drawn.update({title: points})
    )
    episode = {
        "obs": np.eye(16, dtype=np.float32)[:9],
        "action": np.tile(np.float32([0, 1, 0, 0]), (9, 1)),
        "reward": np.zeros(9, np.float32),
    }
    other = {**episode, "obs": episode["obs"][::-1].copy()}
    task = task._replace(quantity="category", measure=lambda x: x.argmax(0))
    visualize.map_latents(agent, task, ([episode] * 5, [other]), 100, tmp_path)
    ((title, points),) = drawn.items()
    assert len(points) == 16 and "16 states" in title


def test_curves_stand_alone_where_the_environment_cannot_draw_itself(lake, monkeypatch, capsys):
    def fails(*_):
        raise gym.error.DependencyNotInstalled("pygame is not installed")

    monkeypatch.setattr(animations, "seen_again", fails)
    monkeypatch.setattr(animations, "curves", lambda *words: words)
    episode = {"obs": np.eye(16, dtype=np.float32)[[0, 1, 2, 3]]}
    obs = np.tile(episode["obs"][:2], (8, 1, 1))
    over = np.zeros((8, 5), bool)
    over[0, 1] = True
    names, real, dreams, step, beside = visualize.draw_curves(*lake, episode, obs, over, 0)
    assert names == ["category (observations 0 to 15)"] and step == "environment step"
    assert real.tolist() == [[0], [1], [2], [3]] and beside == []
    assert np.isnan(dreams[0, 1, 0]) and np.isfinite(dreams).sum() == 15
    assert "pygame is not installed" in capsys.readouterr().out


@pytest.mark.scripts
def test_the_script_draws_any_agent(tmp_path):
    """As a user types it: an id with the module that registers it; a bad id is one sentence."""

    def run(*words):
        command = [sys.executable, "04_visualize.py", "--smoke", "--device", "cpu", *words]
        look = {"cwd": cli.ROOT, "capture_output": True, "text": True, "timeout": 300}
        return subprocess.run([*map(str, command), "--out", str(tmp_path / "out")], **look)

    car = DreamerAgent(2, 1, False, TINY)
    save_agent(car, tmp_path / "car.pt", "MountainCarContinuous-v0")
    long = "gymnasium.envs.classic_control:MountainCarContinuous-v0"
    for words in ([], ["--env", long]):
        process = run("--agent", tmp_path / "car.pt", *words)
        assert process.returncode == 0, process.stderr
        folder = tmp_path / "out" / "04_visualize" / "seed0"
        ends = [".gif", ".json", "_dreams.png", "_latents.png"]
        names = {f"04_MountainCarContinuous-v0{end}" for end in ends}
        assert {path.name for path in folder.iterdir()} == names
    for words, status, sentence in (
        (["--env", "NoSuch-v0", "--agent", tmp_path / "car.pt"], 1, "module:Name-v0"),
        (["--env", "CartPole-v1", "--agent", tmp_path / "car.pt"], 1, "CartPole-v1 has"),
        (["--agent", tmp_path / "none.pt"], 1, "none.pt"),
        (["--env", "CartPole-v1"], 2, "--env goes with --agent"),
    ):
        process = run(*words)
        assert process.returncode == status
        assert sentence in process.stdout + process.stderr and "Traceback" not in process.stderr
