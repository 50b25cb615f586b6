"""What 04_visualize.py chooses to draw, and how it measures dreams; what 01 measures of them."""

import importlib
import json
import os
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

from lab import animations, cli  # noqa: E402

from dreamer import AgentEnv, Config, DreamerAgent, save_agent  # noqa: E402

demo = importlib.import_module("01_world_model_demo")
visualize = importlib.import_module("04_visualize")
CARTPOLE = visualize.TASKS[0]
TINY = Config(deter=8, hidden=8, layers=1, categoricals=3, classes=4)


def make_agent(**changes):
    return DreamerAgent(4, 2, True, Config(**{**vars(TINY), **changes}))


def lake_agent():
    """Of FrozenLake: a category of 16 is observed; episodes of random actions have a few steps."""
    return DreamerAgent(16, 4, True, TINY, obs_parts=(16,))


# ---------------------------------------------------------------- which agent, which episode


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Arguments whose folders are empty, and a function that puts an agent of so many units into
    the user's own run or among the shipped ones."""
    monkeypatch.setattr(cli, "ASSETS", tmp_path / "assets")
    args = SimpleNamespace(
        base=tmp_path / "runs", seed=3, shipped=False, device="cpu", agent=None, env=None
    )
    own = args.base / "02_dreamer_cartpole" / "seed3" / "agent.pt"
    places = {"own": own, "shipped": tmp_path / "assets" / "agents" / "cartpole.pt"}

    def put(place, hidden):
        save_agent(make_agent(hidden=hidden), places[place])

    return args, put, own


def test_the_own_agent_comes_first_unless_the_shipped_one_is_asked_for(folders, capsys):
    args, put, own = folders
    assert visualize.find_agent(CARTPOLE, args) is None
    assert "train one with: python 02_dreamer_cartpole.py" in capsys.readouterr().out
    put("shipped", 8)
    assert visualize.find_agent(CARTPOLE, args).config.hidden == 8
    put("own", 16)
    assert visualize.find_agent(CARTPOLE, args).config.hidden == 16
    args.shipped = True
    assert visualize.find_agent(CARTPOLE, args).config.hidden == 8


def test_a_damaged_agent_is_named_and_the_shipped_one_drawn(folders, capsys):
    args, put, own = folders
    put("shipped", 8)
    put("own", 16)
    own.write_bytes(own.read_bytes()[:-100])
    assert visualize.find_agent(CARTPOLE, args).config.hidden == 8
    assert str(own) in capsys.readouterr().out


def test_a_foreign_or_broken_agent_in_a_run_s_folder_is_named_and_the_shipped_one_drawn(
    folders, capsys
):
    args, put, own = folders
    put("shipped", 8)
    put("own", 16)
    save_agent(lake_agent(), own, "FrozenLake-v1")
    assert visualize.find_agent(CARTPOLE, args).obs_size == 4
    printed = capsys.readouterr().out
    assert str(own) in printed and "was made for (16, 4, (4,))" in printed
    broken = make_agent(hidden=16)
    with torch.no_grad():
        next(broken.parameters())[:] = np.nan
    save_agent(broken, own)
    assert visualize.find_agent(CARTPOLE, args).config.hidden == 8
    assert str(own) in capsys.readouterr().out


def test_a_named_agent_is_the_only_one_and_must_fit(folders, tmp_path):
    args, put, _ = folders
    put("own", 16)
    args.agent = str(tmp_path / "lake.pt")
    save_agent(lake_agent(), args.agent, "FrozenLake-v1")
    task = visualize.task_of(args)
    assert (task.name, task.env_id, task.measure) == ("FrozenLake-v1", "FrozenLake-v1", None)
    assert visualize.find_agent(task, args).obs_size == 16
    with pytest.raises(ValueError, match="CartPole-v1 has .* made for \\(16, 4"):
        visualize.find_agent(CARTPOLE, args)
    args.agent = str(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError):
        visualize.find_agent(CARTPOLE, args)


def test_where_an_environment_fails_the_other_tasks_are_drawn(tmp_path, monkeypatch, capsys):
    def draw(agent, task, args):
        if task.name == "lunar_lander":
            raise gym.error.DependencyNotInstalled("Box2D is not installed")
        return {"obs_error": 0.5}

    monkeypatch.setattr(visualize, "find_agent", lambda task, args: make_agent())
    monkeypatch.setattr(visualize, "visualize", draw)
    monkeypatch.setattr(visualize, "tune_cpu", lambda: None)
    monkeypatch.setattr(visualize, "TASKS", visualize.TASKS[::-1])  # it is the first
    args = SimpleNamespace(agent=None, device="cpu", run_dir=tmp_path, config=Config())
    assert visualize.main(args) == 1
    printed = capsys.readouterr().out
    assert "LunarLander-v3: no pictures" in printed and "Box2D is not installed" in printed
    assert "3 of 4" in printed.splitlines()[-1]
    assert len(json.loads((tmp_path / "result.json").read_text())["tasks"]) == 3


