"""Returns of whole episodes, calibration by hand, and dreams that never peek."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ACTION_SPACES, CPU, Odd, Walk, lived, quiet_train, tiny_config, walk

from dreamer import AgentEnv, DreamerAgent, Layout, evaluate, evaluation
from dreamer.envs import EnvFault, make_envs
from dreamer.evaluation import (
    as_picture,
    calibration,
    dream_on,
    evaluate_in,
    filter_episode,
    open_loop,
    open_loop_error,
    play,
    random_policy,
    random_returns,
)
from dreamer.replay_buffer import ReplayBuffer
from dreamer.rssm import State
from dreamer.utils import derive_seed

WALK = Layout(numbers=2, action_categories=(3,))


def test_evaluation_does_not_disturb_training():
    """A run with evaluations in between ends with the weights of a run without."""
    runs = [quiet_train(walk(), tiny_config(evals=evals, steps=45)) for evals in (3, 0)]
    assert [len(run.evals) for run in runs] == [3, 0]  # the first update is at step 25
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


def test_evaluation_holds_actions_and_cuts_episodes_as_training_did():
    seen: list[dict] = []
    agent = DreamerAgent(WALK, tiny_config(action_repeat=3, max_episode_steps=7))
    env = walk(seen=seen, drift=0.01)
    (total,), details = evaluate(agent, env, 1, seed=1, greedy=False, details=True)
    steps = lived(seen)[1:]
    assert details["length"] == 7 and "success" not in details
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

    def __init__(self, limit):
        self.limit = limit

    def act(self, obs, is_first, state, greedy, rng):
        names, same = torch.from_numpy(obs[:, :1].copy()), torch.from_numpy(~is_first)
        idle = obs[:, 1] >= np.minimum(obs[:, 0] % 5 + 1, self.limit)  # its last episode is over
        assert (is_first == (obs[:, 1] == 0))[~idle].all()
        assert state is not None or is_first.all()
        for part in state or ():
            assert torch.equal(part.reshape(-1, 1)[same], names[same])
        return obs / 500 - 1, State(names, names[:, None], names)


@pytest.mark.parametrize(("number", "limit"), [(12, 9), (5, 9), (5, 3), (1, 9)])
def test_evaluation_keeps_observations_actions_and_states_of_episodes_together(number, limit):
    """Side by side, or in fewer environments, which go on with the next episode. Exactly 12 are
    played, of the same seeds, and their returns stand in the order of these."""
    names, finished = [], []
    worlds = make_envs(lambda: Named(names), number, tiny_config(max_episode_steps=limit))
    returns, details = evaluate_in(Echo(limit), worlds, 12, seed=3, progress=finished.append)
    expected = [derive_seed(3, evaluation.EVALUATION, i) % 997 for i in range(12)]
    lengths = [min(n % 5 + 1, limit) for n in expected]
    assert sorted(names) == sorted(expected) and len({n % 5 for n in names}) > 2
    assert returns.tolist() == [n * length for n, length in zip(expected, lengths, strict=True)]
    assert finished == list(range(1, 13))
    assert details["length"] == np.mean(lengths)
    assert details["success"] == np.mean([n % 2 for n in names]) and 0 < details["success"] < 1
    assert sum(env.taken for env in worlds.envs) == sum(lengths)  # nothing after the last one
    # Its name n at every step. With k steps left n (1 + γ + ... + γ^(k-1)) is achieved, γ = 0.5;
    # and where the time is up, γ^k times the critic's n is to come.
    predicted, achieved = [], []
    for n, length in zip(expected, lengths, strict=True):
        for k in range(1, length + 1):
            predicted.append(n)
            achieved.append(n * (2 - 2.0 ** (1 - k) + 2.0**-k * (n % 5 + 1 > length)))
    assert details["value_pred"] == pytest.approx(np.mean(predicted))
    assert details["value_real"] == pytest.approx(np.mean(achieved))
    assert details["value_corr"] == pytest.approx(np.corrcoef(predicted, achieved)[0, 1])


def test_as_many_environments_as_asked_are_made_and_closed():
    is_open: dict[Odd, bool] = {}

    class Counted(Odd):
        def __init__(self):
            super().__init__(lambda *values: values if len(is_open) < 6 else 1 / 0)
            is_open[self] = True

        def close(self):
            is_open[self] = False

    agent = DreamerAgent(WALK, tiny_config())
    for episodes, envs, made in [(5, 1, 1), (5, 2, 3), (2, 20, 5)]:
        assert len(evaluate(agent, Counted, episodes, envs=envs)) == episodes
        assert len(is_open) == made and not any(is_open.values())
    for call in (lambda: evaluate(agent, Counted, 3), lambda: random_returns(Counted, 1)):
        with pytest.raises(EnvFault, match="ZeroDivisionError"):
            call()
        assert len(is_open) >= 8 and not any(is_open.values())


def test_without_an_environment_it_is_that_of_training_with_its_arguments():
    """A lake that is not slippery, at most 3 steps, and rewards of 7."""

    def make(**options):
        lake = gym.make("FrozenLake-v1", is_slippery=False, max_episode_steps=3, **options)
        return gym.wrappers.ClipReward(lake, 7, 7)

    agent = quiet_train(make, tiny_config(steps=20, train_ratio=0)).agent
    returns, details = evaluate(agent, episodes=5, details=True)
    assert details["length"] <= 3 and returns.max() == 21
    assert returns.tolist() == evaluate(agent, make, 5).tolist()
    agent.env_spec = None
    with pytest.raises(ValueError, match="does not say how to make its environment, as a function"):
        evaluate(agent)


def test_evaluate_says_what_does_not_fit():
    agent = DreamerAgent(WALK, tiny_config())
    with pytest.raises(ValueError, match=r"numbers=3, .* but the agent was made for .*numbers=2, "):
        evaluate(agent, "Pendulum-v1", 1)
    with pytest.raises(ValueError, match="does not say how to make its environment, as a function"):
        evaluate(agent)
    for name, value, least in [("episodes", 0, 1), ("episodes", 5.0, 1), ("seed", -1, 0)]:
        with pytest.raises(ValueError, match=f"^{name} must be a whole number from {least} on, "):
            evaluate(agent, walk(), **{name: value})


def test_a_constant_correlates_with_nothing():
    found = calibration([[1.0, 4.0]], [[2.0, 2.0]], np.zeros(1), gamma=0.5)
    assert found == {"value_pred": 2.0, "value_real": 3.5, "value_corr": 0.0}


def test_random_returns_are_those_of_whole_episodes():
    """CartPole's are known: 22.3 on average, with a standard error of 1.2 here."""
    assert random_returns("CartPole-v1").mean() == pytest.approx(22.3, abs=3)


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
    assert set(holds := np.diff(changes)) == {1, 2, 3} and 1.8 < holds.mean() < 2.2


