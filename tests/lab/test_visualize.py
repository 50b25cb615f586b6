"""What is drawn of an agent in any environment, and in the tasks of 04; what 01 measures."""

import importlib
import json
import os
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image

from dreamer import AgentEnv, DreamerAgent, Layout, save_agent
from dreamer.evaluation import play, random_policy
from lab import animations, cli, figures, visualize
from lab.visualize import Visualizer

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

demo = importlib.import_module("01_world_model_demo")
script = importlib.import_module("04_visualize")
CARTPOLE = Layout(numbers=4, action_categories=(2,))
LAKE = Layout(categories=(16,), action_categories=(4,))


def make_agent(layout=CARTPOLE, **changes):
    return DreamerAgent(layout, tiny_config(**changes))


def make_visualizer(tmp_path, agent=None, env="CartPole-v1", **changes):
    return Visualizer(agent or make_agent(), env, tmp_path / "agent", **changes)


@pytest.fixture
def register(monkeypatch):
    """Gives an environment an id for the time of a test."""

    def register(name, kind, **how):
        spec = gym.envs.registration.EnvSpec(name, kind, **how)
        monkeypatch.setitem(gym.registry, name, spec)
        return name

    return register


class Noise(gym.Env):
    """Endless noise, which draws itself; what is observed depends on the seed, or on nothing."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = gym.spaces.Box(-10, 10, (4,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode=None, repeats=True):
        self.render_mode, self.repeats = render_mode, repeats

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed if self.repeats else None)
        return self.np_random.uniform(-1, 1, 4).astype(np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 4).astype(np.float32), 0.0, False, False, {}

    def render(self):
        return np.full((600, 400, 3), 7, np.uint8)


# ---------------------------------------------------------------- which agent, which task


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Flags of 04 whose folders are empty, and where the user's agent and the shipped one go."""
    monkeypatch.setattr(cli, "ASSETS", tmp_path / "assets")
    flags = SimpleNamespace(out=tmp_path / "runs", run=SimpleNamespace(seed=3), device="cpu")
    flags.run_dir, flags.smoke, flags.shipped = tmp_path / "04", True, False
    flags.config = tiny_config()
    own = flags.out / "02_dreamer_cartpole" / "seed3" / "agent.pt"
    return flags, own, tmp_path / "assets" / "agents" / "cartpole.pt"


def test_the_own_agent_comes_first_unless_the_shipped_one_is_asked_for(folders, monkeypatch):
    flags, own, shipped = folders
    drawn = []
    monkeypatch.setattr(script.Visualizer, "draw", lambda self: drawn.append(self.agent.config))
    save_agent(make_agent(hidden=8), shipped)
    script.draw("cartpole", flags)
    save_agent(make_agent(hidden=16), own)
    script.draw("cartpole", flags)
    flags.shipped = True
    script.draw("cartpole", flags)
    assert [config.hidden for config in drawn] == [8, 16, 8]


def test_where_an_environment_fails_the_other_tasks_are_drawn(folders, monkeypatch, capsys):
    def draw(name, _):
        if name == "lunar_lander":
            raise gym.error.DependencyNotInstalled("Box2D is not installed")
        return {"obs_error": 0.5}

    flags, *_ = folders
    monkeypatch.setattr(script, "draw", draw)
    monkeypatch.setattr(script, "tune_cpu", lambda: None)
    assert script.main(flags) == 1
    printed = capsys.readouterr().out
    assert "no pictures: Box2D is not installed" in printed
    assert "3 of 4" in printed.splitlines()[-1]
    assert len(json.loads((flags.run_dir / "result.json").read_text())["tasks"]) == 3


@pytest.mark.parametrize("name", script.TASKS)
def test_the_quantity_that_colours_the_map(name):
    """At rest, hanging or standing, turned by hand, or at half the height of the screen."""
    cases = {
        "cartpole": ([0, 0, np.pi / 2, 0], 90),
        "pendulum": ([0, 1, 5], np.pi / 2),
        "acrobot": ([1, 0, 0, 1, 0, 0], -1),  # the first link hangs, the second is level with it
        "lunar_lander": ([0, 1, 0, 0, 0, 0, 0, 0], 1),
    }
    obs, expected = cases[name]
    np.testing.assert_allclose(script.TASKS[name].measure(np.array([obs] * 2).T), [expected] * 2)


