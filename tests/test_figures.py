"""Every figure is drawn from synthetic data; dreams never peek; states are set exactly."""

import os
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

from dreamer.agent import Config, DreamerAgent  # noqa: E402
from dreamer.envs import AgentEnv  # noqa: E402
from dreamer.evaluation import agent_chooses, chance_chooses, filter_episode, open_loop, play
from lab import animations, figures  # noqa: E402

ENVS = list(figures.OBS_NAMES)
TINY = Config(deter=8, hidden=8, layers=1, categoricals=3, classes=4)


def drawn(path):
    """A PNG that is more than an empty page."""
    picture = np.asarray(Image.open(path).convert("L"))
    return picture.shape[0] > 300 and picture.shape[1] > 300 and (picture < 128).mean() > 0.002


def make_run(seed, diagnostics=True):
    rng = np.random.default_rng(seed)
    steps = list(range(1000, 5001, 1000))
    names = ["obs_loss", "reward_loss", "cont_loss", "dyn_loss", "rep_loss", "entropy", "ret_scale"]
    reports = [
        {"kind": "report", "step": s, **{n: float(rng.uniform(0.1, 2)) for n in names}}
        for s in range(500, 5001, 100)
    ]
    names = ["value_real", "value_pred", "value_corr", "naive_obs_error", "dream_obs_error"]
    evals = [
        {"kind": "eval", "step": s, **{n: float(rng.uniform(0, 1)) for n in names}} for s in steps
    ]
    return {
        "seed": seed,
        "env_steps": 5000,
        "curve": {"env_steps": steps, "return": rng.uniform(0, 500, 5).tolist()},
        "final_returns": rng.uniform(400, 500, 100).tolist(),
        "diagnostics": reports + evals if diagnostics else [],
    }


# ---------------------------------------------------------------- figures


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seeds", [1, 5])
def test_training_figure(tmp_path, seeds):
    path = tmp_path / "new folder" / "figure.png"
    figures.training_figure("CartPole", [make_run(s) for s in range(seeds)], 475, 22.0, path)
    assert drawn(path)


@pytest.mark.filterwarnings("error")
def test_training_figure_without_any_record(tmp_path):
    run = {**make_run(0, diagnostics=False), "curve": {"env_steps": [], "return": []}}
    figures.training_figure("CartPole", [run], 475, 22.0, tmp_path / "figure.png")
    assert drawn(tmp_path / "figure.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tasks", [1, 4])
def test_sample_efficiency_figure(tmp_path, tasks):
    """Complete, with one seed, and with a method that is missing."""
    ours = {"env_id": "CartPole-v1", "threshold": 475, "random_return": 22.0}
    many = {**ours, "runs": [make_run(seed) for seed in range(5)]}
    methods = {"dreamer": many, "ppo": {**ours, "runs": [make_run(7)]}, "dqn": None, "sac": many}
    path = tmp_path / "figure.png"
    figures.sample_efficiency_figure({f"task {i}": methods for i in range(tasks)}, path)
    assert drawn(path)


def test_a_panel_says_what_is_drawn_and_what_is_missing():
    ax = figures.Figure().subplots()
    data = {"env_id": "Pendulum-v1", "threshold": -200, "random_return": -1200}
    returns = [[0, 100], [1, 200], [5, 600], [-9000, 9000]]  # middle two: 0.5 and 400
    runs = [{"curve": {"env_steps": [500, 5000], "return": values}} for values in returns]
    figures.draw_methods(ax, {"dreamer": {**data, "runs": runs}, "ppo": None})
    assert ax.get_xscale() == "log"
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[500, 0.5], [5000, 400]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "Dreamer, 4 seeds",
        "PPO: not measured yet",
        "threshold -200",
        "random policy -1200",
    ]
    assert ax.get_ylim()[0] == -1700  # the lowest point, -9000, would make the rest a line


def test_methods_look_different():
    for field in zip(*figures.METHODS.values(), strict=True):
        assert len(set(field)) == len(figures.METHODS)


def test_only_steps_that_all_runs_share_are_compared():
    curves = [([1, 2, 3], [10, 20, 30]), ([2, 3, 4], [21, 31, 41])]
    runs = [{"curve": {"env_steps": steps, "return": values}} for steps, values in curves]
    steps, returns = figures.same_steps(runs)
    np.testing.assert_array_equal(steps, [2, 3])
    np.testing.assert_array_equal(returns, [[20, 30], [21, 31]])


def test_seed_curves_join_different_grids():
    grid, values = figures.seed_curves([([0, 10], [0, 100]), ([5, 10, 20], [1, 2, 3])])
    assert grid.tolist() == [0, 5, 10, 20]
    np.testing.assert_array_equal(values, [[0, 50, 100, np.nan], [np.nan, 1, 2, 3]])


def test_smooth_is_a_mean_that_shrinks_at_the_ends():
    np.testing.assert_allclose(figures.smooth(np.array([0, 3, 6, 0.0]), 3), [1.5, 3, 3, 3])
    np.testing.assert_allclose(figures.smooth(np.array([4.0]), 5), [4])