def test_the_first_episode_that_is_long_enough_is_drawn_else_the_longest():
    own = [{"obs": np.zeros((rows, 1))} for rows in (5, 30, 9, 60)]
    assert [visualize.to_draw(own, rows) for rows in (5, 6, 30, 31, 99)] == [0, 1, 1, 3, 3]


def test_an_episode_is_watched_from_the_reset_that_its_seed_gives():
    env = AgentEnv(CARTPOLE.env_id, 2)
    groups = visualize.watch(make_agent(action_repeat=2), CARTPOLE, 7, steps=30)
    for kind, episodes in enumerate(groups):
        assert len(episodes) > 1 and sum(len(e["reward"]) - 1 for e in episodes) >= 30
        for number, episode in enumerate(episodes):
            first = env.reset(visualize.episode_seed(7, kind, number))
            np.testing.assert_array_equal(episode["obs"][0], first)


@pytest.mark.parametrize("task", visualize.TASKS, ids=lambda task: task.name)
def test_the_quantity_that_colours_the_map(task):
    """At rest, hanging or standing, turned by hand, or at half the height of the screen."""
    cases = {
        "cartpole": ([0, 0, np.pi / 2, 0], 90),
        "pendulum": ([0, 1, 5], np.pi / 2),
        "acrobot": ([1, 0, 0, 1, 0, 0], -1),  # the first link hangs, the second is level with it
        "lunar_lander": ([0, 1, 0, 0, 0, 0, 0, 0], 1),
    }
    obs, expected = cases[task.name]
    np.testing.assert_allclose(task.measure(np.array([obs, obs], float).T), [expected] * 2)


# ---------------------------------------------------------------- dreams


