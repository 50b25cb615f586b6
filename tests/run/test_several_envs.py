"""Several environments in one run: whose rows are whose, processes; and only one."""

import contextlib
import functools
import os
import signal
import subprocess
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from conftest import ACTION_SPACES, Odd, Walk, quiet_train, tiny_config, walk
from faults import assert_same_runs, start

from dreamer import evaluate
from dreamer.checkpoint import load_checkpoint
from dreamer.envs import EnvFault, make_envs

three = functools.partial(tiny_config, envs=3, prefill=21)


class Telling(Walk):
    """Observations tell the number of the environment, of its episode, and the time; `seeds` are
    those with which it was reset."""

    made: list["Telling"] = []

    def __init__(self, length: int | None = None):
        super().__init__(ACTION_SPACES["discrete"]())
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))
        self.number, self.length = len(Telling.made), length or 4 + len(Telling.made)
        self.seeds: list[int] = []
        Telling.made.append(self)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        self.seeds.append(seed)
        return self.told(), {}

    def step(self, action):
        self.time += 1
        done = self.time == self.length
        return self.told(), float(100 * self.number + self.time), done, False, {}

    def told(self):
        return np.array([self.number, len(self.seeds), self.time], np.float32)


@pytest.fixture(autouse=True)
def counted_anew(monkeypatch):
    monkeypatch.setattr(Telling, "made", [])


def streams(run) -> list[dict[str, np.ndarray]]:
    """The rows of each environment's stream, oldest first."""
    saved = {name: value.numpy() for name, value in run.replay.state_dict().items()}
    bounds = np.cumsum(saved.pop("size"))[:-1]
    parts = [np.split(rows, bounds) for rows in saved.values()]
    return [dict(zip(saved, rows, strict=True)) for rows in zip(*parts, strict=True)]


def test_each_environment_has_its_own_history():
    """Rows of a stream are those of one environment, in order; no window leaves it; random actions
    are held in each by itself; no two episodes have the same seed."""
    run = quiet_train(Telling, three(steps=180, prefill=120, train_ratio=1))
    chosen: list[np.ndarray] = []
    for number, rows in enumerate(streams(run)):
        told, length = rows["obs"], 4 + number
        assert (told[:, 0] == number).all() and len(told) > 60
        assert told[:, 2].tolist() == [t % (length + 1) for t in range(len(told))]
        assert (np.diff(told[:, 1]) == rows["is_first"][1:]).all()
        assert (rows["reward"] == np.where(told[:, 2] > 0, 100 * number + told[:, 2], 0)).all()
        assert (rows["is_last"] == (told[:, 2] == length)).all()
        assert (rows["is_terminal"] == rows["is_last"]).all()
        chosen.append(rows["action"].argmax(1)[~rows["is_last"]][:30])
        assert 0.2 < np.mean(chosen[-1][1:] == chosen[-1][:-1]) < 1
    assert (chosen[0] != chosen[1]).any() and (chosen[1] != chosen[2]).any()
    window = run.replay.sample(300, 6, np.random.default_rng(0))
    assert (np.ptp(window["obs"][..., 0], 1) == 0).all()
    assert set(window["obs"][:, 0, 0]) == {0, 1, 2}

    seeds = [env.seeds[1:] for env in Telling.made]  # after a look at the mask
    everything = [seed for some in seeds for seed in some]
    assert len(everything) == len(set(everything)) > 30
    assert run.episode.tolist() == [3 * (len(some) - 1) + i for i, some in enumerate(seeds)]
    quiet_train(Telling, three(seed=1, train_ratio=0))
    assert not {*everything} & {seed for env in Telling.made[3:] for seed in env.seeds[1:]}


def test_steps_updates_reports_and_evaluations_count_the_steps_of_all():
    run = quiet_train(Telling, three(train_ratio=18, evals=4, eval_episodes=2))
    assert run.step == 60 and sum(len(rows["obs"]) for rows in streams(run)) > 60
    assert [row["update"] for row in run.reports] == list(range(3, 40, 3))  # after 21 steps
    assert [row["step"] for row in run.reports] == list(range(24, 61, 3))
    assert [row["step"] for row in run.evals] == [24, 30, 45, 60]
    assert all(row["step"] % 3 == 0 for row in run.episodes)
    assert {row["length"] for row in run.episodes} == {4, 5, 6}
    says = {"return", "returns", "minutes", "value_pred", "value_real", "value_corr"}
    assert run.evals[-1].keys() >= says | {"dream_obs_error", "naive_obs_error"}
    assert quiet_train(Telling, three(steps=58)).step == 60  # the last turn is whole


