"""Several environments in one run: whose rows are whose, resume, processes; and only one."""

import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
from conftest import ACTION_SPACES, ROOT, Walk, quiet_train, tiny_config, walk
from faults import assert_same_runs, kill_often, log_rows, train_child

from dreamer import evaluate
from dreamer.checkpoint import load_checkpoint
from dreamer.envs import EnvFault


def three(**changes):
    return tiny_config(**{"envs": 3, "prefill": 21, "capacity": 1500, **changes})


class Telling(Walk):
    """A walk whose observations tell the number of its environment, of its episode, and the time.
    The seeds with which it was reset stand in `seeds`."""

    made = 0

    def __init__(self, length: int | None = None):
        super().__init__(ACTION_SPACES["discrete"](), drift=0.01)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))
        self.number, self.length = Telling.made, length or 4 + Telling.made
        self.seeds: list[int] = []
        Telling.made += 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
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
def counted_anew():
    Telling.made = 0


def streams(run) -> list[dict[str, np.ndarray]]:
    """The rows of each environment's stream, oldest first."""
    saved = {name: value.numpy() for name, value in run.replay.state_dict().items()}
    bounds = np.cumsum(saved.pop("size"))[:-1]
    parts = {name: np.split(rows, bounds) for name, rows in saved.items()}
    return [{name: rows[i] for name, rows in parts.items()} for i in range(len(bounds) + 1)]


def test_each_environment_has_its_own_history(tmp_path):
    """Rows of a stream are those of one environment, in order; no window leaves it."""
    run = quiet_train(Telling, three(steps=120), tmp_path)
    for number, rows in enumerate(streams(run)):
        told, length = rows["obs"], 4 + number
        assert (told[:, 0] == number).all() and len(told) > 40
        turns = len(told)
        assert told[:, 2].tolist() == [t % (length + 1) for t in range(turns)]
        assert (np.diff(told[:, 1]) == rows["is_first"][1:]).all()
        assert (rows["reward"] == np.where(told[:, 2] > 0, 100 * number + told[:, 2], 0)).all()
        assert (rows["is_last"] == (told[:, 2] == length)).all()
        assert (rows["is_terminal"] == rows["is_last"]).all()
    window = run.replay.sample(300, 6, np.random.default_rng(0))
    assert (np.ptp(window["obs"][..., 0], 1) == 0).all()
    assert set(window["obs"][:, 0, 0]) == {0, 1, 2}


def test_steps_updates_reports_and_evaluations_count_the_steps_of_all():
    run = quiet_train(Telling, three(steps=120, train_ratio=18, evals=4, eval_episodes=2))
    assert run.step == 120 and sum(len(rows["obs"]) for rows in streams(run)) > 120
    assert [row["update"] for row in run.reports] == list(range(3, 100, 3))  # after 21 steps
    assert [row["step"] for row in run.reports] == list(range(24, 121, 3))
    assert [row["step"] for row in run.evals] == [30, 60, 90, 120]
    assert all(row["step"] % 3 == 0 for row in run.episodes)
    assert {row["length"] for row in run.episodes} == {4, 5, 6}
    assert quiet_train(Telling, three(steps=118)).step == 120  # the last turn is whole


def test_no_two_episodes_have_the_same_seed():
    made = []

    def make():
        made.append(Telling())
        return made[-1]

    run = quiet_train(make, three(steps=120))
    seeds = [env.seeds[1:] for env in made]  # after a look at the mask
    everything = [seed for some in seeds for seed in some]
    assert len(everything) == len(set(everything)) > 20 and all(len(some) > 5 for some in seeds)
    quiet_train(make, three(steps=120, seed=1))
    assert not {*everything} & {seed for env in made[3:] for seed in env.seeds[1:]}
    assert run.episode.tolist() == [3 * (len(some) - 1) + i for i, some in enumerate(seeds)]