@pytest.mark.filterwarnings("error")
def test_world_model_figure(tmp_path):
    rng = np.random.default_rng(0)
    error = {name: rng.uniform(0, 1, (20, 6)) for name in ("dream", "naive")}
    error["dream"][:5, 4:] = np.nan
    ends = {
        name: {kind: rng.uniform(0, 1, (20, 8)) for kind in ("real", "filtered", "dreamed")}
        for name in ("reward", "cont")
    }
    reports = make_run(0)["diagnostics"]
    figures.world_model_figure("Title", reports, error, ends, tmp_path / "figure.png")
    assert drawn(tmp_path / "figure.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("env_id", ENVS)
def test_dream_figure(tmp_path, env_id):
    rng, names = np.random.default_rng(0), figures.OBS_NAMES[env_id]
    real = {"obs": rng.normal(size=(12, len(names))), "reward": np.ones(12), "cont": np.ones(12)}
    dreams = {"obs": rng.normal(size=(9, 8, len(names)))}
    dreams |= {name: rng.uniform(0, 1, (9, 8)) for name in ("reward", "cont")}
    scatter = rng.normal(size=50), rng.normal(size=50)
    figures.dream_figure("Title", names, 4, real, dreams, tmp_path / "figure.png", scatter)
    assert drawn(tmp_path / "figure.png")


@pytest.mark.filterwarnings("error")
def test_latents_figure(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 2))
    colourings = [
        ("reward", np.ones(300), "viridis"),
        ("value", rng.normal(size=300), "viridis"),
        ("angle", rng.normal(size=300), "coolwarm"),
    ]
    figures.latents_figure("Title", points, colourings, tmp_path / "figure.png")
    assert drawn(tmp_path / "figure.png")


def test_gif_holds_every_picture_side_by_side(tmp_path):
    real = [Image.new("RGB", (40, 30), (10 * i, 0, 0)) for i in range(5)]
    dream = [Image.new("RGB", (40, 30), (0, 0, 50 * i)) for i in range(5)]
    path = tmp_path / "dream.gif"
    size = animations.write_gif(real, dream, [(f"real {i}", "dream") for i in range(5)], path)
    assert size == path.stat().st_size
    with Image.open(path) as gif:
        assert gif.n_frames == 5
        gif.seek(4)
        frame = gif.convert("RGB")
    assert frame.width > 80 and frame.height > 30
    left, right = frame.getpixel((20, frame.height - 5)), frame.getpixel((70, frame.height - 5))
    np.testing.assert_allclose(left, (40, 0, 0), atol=12)
    np.testing.assert_allclose(right, (0, 0, 200), atol=12)


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


def test_other_environments_are_refused():
    env = gym.make("MountainCar-v0")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="MountainCarEnv"):
        animations.set_state(env, np.zeros(2))


@pytest.mark.parametrize("env_id", ENVS)
def test_pictures_follow_the_observation(env_id):
    env = gym.make(env_id)
    first, _ = env.reset(seed=1)
    env.close()
    moved = first * 0.5 + 0.2
    same, again, other = animations.render_observations(
        env_id, np.stack([first, first, moved]), 1, 100
    )
    assert same.width == 100
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)


# ---------------------------------------------------------------- episodes and dreams


def random_window(rows=10, windows=3):
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(windows, rows, 4)).astype(np.float32)
    action = np.eye(2, dtype=np.float32)[rng.integers(2, size=(windows, rows))]
    return obs, action


@pytest.fixture
def agent():
    return DreamerAgent(4, 2, True, TINY)


def test_dreams_do_not_peek(agent):
    obs, action = random_window()
    dream = open_loop(agent, obs, action, context=4, seed=0)
    assert dream["obs"].shape == (3, 6, 4)
    assert dream["reward"].shape == dream["cont"].shape == (3, 6)
    hidden = obs.copy()
    hidden[:, 4:] = np.nan
    blind = open_loop(agent, hidden, action, context=4, seed=0)
    for name in dream:
        np.testing.assert_array_equal(blind[name], dream[name])
    hidden = obs.copy()
    hidden[:, 3] += 5  # the last row that it may see
    assert not np.array_equal(open_loop(agent, hidden, action, 4, 0)["obs"], dream["obs"])


@pytest.mark.parametrize(("row", "first_changed"), [(3, 0), (4, 1), (8, 5), (9, 6)])
def test_dreamed_row_depends_on_the_actions_before_it(agent, row, first_changed):
    """Row 4 is the first dreamed one, reached by the action of row 3."""
    obs, action = random_window()
    changed = action.copy()
    changed[:, row] = changed[:, row, ::-1]
    before = open_loop(agent, obs, action, 4, 0)["obs"]
    after = open_loop(agent, obs, changed, 4, 0)["obs"]
    np.testing.assert_array_equal(after[:, :first_changed], before[:, :first_changed])
    if first_changed < 6:
        assert (after[:, first_changed] != before[:, first_changed]).any()


@pytest.mark.parametrize(("env_id", "terminal"), [("CartPole-v1", True), ("Pendulum-v1", False)])
def test_played_rows_are_those_of_the_environment(env_id, terminal):
    env = AgentEnv(env_id)
    episode = play(env, chance_chooses(env, hold=3, seed=5), seed=7)
    rows = len(episode["obs"])
    assert all(len(column) == rows for column in episode.values())
    assert episode["reward"][0] == 0 and (episode["action"][-1] == 0).all()
    assert (episode["cont"][:-1] == 1).all() and episode["cont"][-1] == (not terminal)

    np.testing.assert_array_equal(env.reset(7), episode["obs"][0])
    for t in range(rows - 1):
        obs, reward, *_ = env.step(episode["action"][t])
        np.testing.assert_array_equal(obs, episode["obs"][t + 1])
        assert np.float32(reward) == episode["reward"][t + 1]


def test_the_same_agent_plays_the_same_again(agent):
    env = AgentEnv("CartPole-v1")
    episode = play(env, agent_chooses(agent, seed=1), seed=2)
    again = play(env, agent_chooses(agent, seed=1), seed=2)
    np.testing.assert_array_equal(episode["action"], again["action"])
    assert filter_episode(agent, episode, seed=0).shape == (len(episode["obs"]), 8 + 3 * 4)


def test_a_figure_that_cannot_be_saved_only_warns(tmp_path):
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "figure.png"
    with pytest.warns(UserWarning, match="figure not saved: .*file"):
        figures.save(figures.Figure(), path)