@pytest.mark.parametrize("of_json", [True, False])
def test_all_is_drawn_beside_the_agent_s_file(tmp_path, monkeypatch, of_json):
    """In the environment that it names, and in one that the user does; nothing else is known."""
    agent, path = make_agent(LAKE, imag_horizon=3), tmp_path / "my agent.pt"
    with AgentEnv("FrozenLake-v1", is_slippery=False) as env:
        agent.env_spec = env.spec_json if of_json else None
    save_agent(agent, path)
    monkeypatch.setattr(visualize, "tune_cpu", lambda: None)
    monkeypatch.setattr(visualize.Visualizer.__init__, "__defaults__", (0, None, 60))
    env = None if of_json else "FrozenLake-v1"
    visualize.main(visualize.Args(path, env=env, device="cpu"))
    ends = [".gif", ".json", ".pt", "_dreams.png", "_latents.png"]
    assert {found.name for found in tmp_path.iterdir()} == {f"my agent{end}" for end in ends}
    found = json.loads((tmp_path / "my agent.json").read_text())
    assert found.pop("config") == vars(agent.config) and np.isfinite([*found.values()]).all()
    with Image.open(tmp_path / "my agent_latents.png") as picture:
        assert picture.width > 1_000
    with Image.open(tmp_path / "my agent.gif") as gif:
        assert gif.n_frames >= 3 and found["gif_bytes"] < 1e6


def test_an_agent_whose_file_names_no_environment_asks_for_one(tmp_path, monkeypatch):
    save_agent(make_agent(), tmp_path / "agent.pt")
    monkeypatch.setattr(visualize, "tune_cpu", lambda: None)
    with pytest.raises(ValueError, match="--env"):
        visualize.main(visualize.Args(tmp_path / "agent.pt", device="cpu"))


# ---------------------------------------------------------------- episodes and dreams of them


def test_an_episode_is_watched_from_the_reset_that_its_seed_gives(tmp_path):
    view = make_visualizer(tmp_path, make_agent(action_repeat=2), seed=7, points=60)
    env = AgentEnv("CartPole-v1", 2)
    for random in (False, True):
        episodes = view.watch(random)
        assert len(episodes) > 1 and sum(len(e["reward"]) - 1 for e in episodes) >= 30
        for number, episode in enumerate(episodes):
            first, _ = env.reset(seed=view.episode_seed(random, number))
            np.testing.assert_array_equal(episode["obs"][0], first)


@pytest.mark.parametrize(("longest", "points", "rows"), [(20, 80, [21, 21]), (10_000, 30, [31])])
def test_endless_episodes_are_cut(tmp_path, register, longest, points, rows):
    agent, name = make_agent(max_episode_steps=longest), register("Noise-v0", Noise)
    for random in (False, True):
        episodes = make_visualizer(tmp_path, agent, name, points=points).watch(random)
        assert [len(episode["obs"]) for episode in episodes] == rows
        assert all((episode["cont"] == 1).all() for episode in episodes)


def test_the_first_episode_that_is_long_enough_is_drawn_else_the_longest():
    own = [{"obs": np.zeros((rows, 1))} for rows in (5, 30, 9, 60)]
    assert [visualize.to_draw(own, rows) for rows in (5, 6, 30, 31, 99)] == [0, 1, 1, 3, 3]


def test_fewer_rows_of_a_short_episode_are_observed():
    assert [visualize.observed(rows) for rows in (3, 7, 9, 10, 500)] == [1, 3, 4, 5, 5]


def test_dreams_begin_all_along_the_episodes_and_errors_end_with_them(monkeypatch):
    """A dream that says 0 of rows that count up, with 2 observed rows and 3 dreamed ones. Of the
    first two dimensions one is twice the other, the third never moves."""

    def episode(rows):
        count = np.arange(rows, dtype=np.float32)
        obs = np.stack([count, 2 * count, 0 * count + 7], 1)
        return {"obs": obs, "action": np.ones((rows, 2), np.float32)}

    def nothing(agent, obs, action, context, seed, before):
        assert before.deter.shape == (3, agent.config.deter) and context == 2
        assert np.isfinite(obs[:, :2]).all() and np.isfinite(action).all()
        return {"obs": np.zeros((3, 3, 3))}

    monkeypatch.setattr(visualize.evaluation, "open_loop", nothing)
    agent = make_agent(Layout(numbers=3, action_categories=(2,)))
    episodes = [episode(8), episode(2), episode(5)]
    errors = visualize.dream_errors(agent, episodes, 2, 3)
    spread = np.std([*range(8), *range(2), *range(5)])
    truth = np.array([[2, 3, 4], [7, np.nan, np.nan], [2, 3, 4]]) / spread
    later = np.array([[1, 2, 3], [1, np.nan, np.nan], [1, 2, 3]]) / spread
    for name, expected in ("dream", truth), ("naive", later):
        np.testing.assert_allclose(errors[name], np.stack([expected] * 2, -1), rtol=1e-6)