def test_an_episode_is_filtered_from_its_first_row_on(agent):
    """Row by row it is what `act` meets, given the same random numbers."""
    env = AgentEnv("CartPole-v1")
    episode = play(env, random_policy(env, hold=3, seed=5), seed=7)
    states = filter_episode(agent, episode, seed=3)
    assert states.action.tolist() == episode["action"].tolist()
    rng, state = torch.Generator().manual_seed(3), None
    for t, (obs, action) in enumerate(zip(episode["obs"], episode["action"], strict=True)):
        _, state = agent.act(obs[None], np.array([t == 0]), state, greedy=True, rng=rng)
        for part, kept in ((state.deter, states.deter), (state.stoch, states.stoch)):
            torch.testing.assert_close(part[0], kept[t], rtol=0, atol=1e-5)
        state = state._replace(action=torch.from_numpy(action)[None])


def random_window():
    """obs (3, 10, 4) and action (3, 10, 2)."""
    rng = np.random.default_rng(0)
    action = np.eye(2, dtype=np.float32)[rng.integers(2, size=(3, 10))]
    return rng.normal(size=(3, 10, 4)).astype(np.float32), action


def test_dreams_do_not_peek(agent):
    obs, action = random_window()
    dream = open_loop(agent, obs, action, context=4, seed=0)
    shapes = {name: values.shape for name, values in dream.items()}
    assert shapes == {"obs": (3, 6, 4), "reward": (3, 6), "cont": (3, 6)}
    hidden = obs.copy()
    hidden[:, 4:] = np.nan
    blind = open_loop(agent, hidden, action, context=4, seed=0)
    assert all(np.array_equal(blind[name], dream[name]) for name in dream)
    obs[:, 3] += 5  # the last row that it may see
    assert not np.array_equal(open_loop(agent, obs, action, 4, 0)["obs"], dream["obs"])


def test_a_dreamed_row_depends_on_the_actions_before_it(agent):
    """Row 4 is the first dreamed one, reached by the action of row 3."""
    obs, action = random_window()
    before = open_loop(agent, obs, action, 4, 0)["obs"]
    for row, first_changed in [(3, 0), (4, 1), (8, 5), (9, 6)]:
        changed = action.copy()
        changed[:, row] = changed[:, row, ::-1]
        after = open_loop(agent, obs, changed, 4, 0)["obs"]
        differs = (after != before).any((0, 2)).tolist()
        assert differs[: first_changed + 1] == ([False] * first_changed + [True])[:6]