def test_short_dreams_cover_the_episodes_that_are_long_enough():
    agent = make_agent(imag_horizon=15)

    def episode(rows):
        obs = np.arange(rows, dtype=np.float32)[:, None].repeat(4, 1)
        return {"obs": obs, "action": np.ones((rows, 2), np.float32), "reward": obs[:, 0]}

    def windows(*lengths):  # first and last row of each
        real, dream = visualize.short_dreams(agent, [episode(rows) for rows in lengths])
        rows = real["obs"].shape[1]
        assert dream["reward"].shape == (len(real["obs"]), rows - min(visualize.CONTEXT, rows // 2))
        np.testing.assert_array_equal(real["obs"][..., 0], real["reward"])
        return [(row[0], row[-1]) for row in real["reward"]]

    assert windows(45, 19, 20) == [(0, 19), (20, 39), (25, 44), (0, 19)]
    assert windows(6, 8) == [(0, 7)]  # of agents that fail at once: as long as can be


def test_errors_of_dreams_by_hand():
    obs = np.zeros((2, visualize.CONTEXT + 2, 2), np.float32)
    obs[:, -2:, 0] = [[2, 4], [-2, -4]]  # the second dimension never moves
    spread = np.sqrt(2 * (4 + 16) / 14)
    reward = np.zeros((2, visualize.CONTEXT + 2))
    reward[:, -2:] = [[1, 1], [3, 3]]
    dreamed = {"obs": obs[:, -2:] + np.float32([1, 9]), "reward": reward[:, -2:] + 0.5}
    found = visualize.dream_errors({"obs": obs, "reward": reward}, dreamed)
    assert found["dreams"] == found["dream_steps"] == 2
    for name in ("obs_error", "first_obs_error"):
        assert found[name] == pytest.approx(1 / spread)
    assert found["naive_obs_error"] == pytest.approx(3 / spread)
    assert found["first_naive_obs_error"] == pytest.approx(2 / spread)
    assert found["reward_error"] == 0.5 and found["reward_spread"] == 1


def test_errors_of_dreams_of_tiny_numbers_and_of_none_that_move():
    obs = 1e-6 * np.random.default_rng(0).normal(size=(3, 9, 2)).astype(np.float32)
    for real in (obs, 0 * obs):
        truth = {"obs": real, "reward": np.zeros((3, 9))}
        found = visualize.dream_errors(truth, {name: x[:, 5:] for name, x in truth.items()})
        assert found["obs_error"] == 0 and np.isfinite([*found.values()]).all()


# ---------------------------------------------------------------- how long an animation is


def test_an_animation_ends_soon_after_its_last_dream(monkeypatch, tmp_path):
    """Two of three dreams end, the last one with its fourth row; what comes is the real episode
    for ten rows, without ghosts."""
    rows = visualize.CONTEXT + 40
    episode = {"obs": np.arange(rows, dtype=np.float32)[:, None].repeat(4, 1)}
    cont = np.ones((3, 40))
    cont[0, 1], cont[1, 3], cont[2, 2] = 0.3, 0.3, 0.3
    dreams = {"cont": cont, "obs": np.zeros((3, 40, 4))}
    drawn, written = [], {}
    monkeypatch.setattr(visualize, "GHOSTS", 3)
    monkeypatch.setattr(visualize, "dream_on", lambda *_: dreams)
    monkeypatch.setattr(animations, "render_observations", lambda _, obs, seed: list(obs))
    monkeypatch.setattr(animations, "scenery", lambda *_: None)
    monkeypatch.setattr(animations, "ghosts", lambda real, alive, _: drawn.append(len(alive)))
    monkeypatch.setattr(
        animations, "write_gif", lambda p, captions, *_, **__: written.update(captions=captions)
    )
    visualize.animate(make_agent(imag_horizon=15), CARTPOLE, episode, 0, tmp_path)
    assert drawn == [3, 3, 2, 1] + [0] * 10
    captions = written["captions"]
    assert captions[visualize.CONTEXT - 1 :][:2] == [
        "watching, step 5 of 5",
        "dreaming, step 1 (in training: 15)",
    ]
    assert captions[-1] == "dreaming, step 14 (in training: 15); 3 of 3 dreams have ended"
    assert len(captions) == visualize.CONTEXT + 14


def test_an_animation_ends_soon_after_the_real_world_has_come_to_rest(monkeypatch, tmp_path):
    obs = np.zeros((visualize.CONTEXT + 40, 4), np.float32)
    obs[:9] = np.arange(9)[:, None]  # moves up to row 8
    obs[9:] = 8
    episode = {"obs": obs, "action": np.tile(np.float32([1, 0]), (len(obs), 1))}
    written = []
    monkeypatch.setattr(
        animations, "write_gif", lambda pictures, *_, **__: written.append(len(pictures))
    )
    monkeypatch.setattr(
        visualize, "dream_on", lambda *_: {"cont": np.ones((8, 40)), "obs": np.zeros((8, 40, 4))}
    )
    monkeypatch.setattr(animations, "render_observations", lambda _, obs, seed: list(obs))
    monkeypatch.setattr(animations, "scenery", lambda *_: None)
    monkeypatch.setattr(animations, "ghosts", lambda *_: None)
    visualize.animate(make_agent(), CARTPOLE, episode, 0, tmp_path)
    assert written == [7 + 15]


# ---------------------------------------------------------------- the world model alone


def test_the_demo_tests_dreams_on_what_is_left_of_each_episode():
    rng, rows = np.random.default_rng(0), (demo.CONTEXT + 3, demo.CONTEXT + demo.HORIZON + 9)
    episodes = [
        {
            "obs": rng.normal(size=(n, 4)).astype(np.float32),
            "action": np.tile(np.float32([0, 1]), (n, 1)),
        }
        for n in rows
    ]
    error = demo.dream_errors(make_agent(), episodes)
    assert error["dream"].shape == error["naive"].shape == (2, demo.HORIZON, 4)
    known = np.isfinite(error["dream"]).all(-1)
    assert known[0].tolist() == [True] * 3 + [False] * (demo.HORIZON - 3) and known[1].all()
    spread = np.concatenate([episode["obs"] for episode in episodes]).std(0)
    obs = episodes[1]["obs"]
    naive = np.abs(obs[demo.CONTEXT - 1] - obs[demo.CONTEXT + 7]) / spread
    np.testing.assert_allclose(error["naive"][1, 7], naive, rtol=1e-5)


def test_the_demos_numbers_by_hand():
    error = {"dream": np.full((2, 25, 1), np.nan), "naive": np.full((2, 25, 1), 3.0)}
    error["dream"][0, :10], error["dream"][1, :5] = 1, 2
    ends = {"real": [[1, 0]], "filtered": [[0.9, 0.6]], "dreamed": [[0.4, 0.7]]}
    found = demo.numbers(error, {kind: np.array(rows) for kind, rows in ends.items()})
    assert found["error_by_dream_length"]["dream"] == {1: 1.5, 5: 1.5, 10: 1}
    assert found["error_by_dream_length"]["naive"] == {1: 3, 5: 3, 10: 3}
    assert found["cont_wrong"] == {"filtered": 0.5, "dreamed": 1}


def test_the_demos_replay_holds_whole_episodes():
    agent = make_agent(capacity=500, steps=60)
    replay = demo.fill_replay(agent.config, agent)
    rows = {name: values[: len(replay)] for name, values in replay.rows.items()}
    firsts, lasts = (np.flatnonzero(rows[name]) for name in ("is_first", "is_last"))
    assert firsts[0] == 0 and (firsts[1:] == lasts[:-1] + 1).all() and lasts[-1] == len(replay) - 1
    assert len(replay) - len(firsts) >= 60 and (rows["reward"][firsts] == 0).all()
    assert rows["is_terminal"][lasts].all() and rows["is_terminal"].sum() == len(lasts)


def test_the_demo_learns_the_world_and_nothing_else():
    agent = make_agent(steps=60, prefill=0, train_ratio=16.0, batch_size=4, seq_len=8)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    reports = demo.learn(agent, demo.fill_replay(agent.config, agent))
    assert [row["step"] for row in reports] == list(range(1, 31))  # 60 * 16 / (4 * 8)
    moved = {
        n.split(".")[0] for n, value in agent.state_dict().items() if (value != before[n]).any()
    }
    assert moved == {"encoder", "rssm", "decoder", "reward", "cont"}