# ---------------------------------------------------------------- what an observation says


class Rich(Noise):
    observation_space = gym.spaces.Dict(
        {
            "arm": gym.spaces.Box(-9, 9, (3,)),
            "colour": gym.spaces.Discrete(3),
            "lamp": gym.spaces.MultiBinary(1),
        }
    )

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


def test_what_varies_most_is_drawn_by_its_name(tmp_path, register):
    """Numbers come first, then flags, then one-hot vectors, as one entry each."""
    agent = make_agent(Layout(numbers=3, flags=1, categories=(3,), action_categories=(2,)))
    view = make_visualizer(tmp_path, agent, register("Rich-v0", Rich))
    assert view.names == ["arm[0]", "arm[1]", "arm[2]", "lamp[0]", "colour"]
    obs = np.zeros((4, 7), np.float32)
    obs[:, 0] = [0, 0, 0.1, 0]  # the least
    obs[:, 1] = [9, -9, 9, -9]  # the most: a fresh norm is symlog alone
    obs[:, 2] = 7  # always the same
    obs[:, 3] = [0, 0, 0, 1]  # a spread of 0.43
    obs[np.arange(4), [4, 4, 5, 6]] = 1  # of 0.83
    assert [view.most_varied(obs, n) for n in (1, 2, 3, 9)] == [
        [1],
        [1, 4],
        [1, 3, 4],
        [0, 1, 3, 4],
    ]
    assert view.most_varied(obs[:1], 3) == [0]  # nothing varies: something is drawn all the same
    chosen = visualize.entries(agent.layout, obs)[:, [1, 3, 4]]
    np.testing.assert_array_equal(chosen, [[9, 0, 0], [-9, 0, 0], [9, 0, 1], [-9, 1, 2]])


def test_the_four_tasks_and_unnamed_numbers_have_names_too(tmp_path, register):
    assert make_visualizer(tmp_path).names[0] == "cart position"
    assert make_visualizer(tmp_path, env=register("Noise-v0", Noise)).names[3] == "observation 3"


# ---------------------------------------------------------------- pictures


def test_states_that_are_the_same_are_one_point_of_the_map(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "latents_figure", lambda title, xy, *_: drawn.update({title: xy}))
    episode = {
        "obs": np.eye(16, dtype=np.float32)[:9],
        "action": np.tile(np.float32([0, 1, 0, 0]), (9, 1)),
        "reward": np.zeros(9, np.float32),
    }
    other = {**episode, "obs": episode["obs"][::-1].copy()}
    view = make_visualizer(tmp_path, make_agent(LAKE), "FrozenLake-v1")
    view.map_latents(([episode] * 5, [other]))
    ((title, points),) = drawn.items()
    assert len(points) == 16 and "16 states" in title


@pytest.fixture
def animated(tmp_path, monkeypatch):
    """What `animate` writes of CartPole, given the episode's obs and the dreams' cont (K, H): its
    captions, and of each dreamed row how many dreams are drawn."""

    def animate(obs, cont):
        drawn, captions = [], []
        dreams = {"cont": cont, "obs": np.zeros((*cont.shape, 4))}
        monkeypatch.setattr(visualize, "GHOSTS", len(cont))
        monkeypatch.setattr(Visualizer, "dreams_of", lambda *_: dreams)
        monkeypatch.setattr(animations, "render_observations", lambda _, obs, seed: list(obs))
        monkeypatch.setattr(animations, "scenery", lambda *_: None)
        monkeypatch.setattr(animations, "ghosts", lambda real, alive, _: drawn.append(len(alive)))
        monkeypatch.setattr(animations, "write_gif", lambda _, words, *__: captions.extend(words))
        make_visualizer(tmp_path, make_agent(imag_horizon=15)).animate({"obs": obs}, 0)
        return captions, drawn

    return animate


def test_an_animation_ends_soon_after_its_last_dream(animated):
    """The last of three dreams ends with its fourth row; then comes the real episode alone, for ten
    rows."""
    cont = np.ones((3, 40))
    cont[0, 1], cont[1, 3], cont[2, 2] = 0.3, 0.3, 0.3
    obs = np.arange(45, dtype=np.float32)[:, None].repeat(4, 1)
    captions, drawn = animated(obs, cont)
    assert drawn == [3, 3, 2, 1] + [0] * 10 and len(captions) == 5 + 14
    assert captions[4:6] == ["watching, step 5 of 5", "dreaming, step 1 (in training: 15)"]
    assert captions[-1] == "dreaming, step 14 (in training: 15); 3 of 3 dreams have ended"