def test_a_dream_forgets_what_lies_before_a_first_row(agent):
    obs, action = (torch.from_numpy(x) for x in random_window())
    other, is_first = obs.clone(), torch.zeros(obs.shape[:2], dtype=torch.bool)
    other[:, :2] += 5
    for forgets in (False, True):
        is_first[:, 2] = forgets
        rngs = (torch.Generator().manual_seed(1) for _ in range(2))
        dreams = (dream_on(agent, x, action, is_first, 4, next(rngs)) for x in (obs, other))
        assert torch.equal(*dreams) == forgets


class Plain:
    """In the place of a decoder, a reward head and an encoder: numbers are as they are."""

    split = staticmethod(lambda obs: (obs[..., :1], None))
    mean = normalise = __call__ = staticmethod(lambda x: x)
    predict = staticmethod(lambda feat: feat[..., 1])


def test_open_loop_error_by_hand(monkeypatch):
    """The dream of a model that knows its world (each action is added to a number, and is the
    reward) is right on every row of an episode, first to last; rows of the next episode, which
    starts anew from -50, do not count. It goes on from what is kept in the row before the window.
    """
    layout = Layout(numbers=1, action_numbers=1)

    def dream_on(agent, obs, action, is_first, seen, rng, before):
        goes_on = ~is_first[:, 0] & (before.stoch.sum((1, 2)) > 0)  # the oldest row knows nothing
        assert seen == 2 and goes_on.any()
        assert torch.equal((before.deter + before.action)[goes_on], obs[goes_on, 0])
        led = action[:, seen - 1 : -1]
        return torch.cat([obs[:, seen - 1 : seen] + led.cumsum(1), led], -1)

    monkeypatch.setattr(evaluation, "dream_on", dream_on)
    agent = SimpleNamespace(config=SimpleNamespace(imag_horizon=4), device=CPU, layout=layout)
    agent.encoder = agent.decoder = agent.reward = Plain()
    replay, rng = ReplayBuffer(200, layout, (1, 1, 2)), np.random.default_rng(0)
    for t in range(200):
        if t == 2:  # no row to dream of
            assert open_loop_error(agent, replay, seed=3, context=2) == {}
        first, last = np.array([t % 10 == 0]), np.array([t % 10 == 9])
        if first:
            number, reward = np.array([[-50.0]]), np.zeros(1)
        action = rng.integers(1, 4, (1, 1)).astype(float)
        state = State(torch.tensor(number), torch.eye(2)[None, :1], torch.zeros(1, 1))
        replay.add(number, action, reward, first, last, last, state)
        number, reward = number + action, action[0]

    error = open_loop_error(agent, replay, seed=3, context=2)
    assert error["dream_obs_error"] == 0 and error["dream_reward_error"] == 0
    probe = np.random.default_rng(derive_seed(3, evaluation.PROBE))
    rows = zip(*map(replay.sample(64, 6, probe).get, ("obs", "is_last")), strict=True)
    moved = [abs(obs[t] - obs[1]) for obs, end in rows for t in range(2, 6) if not end[1:t].any()]
    assert len(moved) < 64 * 4  # some windows cross an end
    assert error["naive_obs_error"] == pytest.approx(np.mean(moved))


def test_pictures_of_every_type_are_drawn_and_nothing_else():
    grey = np.full((4, 6, 3), 128, np.uint8)
    for drawn in (grey[..., 0], grey[..., :1] * 1.0, np.full((4, 6, 3), 0.503)):
        np.testing.assert_array_equal(as_picture(drawn, "Draws"), grey, strict=True)
    for drawn in (None, [], np.zeros((4, 6, 7)), "text"):
        with pytest.raises(ValueError, match="^Draws draws no picture: its constructor must take"):
            as_picture(drawn, "Draws")


def test_a_long_film_keeps_every_second_or_fourth_picture(monkeypatch):
    monkeypatch.setattr(evaluation, "FRAMES", 3)

    class Draws(Walk):
        def __init__(self, render_mode):
            assert render_mode == "rgb_array"
            super().__init__(ACTION_SPACES["discrete"](), drift=0)

        def render(self):
            return np.array([[self.time]], np.uint8)

    agent = DreamerAgent(WALK, tiny_config())
    ret, frames = evaluation.film(agent, Draws, 0)
    assert ret == pytest.approx(evaluate(agent, walk(drift=0), 1, 0)[0])
    assert [frame[0, 0, 0] for frame in frames] == [0, 4, 8]
