"""Returns of whole episodes, calibration by hand, and dreams that never peek."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import CPU, lived, quiet_train, tiny_config, walk

from dreamer import AgentEnv, DreamerAgent, Layout, evaluate, evaluation
from dreamer.envs import make_envs
from dreamer.evaluation import (
    as_picture,
    evaluate_in,
    filter_episode,
    open_loop,
    open_loop_error,
    play,
    random_policy,
    random_returns,
    states_before,
)
from dreamer.replay_buffer import ReplayBuffer
from dreamer.rssm import State
from dreamer.utils import derive_seed

WALK = Layout(numbers=2, action_categories=(3,))


def test_evaluation_does_not_disturb_training():
    """A run with evaluations in between ends with the weights of a run without."""
    with_evals = quiet_train(walk(), tiny_config(evals=6))
    without = quiet_train(walk(), tiny_config(evals=0))
    steps = [row["step"] for row in with_evals.evals]
    assert steps == [25, 30, 40, 50, 60] and not without.evals  # the first update is at 25
    weights = [run.agent.state_dict().values() for run in (with_evals, without)]
    assert all(torch.equal(x, y) for x, y in zip(*weights, strict=True))
    assert with_evals.episodes == without.episodes


def test_evaluation_repeats_itself_and_leaves_all_generators_alone():
    agent = DreamerAgent(WALK, tiny_config())

    def generators():
        return agent.rng.get_state(), torch.get_rng_state(), np.random.get_state()[1].copy()

    before = generators()
    for greedy in (True, False):
        first, again, other = (evaluate(agent, walk(), 6, seed, greedy) for seed in (1, 1, 2))
        assert first.shape == (6,) and (first == again).all() and (first != other).any()
    assert all((x == y).all() for x, y in zip(before, generators(), strict=True))


def test_an_evaluations_episodes_are_none_of_trainings():
    def resets(function) -> list[int]:
        seen: list[dict] = []
        function(walk(seen=seen))
        return [event["seed"] for event in lived(seen) if event["event"] == "reset"]

    agent = DreamerAgent(WALK, tiny_config(seed=1))
    fresh = resets(lambda env: evaluate(agent, env, 20, seed=1))
    trained = resets(lambda env: quiet_train(env, tiny_config(seed=1, train_ratio=0)))
    assert len(set(fresh)) == 20 and len(trained) > 5 and not set(fresh) & set(trained)


class Named(gym.Env):
    """Every observation tells the episode's name and time, and the action must repeat them.
    An episode of name n takes n % 5 + 1 steps, each worth n."""

    observation_space = gym.spaces.Box(0, 1000, (2,), np.float32)
    action_space = gym.spaces.Box(0, 1000, (2,), np.float32)

    def __init__(self, names: list[int]):
        self.names = names

    def reset(self, *, seed=None, options=None):
        self.name, self.time = seed % 997, 0
        self.names.append(self.name)
        return np.array([self.name, 0], np.float32), {}

    def step(self, action):
        np.testing.assert_allclose(action, [self.name, self.time], atol=0.01)
        self.time += 1
        obs = np.array([self.name, self.time], np.float32)
        return obs, float(self.name), self.time > self.name % 5, False, {}


class Echo:
    """In the agent's place: its action repeats the observation, and its state must come back
    with the rows of the same episodes."""

    config, device = tiny_config(gamma=0.5), CPU
    layout = Layout(numbers=2, action_numbers=2)
    rssm = SimpleNamespace(get_feat=lambda state: state.deter)
    critic = SimpleNamespace(predict=lambda feat: feat[:, 0])  # the name again

    def act(self, obs, is_first, state, greedy, rng):
        names = torch.from_numpy(obs[:, :1].copy())
        idle = obs[:, 1] > obs[:, 0] % 5  # its last episode is over
        assert (is_first == (obs[:, 1] == 0))[~idle].all()
        if state is None:
            assert is_first.all()
        else:
            same = torch.from_numpy(~is_first)
            assert torch.equal(state.deter[same], names[same])
            assert torch.equal(state.stoch[same, 0], names[same])
        return obs / 500 - 1, State(names, names[:, None], names)


@pytest.mark.parametrize("number", [12, 5, 1])
def test_evaluation_keeps_observations_actions_and_states_of_episodes_together(number):
    """Side by side, or in fewer environments, which go on with the next episode. Exactly 12 are
    played, of the same seeds, and their returns stand in the order of these."""
    names: list[int] = []
    finished: list[int] = []
    worlds = make_envs(lambda: Named(names), number, Echo.config)
    returns, details = evaluate_in(Echo(), worlds, 12, seed=3, progress=finished.append)
    expected = [derive_seed(3, evaluation.EVALUATION, i) % 997 for i in range(12)]
    assert sorted(names) == sorted(expected) and len({n % 5 for n in names}) > 2
    assert returns.tolist() == [n * (n % 5 + 1) for n in expected]
    assert finished == list(range(1, 13))
    lengths = [n % 5 + 1 for n in expected]
    assert details["length"] == np.mean(lengths)
    assert sum(env.taken for env in worlds.envs) == sum(lengths)  # nothing after the last one
    # Each episode's own values: its name n at every step, and n times 1 + γ + ... achieved.
    predicted = [n for n, length in zip(expected, lengths, strict=True) for _ in range(length)]
    achieved = [
        n * (2 - 2.0 ** (t + 1 - length))
        for n, length in zip(expected, lengths, strict=True)
        for t in range(length)
    ]
    assert details["value_pred"] == pytest.approx(np.mean(predicted))
    assert details["value_real"] == pytest.approx(np.mean(achieved))
    everything = evaluate(Echo(), lambda: Named(names), 12, seed=3, envs=number)
    assert everything.tolist() == returns.tolist()


def test_success_is_the_share_of_all_episodes():
    class Says(Named):
        def step(self, action):
            return *super().step(action)[:4], {"is_success": self.name % 2 > 0}

    names: list[int] = []
    _, details = evaluate(Echo(), lambda: Says(names), 8, seed=3, details=True)
    assert details["success"] == np.mean([n % 2 for n in names]) and 0 < details["success"] < 1
    assert "success" not in evaluate(Echo(), lambda: Named(names), 8, details=True)[1]


def test_the_environment_is_that_of_training_with_its_arguments():
    """A lake that is not slippery, 4 steps short of its time limit, and rewards of 7."""

    def make(**options):
        lake = gym.make("FrozenLake-v1", is_slippery=False, max_episode_steps=3, **options)
        return gym.wrappers.ClipReward(lake, 7, 7)

    agent = quiet_train(make).agent
    returns, details = evaluate(agent, episodes=10, details=True)
    assert details["length"] <= 3 and (returns % 7 == 0).all() and returns.max() == 21
    assert returns.tolist() == evaluate(agent, make, 10).tolist()
    (env,) = make_envs(evaluation.env_of(agent), 1, agent.config).envs
    assert env.unwrapped.spec.kwargs["is_slippery"] is False
    with pytest.raises(ValueError, match="does not say how to make its environment, as a function"):
        evaluate(quiet_train(walk()).agent)


def test_evaluate_says_what_does_not_fit():
    agent = DreamerAgent(WALK, tiny_config())
    with pytest.raises(ValueError, match=r"numbers=3, .* but the agent was made for .*numbers=2, "):
        evaluate(agent, "Pendulum-v1", 1)
    for name, value in [("episodes", 0), ("episodes", 5.0), ("seed", None), ("seed", -1)]:
        with pytest.raises(ValueError, match=f"^{name} must be a whole number from . on, got"):
            evaluate(agent, walk(), **{"episodes": 1, name: value})
    with pytest.raises(ValueError, match="^envs must be a whole number from 1 on, got 0"):
        evaluate(agent, walk(), 1, envs=0)


class Clock(gym.Env):
    """Three steps, each worth 1, then the task or the time is over."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, terminated: bool):
        self.terminated = terminated

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time == 3
        return np.zeros(1, np.float32), 1.0, over and self.terminated, over, {}


