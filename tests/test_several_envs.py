"""A run has several environments: how many, for how long, and what they may share."""

import itertools
import sys
import warnings
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from conftest import tiny_config

from dreamer import evaluate, train
from dreamer.envs import AgentEnv, EnvFault, share_a_simulator


class Walk(gym.Env):
    """A place moved left or right, for ten steps; the place is kept in `world`."""

    observation_space, action_space = gym.spaces.Box(-20, 20, (1,)), gym.spaces.Discrete(2)
    render_mode = "rgb_array"

    def __init__(self, world: dict | None = None, length: int = 10):
        self.world, self.length = {} if world is None else world, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.world["place"] = 0, self.np_random.uniform(-1, 1)
        return self.seen(), {}

    def step(self, action):
        self.time += 1
        self.world["place"] += 2 * int(action) - 1
        done = self.time >= self.length
        return self.seen(), 1.0, False, done, {"is_success": self.world["place"] > 0}

    def seen(self):
        return np.array([self.world["place"]], np.float32)

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


class Counted(Walk):
    """Counts those that were made, that are open, and that were open at once."""

    made = open = most = 0

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        Counted.made, Counted.open = Counted.made + 1, Counted.open + 1
        Counted.most = max(Counted.most, Counted.open)

    def close(self):
        Counted.open -= 1


@pytest.fixture(autouse=True)
def nothing_counted():
    Counted.made = Counted.open = Counted.most = 0


def quiet(env, config=None, run_dir=None, **options):
    return train(env, config or tiny_config(), run_dir, device="cpu", progress=False, **options)


# ---------------------------------------------------------------- how many


def test_environments_are_kept_and_closed():
    config = tiny_config(steps=400, evals=10, eval_episodes=50, eval_cost=100)
    run = quiet(Counted, config)
    assert len(run.evals) == 10 and Counted.open == 0
    assert Counted.made == Counted.most == 1 + 20  # one to train in, 20 side by side


def test_evaluate_has_twenty_open_and_closes_them():
    agent = quiet(Counted).agent
    Counted.made = 0
    returns, found = evaluate(agent, Counted, 45, details=True)
    assert (len(returns), Counted.made, Counted.open) == (45, 20, 0)
    assert found["length"] == 10 and 0 <= found["success"] <= 1


def test_a_factory_that_works_once_trains_without_evaluations():
    class Robot(Counted):
        def __init__(self):
            super().__init__()
            if Counted.made > 1:
                raise ConnectionError("the port is taken")

    assert quiet(Robot, tiny_config(evals=0)).updates > 0
    with pytest.raises(ConnectionError, match="the port is taken"):
        quiet(Robot, tiny_config(evals=2))


class Fails(Counted):
    """Each one breaks in its `at`-th step, all of them counted."""

    left = 0

    def step(self, action):
        Fails.left -= 1
        if Fails.left < 0:
            raise RuntimeError("the motor is hot")
        return super().step(action)


@pytest.mark.parametrize("steps", [0, 1, 15, 45, 100])
def test_all_are_closed_after_a_fault(steps, tmp_path):
    Fails.left = steps
    with pytest.raises(EnvFault, match="the motor is hot"):
        quiet(Fails, tiny_config(steps=400, evals=10), tmp_path)
    assert Counted.open == 0 < Counted.made


def test_all_are_closed_after_an_evaluation_fails_and_a_start_is_refused(tmp_path):
    agent = quiet(Walk).agent
    Fails.left = 5
    with pytest.raises(EnvFault, match="the motor is hot"):
        evaluate(agent, Fails, 3)
    assert Counted.open == 0 < Counted.made
    quiet(Counted, tiny_config(), tmp_path)
    with pytest.raises(ValueError, match="seed=0 instead of 5"):
        quiet(Counted, tiny_config(seed=5), tmp_path, resume=True)
    assert Counted.open == 0


# ---------------------------------------------------------------- what they cost


def steps_in_all(config):
    taken = itertools.count()

    class Counting(Walk):
        def step(self, action):
            next(taken)
            return super().step(action)

    run = quiet(Counting, config)
    return next(taken), run


