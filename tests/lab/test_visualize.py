"""What is drawn of an agent in any environment, and in the tasks of 04; what 01 measures."""

import importlib
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image

from dreamer import AgentEnv, DreamerAgent, Layout, save_agent
from lab import cli, visualize

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

demo = importlib.import_module("01_world_model_demo")
script = importlib.import_module("04_visualize")


def make_agent(layout=None, **changes):
    return DreamerAgent(layout or Layout(numbers=4, action_categories=(2,)), tiny_config(**changes))


def test_the_own_agent_comes_first_unless_the_shipped_one_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "ASSETS", tmp_path)
    flags = SimpleNamespace(out=tmp_path / "runs", run=SimpleNamespace(seed=3), device="cpu")
    flags.run_dir, flags.smoke, flags.shipped, drawn = tmp_path / "04", True, False, []
    own = flags.out / "02_dreamer_cartpole" / "seed3" / "agent.pt"
    monkeypatch.setattr(script.Visualizer, "draw", lambda self: drawn.append(self.agent.config))
    for hidden, path in (8, tmp_path / "agents" / "cartpole.pt"), (16, own):
        save_agent(make_agent(hidden=hidden), path)
        script.draw("cartpole", flags)
    flags.shipped = True
    script.draw("cartpole", flags)
    assert [config.hidden for config in drawn] == [8, 16, 8]


def test_the_quantities_that_colour_the_maps():
    """At rest, hanging or standing, turned by hand, or at half the height of the screen."""
    cases = {
        "cartpole": ([0, 0, np.pi / 2, 0], 90),
        "pendulum": ([0, 1, 5], np.pi / 2),
        "acrobot": ([1, 0, 0, 1, 0, 0], -1),  # the first link hangs, the second is level with it
        "lunar_lander": ([0, 1, 0, 0, 0, 0, 0, 0], 1),
    }
    for name, (obs, expected) in cases.items():
        found = script.TASKS[name].measure(np.array([obs] * 2).T)
        np.testing.assert_allclose(found, [expected] * 2)


def test_all_is_drawn_beside_the_agent_s_file(tmp_path, monkeypatch):
    """In the environment in which it learned, of which nothing else is known."""
    lake = Layout(categories=(16,), action_categories=(4,))
    agent, path = make_agent(lake, imag_horizon=3), tmp_path / "my agent.pt"
    save_agent(agent, path)
    monkeypatch.setattr(visualize, "tune_cpu", lambda: None)
    monkeypatch.setattr(visualize.Visualizer.__init__, "__defaults__", (0, None, 60))
    with pytest.raises(ValueError, match="--env"):
        visualize.main(visualize.Args(path, device="cpu"))
    with AgentEnv("FrozenLake-v1", is_slippery=False) as env:
        agent.env_spec = env.spec_json
    save_agent(agent, path)
    visualize.main(visualize.Args(path, device="cpu"))
    ends = [".gif", ".json", ".pt", "_dreams.png", "_latents.png"]
    assert {found.name for found in tmp_path.iterdir()} == {f"my agent{end}" for end in ends}
    found = json.loads((tmp_path / "my agent.json").read_text())
    assert found.pop("config") == vars(agent.config) and np.isfinite([*found.values()]).all()
    assert Image.open(tmp_path / "my agent.gif").n_frames >= 3


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


def test_flags_and_categories_are_an_entry_each():
    """After the numbers; a one-hot vector is drawn as its class."""
    layout = Layout(numbers=2, flags=1, categories=(3, 2), action_categories=(2,))
    obs = np.array([[9, 7, 0, 1, 0, 0, 0, 1], [-9, 7, 1, 0, 0, 1, 1, 0]])
    found = visualize.entries(layout, obs)
    np.testing.assert_array_equal(found, [[9, 7, 0, 0, 1], [-9, 7, 1, 2, 0]])


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
    assert [0, *(lasts[:-1] + 1)] == firsts.tolist() and lasts[-1] == len(replay) - 1
    assert len(replay) - len(firsts) >= 60 and (rows["reward"][firsts] == 0).all()
    assert rows["is_terminal"].nonzero()[0].tolist() == lasts.tolist()
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    reports = demo.learn(agent, replay)
    assert [row["step"] for row in reports] == list(range(1, 31))  # 60 * 16 / (4 * 8)
    after = agent.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"encoder", "rssm", "decoder", "reward", "cont"}