@pytest.mark.parametrize("terminated", [True, False])
def test_calibration_of_an_evaluation_by_hand(terminated):
    """γ = 0.5, three rewards of 1; a constant critic. A time limit bootstraps on it."""
    agent = DreamerAgent(Layout(numbers=1, action_categories=(2,)), tiny_config(gamma=0.5))
    with torch.no_grad():
        agent.critic.mlp[-1].bias[160] = 100  # sure of one bin
    value = agent.critic.bins[160].item()
    assert value > 1
    returns, details = evaluate(agent, lambda: Clock(terminated), 2, 0, details=True)
    behind = 0.0 if terminated else value
    achieved = [1.75 + behind / 8, 1.5 + behind / 4, 1 + behind / 2]
    assert returns.tolist() == [3.0, 3.0]
    assert details["value_pred"] == pytest.approx(value, rel=1e-5)
    assert details["value_real"] == pytest.approx(np.mean(achieved), rel=1e-5)
    assert details["value_corr"] == 0.0  # a constant correlates with nothing


def test_random_returns_are_those_of_whole_episodes():
    assert random_returns(lambda: Clock(True), 4).tolist() == [3.0] * 4
    mean = random_returns("CartPole-v1", 200).mean()
    assert 19 < mean < 26  # about 22.3, with a standard error of 0.8


