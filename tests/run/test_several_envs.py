"""A run has several environments: how many, for how long, and what they may share."""

import itertools
import signal
import sys
import warnings
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from conftest import quiet_train as quiet
from conftest import tiny_config

from dreamer import evaluate
from dreamer.envs import AgentEnv, EnvFault, share_a_simulator
from dreamer.run import wrappers_with_memory


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
    Counted.made = 0
    sentence = r"^Robot could not be made: .*ConnectionError: the port is taken .*evals=0"
    with pytest.raises(EnvFault, match=sentence):
        quiet(Robot, tiny_config(evals=2))
    assert Counted.open == 1  # the one that failed has counted itself


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


class Lasting(Walk):
    """Short at first, and longer the more often the agent has learned: no limit is known."""

    taken = 0
    lengths = itertools.repeat(10)

    def reset(self, **kwargs):
        self.length = next(Lasting.lengths)
        return super().reset(**kwargs)

    def step(self, action):
        Lasting.taken += 1
        return super().step(action)


@pytest.mark.parametrize(
    ("lengths", "repeat"), [([10], 1), ([3, 12], 1), ([2, 50], 2), ([7, 7, 90], 1), ([30], 4)]
)
def test_evaluations_take_at_most_half_as_many_steps_and_are_whole(lengths, repeat):
    Lasting.taken, Lasting.lengths = 0, itertools.cycle(lengths)
    config = tiny_config(steps=800, evals=20, eval_episodes=20, action_repeat=repeat)
    run = quiet(Lasting, config)
    probed = 5 * repeat
    assert 800 * 1.2 < Lasting.taken + probed and run.eval_steps <= 400
    assert Lasting.taken <= 800 * 1.5 + probed
    assert len(run.evals) >= 2
    for row in run.evals:  # the reward is 1 a step: none was dropped for being long
        assert row["return"] == pytest.approx(row["length"])
        assert len(row["returns"]) == row["episodes"]


def test_a_time_limit_that_is_known_is_what_an_episode_is_reckoned_at():
    """Ten steps at random, a hundred for the greedy agent: it could not know."""
    gym.register("Limited-v0", lambda: Walk(length=100), max_episode_steps=100)
    try:
        config = tiny_config(steps=1000, evals=10, train_ratio=1)
        run = quiet("Limited-v0", config)
    finally:
        del gym.registry["Limited-v0"]
    assert [row["episodes"] for row in run.evals] == [1] * 5
    assert [row["step"] for row in run.evals] == [200, 400, 600, 800, 1000]


def test_something_is_left_for_an_evaluation_at_the_end():
    """An episode of 300 steps, three of which can be paid for, one of them at the last step."""
    gym.register("Limited-v0", lambda: Walk(length=300), max_episode_steps=300)
    try:
        run = quiet("Limited-v0", tiny_config(steps=1900, evals=10, train_ratio=0.5))
    finally:
        del gym.registry["Limited-v0"]
    assert [row["step"] for row in run.evals] == [600, 1200, 1900]


def test_no_episode_is_left_out_for_being_long():
    """All that were begun count: half of them last 2 steps, half of them 50."""

    class Either(Walk):
        def reset(self, **kwargs):
            obs, info = super().reset(**kwargs)
            self.length = int(self.np_random.choice([2, 50]))
            return obs, info

    run = quiet(Either, tiny_config(steps=8000, evals=20, train_ratio=0.1))
    numbers = [row["episodes"] for row in run.evals]
    assert numbers[0] == 1 and all(b <= 2 * a for a, b in itertools.pairwise(numbers))
    everything = np.concatenate([row["returns"] for row in run.evals])
    assert len(everything) > 40 and everything.mean() == pytest.approx(26, abs=5)


def test_a_greedy_agent_that_lasts_far_longer_is_evaluated_all_the_same():
    """Training episodes have 5 steps; the first evaluation proves that greedy ones have 200."""
    Lasting.taken, Lasting.lengths = 0, itertools.repeat(5)

    class Greedy(Lasting):
        number = itertools.count()

        def __init__(self):
            super().__init__()
            self.kept_for_evaluations = next(Greedy.number) > 0

        def reset(self, **kwargs):
            obs, info = super().reset(**kwargs)
            self.length = 200 if self.kept_for_evaluations else 5
            return obs, info

    run = quiet(Greedy, tiny_config(steps=2000, evals=20, train_ratio=0.5))
    assert run.eval_steps <= 1000 and len(run.evals) >= 4
    assert {row["length"] for row in run.evals} == {200}


def test_an_endless_environment_does_not_stall_a_run_and_says_why_nothing_was_evaluated():
    class Endless(Lasting):
        def step(self, action):
            return *super().step(action)[:3], False, {}

    Lasting.taken = 0
    with pytest.warns(
        UserWarning, match="^Endless: no evaluation fitted into eval_cost=0.5, as an"
    ):
        run = quiet(Endless, tiny_config(steps=300, evals=5))
    assert run.step == 300 and run.evals == []
    assert Lasting.taken <= 450 + 5