def test_random_actions_are_held_in_each_environment_by_itself():
    """Its own, and until its episode ends."""
    run = quiet_train(Telling, three(steps=300, prefill=300, train_ratio=0))
    chosen = [rows["action"].argmax(1)[~rows["is_last"]][:40] for rows in streams(run)]
    assert all((a != b).any() for a, b in ((chosen[0], chosen[1]), (chosen[1], chosen[2])))
    assert all(0.2 < np.mean(actions[1:] == actions[:-1]) < 1 for actions in chosen)


def test_one_that_does_not_repeat_itself_is_dropped_alone(tmp_path):
    class Forgetful(Telling):
        lives = 0

        def told(self):
            changes = Forgetful.lives if self.number == 1 else 0
            return np.array([self.number, changes, self.time], np.float32)

        def reset(self, **kwargs):
            Forgetful.lives += 1
            return super().reset(**kwargs)

    quiet_train(Forgetful, three(steps=33), tmp_path)
    Telling.made = 0
    with pytest.warns(UserWarning, match="^Forgetful does not repeat itself"):
        run = quiet_train(Forgetful, three(steps=90), tmp_path, resume=True)
    for number, rows in enumerate(streams(run)):
        assert (rows["is_first"][1:] == rows["is_last"][:-1]).all()
        cut = rows["is_last"] & ~rows["is_terminal"]
        assert cut.sum() == (number == 1)


@pytest.mark.faults
@pytest.mark.parametrize(("envs", "mode"), [(1, "sync"), (3, "sync"), (3, "async")])
def test_killed_three_times_and_equal_to_an_uninterrupted_run(envs, mode, tmp_path):
    """In child processes, with SIGKILL, once in the middle of writing a checkpoint."""
    train_child(tmp_path / "whole", 300, envs, "sync")
    generator = np.random.default_rng(0)
    killed, in_writing = kill_often(tmp_path / "killed", 300, 3, generator, envs, mode)
    assert killed == 3 and in_writing >= 1
    names = [{p.name for p in (tmp_path / name).iterdir()} for name in ("killed", "whole")]
    assert names[0] == names[1]  # nothing is left over
    assert_same_runs(tmp_path / "whole", tmp_path / "killed", except_for=["config"])  # mode


def test_in_processes_of_their_own_they_do_the_same(tmp_path):
    for mode in ("sync", "async"):
        config = three(evals=2, vectorization_mode=mode)
        quiet_train(walk(), config, tmp_path / mode)
    assert_same_runs(tmp_path / "sync", tmp_path / "async", except_for=["config"])
    assert log_rows(tmp_path / "sync")


class Dying(Walk):
    """Its process ends in the fourth step."""

    def step(self, action):
        if self.time == 3:
            os._exit(1)
        return super().step(action)