@pytest.fixture
def agent():
    """One that no longer looks at all observations alike, as a fresh one nearly does."""
    agent, rng = (
        DreamerAgent(Layout(4, action_categories=(2,)), tiny_config()),
        torch.Generator().manual_seed(5),
    )
    with torch.no_grad():
        for p in agent.parameters():
            p += 0.2 * torch.randn(p.shape, generator=rng)
    return agent


@pytest.mark.parametrize(("env_id", "terminal"), [("CartPole-v1", True), ("Pendulum-v1", False)])
def test_played_rows_are_those_of_the_environment(env_id, terminal):
    env = AgentEnv(env_id)
    episode = play(env, random_policy(env, hold=3, seed=5), seed=7)
    rows = len(episode["obs"])
    assert all(len(column) == rows for column in episode.values())
    assert episode["reward"][0] == 0 and (episode["action"][-1] == 0).all()
    assert (episode["cont"][:-1] == 1).all() and episode["cont"][-1] == (not terminal)

    np.testing.assert_array_equal(env.reset(seed=7)[0], episode["obs"][0])
    for t in range(rows - 1):
        obs, reward, *_ = env.step(episode["action"][t])
        np.testing.assert_array_equal(obs, episode["obs"][t + 1])
        assert np.float32(reward) == episode["reward"][t + 1]


def test_an_episode_is_filtered_from_its_first_row_on(agent):
    """Row by row it is what `act` meets, given the same random numbers."""
    env = AgentEnv("CartPole-v1")
    episode = play(env, random_policy(env, hold=3, seed=5), seed=7)
    feat = filter_episode(agent, episode, seed=3)
    assert feat.shape == (len(episode["obs"]), 12 + 3 * 4)
    rng, state = torch.Generator().manual_seed(3), None
    for t, (obs, action) in enumerate(zip(episode["obs"], episode["action"], strict=True)):
        _, state = agent.act(obs[None], np.array([t == 0]), state, greedy=True, rng=rng)
        torch.testing.assert_close(agent.rssm.get_feat(state)[0], feat[t], rtol=0, atol=1e-5)
        state = state._replace(action=torch.from_numpy(action)[None])