def test_a_run_that_learns_nothing_says_so():
    with pytest.warns(
        UserWarning, match="^Walk: nothing was learned: 60 steps .* seq_len=200 rows"
    ):
        run = quiet(Walk, tiny_config(seq_len=200))
    assert run.updates == 0


# ---------------------------------------------------------------- what they share


def test_one_simulator_behind_two_environments_is_found_out():
    world: dict = {}
    shared = lambda: Walk(world)  # noqa: E731
    with pytest.raises(ValueError, match=r"^Walk: what one environment does .*evals=0"):
        quiet(shared, tiny_config(evals=2))
    assert quiet(shared, tiny_config(evals=0)).updates > 0


def test_a_pool_of_environments_is_found_out_when_it_goes_round():
    pool = itertools.cycle([Walk(length=7) for _ in range(3)])
    with pytest.raises(ValueError, match="gave the same environment twice"):
        quiet(lambda: next(pool), tiny_config(steps=400, evals=4, eval_episodes=4, eval_cost=5))


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


@pytest.mark.parametrize(
    ("names", "found"),
    [(["arms"], 0), (["platforms"], 0), (["mean", "var"], 0), (["mean", "var", "count"], 1)]
    + [(["obs_rms"], 1), (["running_std"], 1), (["running"], 0)],
)
def test_what_counts_as_a_memory(names, found):
    wrapper = gym.Wrapper(Walk())
    vars(wrapper).update(dict.fromkeys(names, 0.0))
    assert len(wrappers_with_memory(wrapper)) == found


def test_other_wrappers_are_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet(lambda: gym.wrappers.RecordEpisodeStatistics(Walk()))


def test_each_recorded_episode_has_its_file(tmp_path, monkeypatch):
    """Of training, of evaluations, of a resumed run and of `evaluate` afterwards."""
    monkeypatch.setitem(sys.modules, "moviepy", SimpleNamespace())
    written, frames = [], {}

    def stop(self):
        path = f"{self._video_name}.mp4"
        frames[path] = len(self.recorded_frames)
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
    first = min(written, key=written.index)
    assert first.endswith("episode-0.mp4") and frames[first] == 11  # a real episode, not a look


# ---------------------------------------------------------------- made and closed


class Slammed(Counted):
    """Its end is the end of the program, were it asked."""

    def close(self):
        super().close()
        raise SystemExit(1)


def test_what_close_raises_costs_nothing(tmp_path):
    with pytest.warns(UserWarning, match="^Slammed: close raised SystemExit: 1"):
        run = quiet(Slammed, tiny_config(evals=2, eval_cost=9), tmp_path)
    assert run.step == 60 and Counted.open == 0
    quiet(Walk, run_dir=tmp_path)  # nobody holds the folder
    with pytest.warns(UserWarning, match="^Slammed: close raised SystemExit: 1"):
        assert len(evaluate(run.agent, Slammed, 3)) == 3


@pytest.mark.parametrize("error", [RuntimeError("two licences"), SystemExit("two licences")])
def test_an_environment_that_cannot_be_made_is_named_and_the_run_is_saved(tmp_path, error):
    class Third(Counted):
        def __init__(self):
            super().__init__()
            if Counted.made == 3:
                raise error

    sentence = rf"^Third could not be made: it raised {type(error).__name__}: two licences"
    with pytest.raises(EnvFault, match=sentence):
        quiet(Third, tiny_config(steps=400, evals=8, eval_cost=5), tmp_path)
    assert (tmp_path / "checkpoint.pt").exists()


def test_a_space_that_cannot_be_asked_for_is_named():
    class Shy(Walk):
        observation_space = property(lambda self: 1 / 0)

    with pytest.raises(EnvFault, match="^Shy does not say what goes in and out, .*division by"):
        AgentEnv(Shy)


def test_subclasses_of_the_old_gym_are_named():
    old = type("Env", (), {"__module__": "gym.core"})
    mine = type("MyOld", (old,), {"__module__": "my_robot"})
    for given in (mine, mine()):
        with pytest.raises(ValueError, match="this is gym, Gymnasium is needed"):
            AgentEnv(given)


@pytest.mark.parametrize("threads", [0, "2", 1.5, True])
def test_a_number_of_threads_that_is_none_changes_nothing(threads):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="^threads must be a whole number from 1 on, got"):
        quiet(Counted, threads=threads)
    assert signal.getsignal(signal.SIGINT) is before and Counted.made == 0


def test_an_environment_is_known_by_its_id_however_it_was_asked_for(tmp_path):
    quiet("CartPole-v1", run_dir=tmp_path)
    for spec in ("CartPole", lambda **options: gym.make("CartPole-v1", **options)):
        assert quiet(spec, run_dir=tmp_path, resume=True).step == 60
    with pytest.raises(ValueError, match="resume needs run_dir"):
        quiet(spec, resume=True)
    with pytest.raises(ValueError, match="run_dir is empty"):
        quiet("CartPole-v1", run_dir="")