def test_a_process_that_dies_is_a_fault_and_the_run_is_saved(tmp_path):
    config = three(vectorization_mode="async")
    with pytest.raises(EnvFault, match="^Dying: an .* process died. The run up to step 9 is"):
        quiet_train(lambda: Dying(ACTION_SPACES["discrete"](), drift=0.01), config, tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["numbers"]["step"] == 9
    mended = type("Dying", (Walk,), {})
    run = quiet_train(
        lambda: mended(ACTION_SPACES["discrete"](), drift=0.01), config, tmp_path, resume=True
    )
    assert run.step == 60
    for rows in streams(run):  # episodes of nine steps: one goes on where it was
        assert rows["is_first"].nonzero()[0].tolist() == [0, 10, 20]


CHILD = """
import sys, time
import gymnasium as gym
from conftest import quiet_train, tiny_config, walk

class Slow(gym.Wrapper):
    def step(self, action):
        time.sleep(0.005)
        return super().step(action)

config = tiny_config(steps=10**6, capacity=2000, envs=3, vectorization_mode="async", train_ratio=0)
print("begins", flush=True)
quiet_train(lambda: Slow(walk()()), config, sys.argv[1])
"""


def children(pid: int) -> list[int]:
    """The processes below one, by Linux's /proc."""
    found = []
    for stat in (f"/proc/{name}/stat" for name in os.listdir("/proc") if name.isdigit()):
        try:
            with open(stat) as file:
                text = file.read()
        except OSError:
            continue
        own, parent = int(text.split()[0]), int(text.rpartition(")")[2].split()[1])
        found += [own] if parent == pid else []
    return found


@pytest.mark.faults
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("number", "everyone"), [("SIGINT", True), ("SIGTERM", False), ("SIGKILL", False)]
)
def test_a_signal_saves_the_run_and_leaves_no_process(number, everyone, tmp_path):
    """Ctrl-C in a terminal reaches all processes, `kill` only the first."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        log = tmp_path / "log.jsonl"
        while not log.exists() or log.stat().st_size == 0:
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.02)
        workers = children(child.pid)
        assert len(workers) >= 3
        send = os.killpg if everyone else os.kill
        send(child.pid, signal.Signals[number])
        child.wait(20)
        said = child.stderr.read()
    if number != "SIGKILL":
        assert load_checkpoint(tmp_path / "checkpoint.pt")["numbers"]["step"] > 0
        assert said.count("Traceback") <= 1, said  # of KeyboardInterrupt
    end = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


class Counted(Walk):
    """Counts those that were made and that are open; `fails` at a step of all."""

    made = opened = taken = 0
    fails = 10**9

    def __init__(self):
        super().__init__(ACTION_SPACES["discrete"]())
        Counted.made, Counted.opened = Counted.made + 1, Counted.opened + 1

    def step(self, action):
        Counted.taken += 1
        if Counted.taken == Counted.fails:
            raise RuntimeError("the motor is hot")
        return super().step(action)

    def close(self):
        Counted.opened -= 1


@pytest.mark.parametrize("fails", [1, 30, 75, 10**9])
def test_all_are_closed_in_the_end_and_after_a_fault(fails, monkeypatch):
    for name, value in {"made": 0, "opened": 0, "taken": 0, "fails": fails}.items():
        monkeypatch.setattr(Counted, name, value)
    try:
        quiet_train(Counted, three(evals=2, eval_episodes=4))
    except EnvFault as fault:
        assert "the motor is hot" in str(fault)
    assert (Counted.taken >= fails) == (fails < 10**9)
    assert (Counted.made, Counted.opened) == (3 + 4, 0)


def once():
    """A function that makes one environment, and fails when it is called again."""
    made: list[Telling] = []

    def robot():
        if made:
            raise ConnectionError("the port is taken")
        made.append(Telling(5))
        return made[0]

    return robot


def the_same():
    """A function that gives the same environment again and again."""
    made = Telling(5)
    return lambda: made


KINDS = {
    "called once": (once, "the port is taken"),
    "the same": (the_same, "same environment twice"),
}


@pytest.mark.parametrize(("kind", "reason"), KINDS.values(), ids=KINDS)
def test_one_environment_serves_training_and_evaluation(kind, reason, tmp_path):
    """Its training episodes are cut by evaluations, as by a time limit."""
    config = tiny_config(steps=61, evals=4, eval_episodes=3)
    with pytest.warns(UserWarning, match=f"{reason}.* So evaluations take place in training's"):
        run = quiet_train(kind(), config, tmp_path / "run")
    assert len(run.evals) >= 3
    assert all(row["length"] == 5 and len(row["returns"]) == 3 for row in run.evals)
    (rows,) = streams(run)
    told = rows["obs"]
    assert rows["is_first"][0] and (rows["is_first"][1:] == rows["is_last"][:-1]).all()
    assert (rows["is_terminal"] == (told[:, 2] == 5)).all()
    inside = ~rows["is_first"]
    assert (told[inside, 2] == told[np.flatnonzero(inside) - 1, 2] + 1).all()
    cut = rows["is_last"] & ~rows["is_terminal"]
    assert 0 < cut.sum() <= len(run.evals)
    assert len(evaluate(run.agent, kind(), 4, envs=1)) == 4