def test_an_animation_ends_soon_after_the_real_world_has_come_to_rest(animated):
    obs = np.arange(45, dtype=np.float32).clip(0, 8)[:, None].repeat(4, 1)  # moves up to row 8
    assert len(animated(obs, np.ones((8, 40)))[0]) == 7 + 15


@pytest.mark.parametrize(("repeats", "modes"), [(True, True), (False, True), (True, False)])
def test_pictures_stand_beside_the_curves_only_if_the_episode_comes_again(
    tmp_path, monkeypatch, register, repeats, modes
):
    found = []
    monkeypatch.setattr(animations, "curves", lambda *words: found.extend(words))
    modes = {"render_modes": ["rgb_array"] if modes else [], "render_fps": 30}
    monkeypatch.setattr(Noise, "metadata", modes)
    name = register("Noise-v0", Noise, kwargs={"repeats": repeats}, max_episode_steps=9)
    env = AgentEnv(name, 2)
    episode = play(env, random_policy(env, 1, seed=0), seed=3)
    over = np.zeros((8, 4), bool)
    over[0, 1] = True
    view = make_visualizer(tmp_path, make_agent(action_repeat=2), name)
    view.draw_curves(episode, np.zeros((8, 3, 4), np.float32), over, 3)
    _, real, dreams, step, beside = found
    assert real.shape == episode["obs"].shape and step == "choice of an action, held for 2 steps"
    assert np.isnan(dreams[0, 1]).all() and np.isfinite(dreams).sum() == (8 * 3 - 1) * 4
    assert len(beside) == (len(episode["obs"]) if repeats and modes["render_modes"] else 0)
    assert all(picture.shape == (300, 200, 3) for picture in beside)


def test_curves_stand_alone_where_drawing_fails(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise gym.error.DependencyNotInstalled("pygame is not installed")

    found = []
    monkeypatch.setattr(Visualizer, "seen_again", fails)
    monkeypatch.setattr(animations, "curves", lambda *words: found.extend(words))
    obs = np.eye(16, dtype=np.float32)[:4]
    view = make_visualizer(tmp_path, make_agent(LAKE), "FrozenLake-v1")
    view.draw_curves({"obs": obs}, np.tile(obs[:2], (8, 1, 1)), np.zeros((8, 2), bool), 0)
    assert found[0] == ["category"] and found[1].tolist() == [[0], [1], [2], [3]]
    assert found[-1] == [] and "pygame is not installed" in capsys.readouterr().out


# ---------------------------------------------------------------- the world model alone


def test_the_demos_numbers_by_hand():
    error = {"dream": np.full((2, 25, 1), np.nan), "naive": np.full((2, 25, 1), 3.0)}
    error["dream"][0, :10], error["dream"][1, :5] = 1, 2
    ends = {"real": [[1, 0]], "filtered": [[0.9, 0.6]], "dreamed": [[0.4, 0.7]]}
    found = demo.numbers(error, {kind: np.array(rows) for kind, rows in ends.items()})
    assert found["error_by_dream_length"]["dream"] == {1: 1.5, 5: 1.5, 10: 1}
    assert found["error_by_dream_length"]["naive"] == {1: 3, 5: 3, 10: 3}
    assert found["cont_wrong"] == {"filtered": 0.5, "dreamed": 1}


def test_the_demo_learns_the_world_from_whole_episodes_and_nothing_else():
    agent = make_agent(steps=60, prefill=0, train_ratio=16.0, batch_size=4, seq_len=8)
    replay = demo.fill_replay(agent, demo.random_episodes(AgentEnv("CartPole-v1"), 0, 1, 1))
    rows = {name: values[: len(replay)] for name, values in replay.rows.items()}
    firsts, lasts = (np.flatnonzero(rows[name]) for name in ("is_first", "is_last"))
    assert firsts[0] == 0 and (firsts[1:] == lasts[:-1] + 1).all() and lasts[-1] == len(replay) - 1
    assert len(replay) - len(firsts) >= 60 and (rows["reward"][firsts] == 0).all()
    assert rows["is_terminal"][lasts].all() and rows["is_terminal"].sum() == len(lasts)

    before = {name: value.clone() for name, value in agent.state_dict().items()}
    reports = demo.learn(agent, replay)
    assert [row["step"] for row in reports] == list(range(1, 31))  # 60 * 16 / (4 * 8)
    after = agent.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"encoder", "rssm", "decoder", "reward", "cont"}