def test_an_episode_that_does_not_repeat_itself_is_dropped_alone(tmp_path):
    class Forgetful(Telling):
        lives = 0

        def told(self):
            changes = Forgetful.lives if self.number == 1 else 0
            return np.array([self.number, changes, self.time], np.float32)

        def reset(self, **kwargs):
            Forgetful.lives += 1
            return super().reset(**kwargs)

    quiet_train(Forgetful, three(steps=33), tmp_path)
    Telling.made.clear()
    with pytest.warns(UserWarning, match="^Forgetful does not repeat itself"):
        run = quiet_train(Forgetful, three(steps=60), tmp_path, resume=True)
    for number, rows in enumerate(streams(run)):
        assert (rows["is_first"][1:] == rows["is_last"][:-1]).all()
        assert (rows["is_last"] & ~rows["is_terminal"]).sum() == (number == 1)  # cut


def test_in_processes_of_their_own_they_do_the_same(tmp_path):
    for mode in ("sync", "async"):
        quiet_train(walk(), three(evals=2, vectorization_mode=mode), tmp_path / mode)
    assert_same_runs(tmp_path / "sync", tmp_path / "async", except_for=["config"])


@pytest.mark.filterwarnings("ignore")  # Gymnasium tells of the workers' errors
@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (lambda *_: os._exit(1), "an environment's process died"),
        (lambda *_: 1 / 0, "step at step 4 must return .*ZeroDivisionError: division by zero"),
    ],
)
def test_a_process_that_fails_is_a_fault_and_the_run_is_saved(fails, message, tmp_path):
    config = three(vectorization_mode="async")
    with pytest.raises(EnvFault, match=f"^Odd: {message}. The run up to step 9 is"):
        quiet_train(lambda: Odd(fails, 4), config, tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["numbers"]["step"] == 9
    endless = lambda obs, reward, *_: (obs, reward, False, False)  # noqa: E731
    run = quiet_train(lambda: Odd(endless), config, tmp_path, resume=True)
    for rows in streams(run):  # no episode was cut
        assert (rows["is_last"] == rows["is_terminal"]).all() and len(rows["obs"]) >= 20


CHILD = """
import sys, time
from gymnasium.wrappers import TransformReward
from conftest import quiet_train, tiny_config, walk

config = tiny_config(steps=10**6, capacity=2000, envs=3, vectorization_mode="async", train_ratio=0)
slow = lambda: TransformReward(walk()(), lambda reward: time.sleep(0.005) or reward)
quiet_train(slow, config, sys.argv[1])
"""


@pytest.mark.faults
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="reads Linux's /proc")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_signal_saves_the_run_and_leaves_no_process(number, tmp_path):
    """Ctrl-C in a terminal reaches all processes, `kill` only the first."""
    log = tmp_path / "log.jsonl"
    with start("-c", CHILD, tmp_path, stderr=subprocess.PIPE, start_new_session=True) as child:
        while not log.exists() or log.stat().st_size == 0:
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.02)
        workers = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        assert len(workers) >= 3
        (os.killpg if number == "SIGINT" else os.kill)(child.pid, signal.Signals[number])
        child.wait(20)
        said = child.stderr.read()
    if number != "SIGKILL":
        assert load_checkpoint(tmp_path / "checkpoint.pt")["numbers"]["step"] > 0
        assert said.count("Traceback") <= 1, said  # of KeyboardInterrupt
    end = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("hot", [False, True])
def test_all_are_closed_in_the_end_and_after_a_fault(hot):
    class Hot(Telling):
        def step(self, action):
            return (1 / 0 if hot and self.time == 3 else super().step)(action)

        def close(self):
            self.number = None

    with pytest.raises(EnvFault) if hot else contextlib.nullcontext():
        quiet_train(Hot, three(evals=2, eval_episodes=4))
    assert [env.number for env in Telling.made] == (3 + 4) * [None]


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (lambda env: [env].pop, "pop from empty list"),  # a function that can be called once
        (lambda env: lambda: env, "the function gave the same environment twice"),
    ],
)
def test_one_environment_serves_training_and_evaluation(one, reason):
    """Its training episodes are cut by evaluations, as by a time limit. It cannot serve as two."""
    config = tiny_config(steps=61, evals=4, eval_episodes=3)
    with pytest.warns(UserWarning, match=f"{reason}.* So evaluations take place in training's"):
        run = quiet_train(one(Telling(5)), config)
    assert len(run.evals) >= 3
    assert all(row["length"] == 5 and len(row["returns"]) == 3 for row in run.evals)
    (rows,) = streams(run)
    time, inside = rows["obs"][:, 2], ~rows["is_first"]
    assert rows["is_first"][0] and (rows["is_first"][1:] == rows["is_last"][:-1]).all()
    assert (rows["is_terminal"] == (time == 5)).all()
    assert (time[inside] == time[np.flatnonzero(inside) - 1] + 1).all()
    assert 0 < (rows["is_last"] & ~rows["is_terminal"]).sum() <= len(run.evals)
    assert len(evaluate(run.agent, one(Telling(5)), 4, envs=1)) == 4
    with pytest.raises(EnvFault, match=reason):
        make_envs(one(Telling(5)), 2, config)