def test_evaluations_take_at_most_half_as_many_steps_as_training():
    taken, run = steps_in_all(tiny_config(steps=600, evals=20, eval_episodes=20))
    assert 600 * 1.4 < taken <= 600 * 1.5 + 3 and run.eval_steps <= 300
    assert len(run.evals) > 10


def test_an_endless_environment_does_not_stall_a_run():
    config = tiny_config(steps=300, evals=5)
    taken = itertools.count()

    class Endless(Walk):
        def step(self, action):
            next(taken)
            return *super().step(action)[:3], False, {}

    run = quiet(Endless, config)
    assert run.step == 300 and run.evals == []
    assert next(taken) <= 450 + 3


# ---------------------------------------------------------------- what they share


def test_one_simulator_behind_two_environments_is_found_out():
    world: dict = {}
    shared = lambda: Walk(world)  # noqa: E731
    with pytest.raises(ValueError, match=r"^Walk: what one environment does .*evals=0"):
        quiet(shared, tiny_config(evals=2))
    assert quiet(shared, tiny_config(evals=0)).updates > 0


@pytest.mark.parametrize(("shared", "found"), [(True, True), (False, False)])
def test_who_shares_a_simulator(shared, found):
    world: dict | None = {} if shared else None
    one, other = AgentEnv(lambda: Walk(world)), AgentEnv(lambda: Walk(world))
    assert share_a_simulator(one, other) is found
    assert one.steps == other.steps == 0


def test_an_environment_that_never_repeats_itself_is_no_suspect():
    class Noisy(Walk):
        def seen(self):
            return np.random.default_rng().uniform(-1, 1, 1).astype(np.float32)

    assert not share_a_simulator(AgentEnv(Noisy), AgentEnv(Noisy))


def test_looking_for_one_changes_nothing_in_the_run():
    """The first episode starts where its seed says, and no step is counted."""
    first = quiet(Walk, tiny_config(evals=0))
    second = quiet(Walk, tiny_config(evals=1))
    for name in ("obs", "action"):
        np.testing.assert_array_equal(
            first.replay.rows[name][:20], second.replay.rows[name][:20], strict=True
        )
    assert first.env.steps == second.env.steps == first.step


@pytest.mark.parametrize(
    "wrapper", [gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward]
)
def test_wrappers_with_a_memory_are_named(wrapper):
    with pytest.warns(UserWarning, match=rf"^Walk: {wrapper.__name__} keeps running statistics"):
        quiet(lambda: gym.wrappers.ClipReward(wrapper(Walk()), -1, 1))


def test_a_users_own_running_mean_is_named():
    class Centred(gym.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            self.running_mean = 0.0

        def observation(self, observation):
            self.running_mean += 0.01 * (observation - self.running_mean)
            return observation - self.running_mean

    with pytest.warns(UserWarning, match="^Walk: Centred keeps running statistics"):
        quiet(lambda: Centred(Walk()))


def test_other_wrappers_are_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet(lambda: gym.wrappers.RecordEpisodeStatistics(Walk()))


def test_each_recorded_episode_has_its_file(tmp_path, monkeypatch):
    """Of training, of evaluations, of a resumed run and of `evaluate` afterwards."""
    monkeypatch.setitem(sys.modules, "moviepy", SimpleNamespace())
    written = []

    def stop(self):
        path = f"{self._video_name}.mp4"
        (tmp_path / "videos" / path).touch()
        written.append(path)
        self.recording = False

    monkeypatch.setattr(gym.wrappers.RecordVideo, "stop_recording", stop)

    def make():
        return gym.wrappers.RecordVideo(Walk(), str(tmp_path / "videos"), lambda episode: True)

    config = tiny_config(steps=60, evals=2, eval_episodes=3, eval_cost=9)
    run = quiet(make, config, tmp_path / "run")
    longer = tiny_config(steps=120, evals=2, eval_episodes=3, eval_cost=9)
    run = quiet(make, longer, tmp_path / "run", resume=True)
    evaluate(run.agent, make, 5)
    assert len(written) > 20 and len(set(written)) == len(written)
