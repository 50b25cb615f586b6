"""Returns of whole episodes, calibration by hand, and dreams that never peek."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import CPU, lived, quiet_train, tiny_config, walk

from dreamer import AgentEnv, DreamerAgent, Layout, evaluate, evaluation
from dreamer.envs import EnvFault, make_envs
from dreamer.evaluation import (
    as_picture,
    calibration,
    evaluate_in,
    filter_episode,
    greedy_policy,
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

# ---------------------------------------------------------------- evaluate


def test_evaluation_does_not_disturb_training():
    """A run with evaluations in between ends with the weights of a run without."""
    runs = [quiet_train(walk(), tiny_config(evals=evals, steps=45)) for evals in (3, 0)]
    assert [len(run.evals) for run in runs] == [2, 0]  # the first update is at step 25
    weights = [run.agent.state_dict().values() for run in runs]
    assert all(torch.equal(x, y) for x, y in zip(*weights, strict=True))
    assert runs[0].episodes == runs[1].episodes


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


def test_evaluation_holds_actions_and_cuts_episodes_as_training_did():
    seen: list[dict] = []
    agent = DreamerAgent(WALK, tiny_config(action_repeat=3, max_episode_steps=7))
    (total,) = evaluate(agent, walk(seen=seen, drift=0.01), 1, seed=1, greedy=False)
    steps = lived(seen)[1:]
    assert total == pytest.approx(sum(event["reward"] for event in steps)) and len(steps) == 7
    actions = [event["action"] for event in steps]
    assert all(len(set(actions[i : i + 3])) == 1 for i in (0, 3)) and len(set(actions)) > 1


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
        obs, info = np.array([self.name, self.time], np.float32), {"is_success": self.name % 2 > 0}
        return obs, float(self.name), self.time > self.name % 5, False, info


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
    assert details["success"] == np.mean([n % 2 for n in names]) and 0 < details["success"] < 1
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


class Counted(gym.Wrapper):
    """CartPole; counts those that were made and that are open, and may be hot."""

    made = open = 0
    hot = False

    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        Counted.made, Counted.open = Counted.made + 1, Counted.open + 1

    def step(self, action):
        if Counted.hot:
            raise RuntimeError("the motor is hot")
        return super().step(action)

    def close(self):
        Counted.open -= 1


def test_as_many_environments_as_asked_are_made_and_closed(agent, monkeypatch):
    for episodes, envs, made in [(5, 1, 1), (5, 3, 3), (2, 20, 2)]:
        Counted.made = 0
        assert len(evaluate(agent, Counted, episodes, envs=envs)) == episodes
        assert (Counted.made, Counted.open) == (made, 0)
    monkeypatch.setattr(Counted, "hot", True)
    for call in (lambda: evaluate(agent, Counted, 3), lambda: random_returns(Counted, 1)):
        with pytest.raises(EnvFault, match="the motor is hot"):
            call()
        assert Counted.open == 0


def test_the_environment_is_that_of_training_with_its_arguments():
    """A lake that is not slippery, cut after 3 steps, and rewards of 7."""

    def make():
        lake = gym.make("FrozenLake-v1", is_slippery=False, max_episode_steps=3)
        return gym.wrappers.ClipReward(lake, 7, 7)

    made = AgentEnv(make)
    agent = DreamerAgent(made.layout, tiny_config())
    with pytest.raises(ValueError, match="does not say how to make its environment, as a function"):
        evaluate(agent)
    agent.env_spec = made.spec_json
    assert set(evaluate(agent, episodes=10)) <= {7, 14, 21}
    (env,) = make_envs(evaluation.env_of(agent), 1, agent.config).envs
    assert env.unwrapped.spec.kwargs["is_slippery"] is False


def test_evaluate_says_what_does_not_fit():
    agent = DreamerAgent(WALK, tiny_config())
    with pytest.raises(ValueError, match=r"numbers=3, .* but the agent was made for .*numbers=2, "):
        evaluate(agent, "Pendulum-v1", 1)
    for name, value, least in [("episodes", 0, 1), ("episodes", 5.0, 1), ("seed", -1, 0)]:
        with pytest.raises(ValueError, match=f"^{name} must be a whole number from {least} on, "):
            evaluate(agent, walk(), **{name: value})


# ---------------------------------------------------------------- calibration


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
@pytest.mark.parametrize("repeat", [1, 2])
def test_calibration_of_an_evaluation_by_hand(terminated, repeat):
    """γ = 0.5, three rewards of 1, or a choice's 2 and 1; a constant critic. A time limit
    bootstraps on it."""
    config = tiny_config(gamma=0.5, action_repeat=repeat)
    agent = DreamerAgent(Layout(numbers=1, action_categories=(2,)), config)
    with torch.no_grad():
        agent.critic.mlp[-1].bias[160] = 100  # sure of one bin
    value = agent.critic.bins[160].item()
    assert value > 1
    returns, details = evaluate(agent, lambda: Clock(terminated), 2, 0, details=True)
    behind = 0.0 if terminated else value
    achieved = {
        1: [1.75 + behind / 8, 1.5 + behind / 4, 1 + behind / 2],
        2: [2.5 + behind / 4, 1 + behind / 2],
    }[repeat]
    assert returns.tolist() == [3.0, 3.0]
    assert details["value_pred"] == pytest.approx(value, rel=1e-5)
    assert details["value_real"] == pytest.approx(np.mean(achieved), rel=1e-5)
    assert details["value_corr"] == 0.0  # a constant correlates with nothing
    assert "success" not in details


def test_calibration_by_hand():
    """Achieved, γ = 0.5: 1 + 0.5 * 4 = 3 and 4 in the first episode, 2 + 0.5 * 6 in the second."""
    rewards, bootstrap = [[1.0, 4.0], [2.0]], np.array([0.0, 6.0])
    values = [[2.0, 3.0], [4.0]]  # each one less
    details = calibration(rewards, values, bootstrap, gamma=0.5)
    assert details == pytest.approx({"value_pred": 3.0, "value_real": 4.0, "value_corr": 1.0})
    upside_down = calibration(rewards, [[4.0, 3.0], [2.0]], bootstrap, gamma=0.5)
    assert upside_down["value_corr"] == pytest.approx(-1)


def test_random_returns_are_those_of_whole_episodes():
    assert random_returns(lambda: Clock(True), 4).tolist() == [3.0] * 4
    assert random_returns("CartPole-v1").mean() == pytest.approx(22.3, abs=3)


# ---------------------------------------------------------------- real episodes


@pytest.fixture
def agent():
    """One that no longer looks at all observations alike, as a fresh one nearly does."""
    agent = DreamerAgent(Layout(4, action_categories=(2,)), tiny_config())
    rng = torch.Generator().manual_seed(5)
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


def test_chance_holds_its_choices():
    env = AgentEnv(walk("box"))
    choose = random_policy(env, hold=3, seed=5)
    actions = [choose(np.zeros(2), False) for _ in range(900)]
    changes = [i for i in range(1, 900) if not np.array_equal(actions[i], actions[i - 1])]
    holds = np.diff(changes)
    assert set(holds) == {1, 2, 3} and holds.mean() == pytest.approx(2, abs=0.2)


def test_an_agent_plays_as_evaluate_does(agent):
    with torch.no_grad():  # an actor that is sure, whatever latents are drawn
        agent.actor.mlp[-1].bias[1] += 100
    seed = derive_seed(2, evaluation.EVALUATION, 0)  # of evaluate's first episode
    episode = play(AgentEnv("CartPole-v1"), greedy_policy(agent, seed=1), seed)
    assert [episode["reward"].sum()] == evaluate(agent, "CartPole-v1", 1, seed=2).tolist()


def test_an_episode_is_filtered_from_its_first_row_on(agent):
    """Row by row it is what `act` meets, given the same random numbers; and a window in mid-episode
    goes on from the state in the row before it."""
    env = AgentEnv("CartPole-v1")
    episode = play(env, random_policy(env, hold=3, seed=5), seed=7)
    feat, before = filter_episode(agent, episode, seed=3), states_before(agent, episode, seed=3)
    assert feat.shape == (len(episode["obs"]), 12 + 3 * 4)
    rng, state = torch.Generator().manual_seed(3), None
    for t, (obs, action) in enumerate(zip(episode["obs"], episode["action"], strict=True)):
        for part, kept in zip(state or (torch.zeros(1),) * 3, before, strict=True):
            torch.testing.assert_close(part[0].expand_as(kept[t]), kept[t], rtol=0, atol=1e-5)
        _, state = agent.act(obs[None], np.array([t == 0]), state, greedy=True, rng=rng)
        torch.testing.assert_close(agent.rssm.get_feat(state)[0], feat[t], rtol=0, atol=1e-5)
        state = state._replace(action=torch.from_numpy(action)[None])


# ---------------------------------------------------------------- dreams


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


def test_a_dreamed_row_depends_on_the_actions_before_it(agent):
    """Row 4 is the first dreamed one, reached by the action of row 3."""
    obs, action = random_window()
    before = open_loop(agent, obs, action, 4, 0)["obs"]
    for row, first_changed in [(3, 0), (4, 1), (8, 5), (9, 6)]:
        changed = action.copy()
        changed[:, row] = changed[:, row, ::-1]
        same = open_loop(agent, obs, changed, 4, 0)["obs"] == before
        assert same[:, :first_changed].all() and not same[:, first_changed : first_changed + 1].all(
            (0, 2)
        )


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
        if t == 2:  # no row to dream of
            assert open_loop_error(Knowing(), replay, seed=3, context=2) == {}
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


# ---------------------------------------------------------------- pictures


def test_pictures_of_every_type_are_drawn_and_nothing_else():
    for drawn in (np.full((4, 6), 128), np.full((4, 6, 1), 128.0), np.full((4, 6, 3), 0.503)):
        picture = as_picture(drawn, "Draws")
        assert picture.dtype == np.uint8 and picture.shape == (4, 6, 3)
        assert set(picture.flat) == {128}
    for drawn in (None, [], np.zeros((4, 6, 7)), "text"):
        with pytest.raises(ValueError, match="^Draws draws no picture: its constructor must take"):
            as_picture(drawn, "Draws")


def test_a_long_film_keeps_every_second_or_fourth_picture(monkeypatch):
    monkeypatch.setattr(evaluation, "FRAMES", 30)

    class Draws(Named):
        def __init__(self, render_mode):
            assert render_mode == "rgb_array"

        def reset(self, **kwargs):
            self.time = 0
            return np.zeros(2, np.float32), {}

        def step(self, action):
            self.time += 1
            return np.zeros(2, np.float32), 1.0, False, self.time == 100, {}

        def render(self):
            return np.array([[self.time]], np.uint8)

    agent = DreamerAgent(Echo.layout, tiny_config())
    ret, frames = evaluation.film(agent, Draws, 0)
    assert ret == 100 and [frame[0, 0, 0] for frame in frames] == list(range(0, 100, 4))