def test_a_window_in_mid_episode_goes_on_from_the_state_before_it(agent):
    """Filtered from there, its first row has the state that it has in the whole episode."""
    env = AgentEnv("CartPole-v1")
    episode = play(env, random_policy(env, hold=3, seed=5), seed=7)
    feat, before = filter_episode(agent, episode, seed=3), states_before(agent, episode, seed=3)
    assert {len(part) for part in before} == {len(feat)}
    for start in (0, 1, 6):
        state = State(*(part[start : start + 1] for part in before))
        assert (state.deter.abs().sum() == 0) == (start == 0)
        with torch.no_grad():
            action = agent.rssm.embed_action(state.action)
            deter = agent.rssm.sequence_step(state.deter, state.stoch, action)
        torch.testing.assert_close(deter[0], feat[start, :12], rtol=0, atol=1e-5)


def random_window(rows: int = 10, windows: int = 3):
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(windows, rows, 4)).astype(np.float32)
    action = np.eye(2, dtype=np.float32)[rng.integers(2, size=(windows, rows))]
    return obs, action


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


class Knowing:
    """In the agent's place, a model that knows its world of one number: each action is added to
    the number, and is the reward."""

    config, device = SimpleNamespace(imag_horizon=4), CPU
    layout = Layout(numbers=1, action_numbers=1)
    rssm = reward = decoder = property(lambda self: self)

    def encoder(self, obs):
        return obs

    encoder.normalise = lambda obs: obs

    def mean(self, guess):
        return guess

    def split(self, obs):
        return obs, obs[..., :0]

    def observe(self, embed, action, is_first, rng, before):
        goes_on = ~is_first[:, 0] & (before.stoch.sum((1, 2)) > 0)  # the oldest row knows nothing
        led_here = before.deter + before.action
        assert goes_on.any() and torch.equal(led_here[goes_on], embed[goes_on, 0])
        return None, embed[:, -1]

    def imagine(self, state, policy, horizon, rng):
        rows = [torch.cat([state, torch.zeros_like(state)], 1)]
        for t in range(horizon):
            action = policy(None, t)
            rows.append(torch.cat([rows[-1][:, :1] + action, action], 1))
        return torch.stack(rows, 1)  # (N, H+1, 2): number and reward

    def get_feat(self, dream):
        return dream

    def __call__(self, feat):
        return feat[..., :1]

    def predict(self, feat):
        return feat[..., 1]


def test_open_loop_error_by_hand():
    """The dream of a model that knows its world is right on every row of an episode, first to
    last; rows of the next episode, which starts anew from -50, do not count. Filtering goes on from
    what is kept in the row before the window."""
    replay, number, reward = ReplayBuffer(200, Knowing.layout, (1, 1, 2)), 0.0, 0.0
    rng = np.random.default_rng(0)
    for t in range(200):
        first, last = t % 10 == 0, t % 10 == 9
        if first:
            number, reward = -50.0, 0.0
        action = float(rng.integers(1, 4))
        state = State(torch.tensor([[number]]), torch.eye(2)[None, :1], torch.zeros(1, 1))
        row = np.array([[number]]), np.array([[action]]), np.array([reward])
        replay.add(*row, np.array([first]), np.array([last]), np.array([last]), state)
        number, reward = number + action, action

    error = open_loop_error(Knowing(), replay, seed=3, context=2)
    assert error["dream_obs_error"] == 0 and error["dream_reward_error"] == 0

    probe = np.random.default_rng(derive_seed(3, evaluation.PROBE))
    moved = []
    for obs, is_last in zip(*map(replay.sample(64, 6, probe).get, ("obs", "is_last")), strict=True):
        for t in range(2, 6):
            if is_last[t - 1]:
                break
            moved.append(abs(obs[t, 0] - obs[1, 0]))
    assert len(moved) < 64 * 4  # some windows cross an end
    assert error["naive_obs_error"] == pytest.approx(np.mean(moved))


@pytest.mark.parametrize(
    "drawn", [np.full((4, 6), 128), np.full((4, 6, 1), 128.0), np.full((4, 6, 3), 0.503)], ids=str
)
def test_pictures_of_every_type_are_drawn(drawn):
    picture = as_picture(drawn, "Draws")
    assert picture.dtype == np.uint8 and picture.shape == (4, 6, 3) and set(picture.flat) == {128}
