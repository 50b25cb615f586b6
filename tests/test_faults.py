"""What a run survives: damaged files, full disks, kills, bad environments, extreme numbers."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import re
import resource
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ACTION_SPACES, Walk, tiny_config, walk
from faults import (
    adversarial_update,
    assert_same_runs,
    kill_often,
    log_rows,
    same,
    train_child,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dreamer import envs, training
from dreamer.agent import DreamerAgent, rate_factor
from dreamer.checkpoint import (
    FORMAT,
    CheckpointError,
    Log,
    load_checkpoint,
    save_checkpoint,
    seal,
    write_atomic,
)
from dreamer.envs import EnvFault
from dreamer.evaluation import evaluate, random_returns
from dreamer.rssm import kl_losses
from dreamer.training import Trainer, load_agent, save_agent, train
from dreamer.utils import PercentileScale, lambda_return, twohot_bins, twohot_loss, twohot_mean

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run of 60 steps."""
    run_dir = tmp_path_factory.mktemp("finished")
    train(walk(), tiny_config(evals=2), run_dir, device="cpu", progress=False)
    return run_dir


def resume(run_dir: Path, env=None, **changes):
    config = tiny_config(**{"evals": 2, **changes})
    return train(env or walk(), config, run_dir, resume=True, device="cpu", progress=False)


def refusal(path: Path, call) -> str:
    """The one sentence with which `call` refuses the file at `path`."""
    with pytest.raises(CheckpointError) as error:
        call()
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 500
    return text


# ---------------------------------------------------------------- damaged files


def test_a_checkpoint_cut_at_every_tenth_is_refused(finished, tmp_path):
    content = (finished / "checkpoint.pt").read_bytes()
    path = tmp_path / "checkpoint.pt"
    for tenth in range(10):
        path.write_bytes(content[: len(content) * tenth // 10])
        for call in (lambda: load_agent(path), lambda: resume(tmp_path)):
            assert re.search("damaged.*delete it and train anew", refusal(path, call))
    path.write_bytes(content)
    assert load_agent(path).action_size == 3


def flipped(path: Path, content: bytes, position: int, bit: int) -> None:
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    path.write_bytes(changed)
    assert re.search("damaged|format", refusal(path, lambda: load_checkpoint(path)))


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path_factory, finished, where, bit):
    content = (finished / "checkpoint.pt").read_bytes()
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    flipped(path, content, int(where * len(content)), bit)


def test_every_bit_of_the_first_line_counts(tmp_path):
    path = tmp_path / "small.pt"
    save_checkpoint(path, {"x": 1})
    content = path.read_bytes()
    for position in range(content.index(b"\n") + 2):
        for bit in range(8):
            flipped(path, content, position, bit)


@pytest.mark.parametrize("version", [FORMAT - 1, FORMAT + 1])
def test_a_checkpoint_of_another_format_is_refused(finished, tmp_path, version):
    path = tmp_path / "checkpoint.pt"
    data = (finished / "checkpoint.pt").read_bytes().partition(b"\n")[2]
    path.write_bytes(seal(data, version) + data)
    text = refusal(path, lambda: resume(tmp_path))
    assert f"format {version}, but this program reads format {FORMAT}" in text


def test_a_bare_torch_file_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 1}, path)
    assert "format 1" in refusal(path, lambda: load_agent(path))


class Hostile:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_loading_executes_nothing(tmp_path):
    """Not even where the checksum is right."""
    trace, path = tmp_path / "executed", tmp_path / "checkpoint.pt"
    hostile = {"agent": Hostile(trace)}
    plain = pickle.dumps(hostile)
    torch.save(hostile, tmp_path / "hostile.pt")
    for data in (plain, (tmp_path / "hostile.pt").read_bytes()):
        path.write_bytes(seal(data) + data)
        for call in (lambda: load_agent(path), lambda: resume(tmp_path)):
            assert "plain data" in refusal(path, call)
            assert not trace.exists()
    pickle.loads(plain)
    assert trace.exists()  # the pickle is hostile indeed


def test_a_checkpoint_of_another_run_is_refused_and_nothing_is_touched(finished, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    before = {p.name: p.read_bytes() for p in run_dir.iterdir()}
    path = run_dir / "checkpoint.pt"
    cases = [
        (dict(env=walk("box")), r"is of Walk with sizes \[2, 3, True\], not of Walk with \[2, 2"),
        (dict(env="CartPole-v1"), "is of Walk .* not of CartPole-v1"),
        (dict(hidden=8), "another config, with hidden=16 instead of 8: resume with that config"),
        (dict(seed=1, lam=0.5), "seed=0 instead of 1, lam=0.95 instead of 0.5"),
        (dict(steps=59), "is of step 60, beyond Config.steps=59"),
    ]
    for changes, expected in cases:
        assert re.search(expected, refusal(path, lambda c=changes: resume(run_dir, **c)))
    assert {p.name: p.read_bytes() for p in run_dir.iterdir()} == before


def test_a_refused_checkpoint_leaves_no_half_loaded_agent(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    trainer = Trainer(walk(), tiny_config(evals=2, actor_lr=1e-5), tmp_path, CPU)
    before = {k: v.clone() for k, v in trainer.agent.state_dict().items()}
    refusal(trainer.checkpoint, trainer.restore)
    assert same(before, dict(trainer.agent.state_dict()))
    assert len(trainer.replay) == trainer.step == 0


def test_weights_alone_are_no_training_state(finished, tmp_path):
    save_agent(load_agent(finished / "checkpoint.pt"), tmp_path / "checkpoint.pt")
    text = refusal(tmp_path / "checkpoint.pt", lambda: resume(tmp_path))
    assert "holds no training state" in text


@pytest.mark.parametrize(
    "change", [{"config": {"hiden": 3}}, {"sizes": [2, 3]}, {"agent": {}}, {"config": None}]
)
def test_an_agent_that_cannot_be_built_is_refused(finished, tmp_path, change):
    path = tmp_path / "agent.pt"
    save_checkpoint(path, {**load_checkpoint(finished / "checkpoint.pt"), **change})
    assert "does not hold an agent" in refusal(path, lambda: load_agent(path))


def test_a_missing_or_shorter_log_is_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    log = tmp_path / "log.jsonl"
    content = log.read_bytes()
    log.write_bytes(content[:-1])
    assert f"has {len(content) - 1} bytes" in refusal(log, lambda: resume(tmp_path))
    log.unlink()
    assert "has 0 bytes" in refusal(log, lambda: resume(tmp_path))


def test_rows_after_the_checkpoint_and_torn_ones_are_cut(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"kind": "episode", "step": 61}\n{"kind": "epi')
    resume(tmp_path)
    assert log_rows(tmp_path) == log_rows(finished)


def test_numpy_numbers_in_the_config_can_be_saved(tmp_path):
    changes = dict(steps=np.int64(30), lam=np.float32(0.5), train_ratio=np.int32(2))
    resume(tmp_path, **changes)
    assert load_agent(tmp_path / "checkpoint.pt").config.steps == 30
    resume(tmp_path, **changes)


# ---------------------------------------------------------------- stopped and resumed


def test_a_finished_run_can_be_given_more_steps(finished, tmp_path):
    """It goes on where it was, at the rates of a run of that length."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    run = resume(tmp_path, steps=90)
    episodes = [row for row in log_rows(finished) if row["kind"] == "episode"]
    assert len(run.episodes) > len(episodes) > 0
    assert [r["return"] for r in run.episodes][: len(episodes)] == [r["return"] for r in episodes]
    c, updates = run.agent.config, run.agent.schedule.last_epoch
    assert updates == c.updates_after(90) == 20 > c.updates_after(60)
    rates = [group["lr"] for group in run.agent.optimizer.param_groups]
    expected = [rate * rate_factor(c, 20) for rate in (c.model_lr, c.actor_lr, c.critic_lr)]
    assert rates == pytest.approx(expected)


def test_killed_three_times_and_equal_to_an_uninterrupted_run(tmp_path):
    """In child processes, with SIGKILL, once in the middle of writing a checkpoint."""
    steps = 300
    train_child(tmp_path / "whole", steps)
    killed, in_writing = kill_often(tmp_path / "killed", steps, 3, np.random.default_rng(0))
    assert killed == 3 and in_writing >= 1
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")
    names = {p.name for p in (tmp_path / "killed").iterdir()}
    assert names == {p.name for p in (tmp_path / "whole").iterdir()}  # nothing is left over


def test_a_checkpoint_every_minute_and_not_more(tmp_path, monkeypatch):
    """By a clock that goes on by 7 seconds at every look."""
    times, steps = iter(range(0, 10**6, 7)), []
    monkeypatch.setattr(training.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(Trainer, "try_save", lambda self: steps.append(self.step))
    train(walk(), tiny_config(train_ratio=0), tmp_path, progress=False)
    gaps = np.diff([0, *steps])
    assert len(steps) >= 10 and gaps.max() * 2 * 7 <= 60 + 3 * 7 and gaps.min() * 2 * 7 >= 40


class Forgetful(Walk):
    """Resets to another state every time, whatever the seed."""

    lives = 0

    def reset(self, *, seed=None, options=None):
        Forgetful.lives += 1
        return super().reset(seed=seed + Forgetful.lives)


def test_an_episode_that_cannot_be_repeated_is_dropped_and_said_so(tmp_path):
    make = lambda: Forgetful(ACTION_SPACES["discrete"]())  # noqa: E731
    config = tiny_config(steps=13)
    train(make, config, tmp_path, device="cpu", progress=False)
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    assert len(saved["episode_actions"]) > 0
    with pytest.warns(UserWarning, match="Forgetful does not repeat itself"):
        resume(tmp_path, make, steps=40, evals=0)
    replay = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    first, last = replay["is_first"].numpy(), replay["is_last"].numpy()
    assert (first[1:] == last[:-1]).all()  # every episode in the replay has its end


# ---------------------------------------------------------------- full and read-only disks


class Quota:
    """A largest size of files, as `ulimit -f` sets it."""

    def fill(self, run_dir: Path) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, self.before[1]))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


class Filler:
    """A small file system, filled to the last byte."""

    def fill(self, run_dir: Path) -> None:
        self.path = run_dir.parent / "filler"
        with open(self.path, "wb", buffering=0) as file, pytest.raises(OSError) as error:
            while True:
                file.write(bytes(4096))
        assert error.value.errno == errno.ENOSPC

    def free(self) -> None:
        self.path.unlink()


@contextlib.contextmanager
def small_disk(folder: Path, *options: str):
    """A file system of 2 MB in memory."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", ",".join(["size=2m", *options]), "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root on Linux")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(params=["quota", "full disk"])
def disk(request, tmp_path):
    """(a run's folder, the fault that befalls it)."""
    if request.param == "quota":
        yield tmp_path / "run", Quota()
    else:
        with small_disk(tmp_path / "disk") as folder:
            yield folder / "run", Filler()


class Hook(Walk):
    """A walk that calls functions at some of its steps."""

    def __init__(self, at_step: dict):
        super().__init__(ACTION_SPACES["discrete"]())
        self.at_step, self.count = at_step, 0

    def step(self, action):
        self.count += 1
        self.at_step.get(self.count, int)()
        return super().step(action)


CANNOT = r"(checkpoint\.pt|log\.jsonl) was not written: (File too large|No space left on device)"


def test_a_disk_full_for_a_while_costs_nothing(disk, tmp_path, monkeypatch):
    run_dir, fault = disk
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    config = tiny_config(evals=2)
    hooks = {33: lambda: fault.fill(run_dir), 50: fault.free}
    with pytest.warns(UserWarning, match="no checkpoint of step 40, as .*" + CANNOT):
        train(lambda: Hook(hooks), config, run_dir, device="cpu", progress=False)
    train(lambda: Hook({}), config, tmp_path / "whole", device="cpu", progress=False)
    assert_same_runs(tmp_path / "whole", run_dir)


def test_a_disk_that_stays_full_ends_in_an_error_and_a_good_checkpoint(disk, tmp_path, monkeypatch):
    run_dir, fault = disk
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    config = tiny_config(evals=2)
    hooks = {33: lambda: fault.fill(run_dir)}
    try:
        with warnings.catch_warnings(), pytest.raises(OSError, match="not written") as error:
            warnings.simplefilter("ignore")
            train(lambda: Hook(hooks), config, run_dir, device="cpu", progress=False)
        assert re.search(r"checkpoint\.pt|log\.jsonl", error.value.filename)
    finally:
        fault.free()
    assert load_checkpoint(run_dir / "checkpoint.pt")["counters"][0] == 32
    assert log_rows(run_dir)  # none torn
    train(lambda: Hook({}), config, run_dir, True, "cpu", progress=False)
    train(lambda: Hook({}), config, tmp_path / "whole", device="cpu", progress=False)
    assert_same_runs(tmp_path / "whole", run_dir)


def test_a_read_only_place_is_refused_at_the_start(tmp_path):
    with small_disk(tmp_path / "disk", "ro") as folder:
        with pytest.raises(OSError, match=f"Read-only file system: '{folder}/run'"):
            train(walk(), tiny_config(), folder / "run", progress=False)
        with pytest.raises(OSError, match=f"not written: Read-only.*'{folder}/figure.png'"):
            write_atomic(folder / "figure.png", lambda path: path.write_text("x"))


def test_an_atomic_write_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write_atomic(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_log_row_is_written_whole_or_not_at_all(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.write("eval", 1, x=1)
    quota = Quota()
    quota.fill(tmp_path)
    try:
        log.write("eval", 2, x="y" * 3_000)
        log.write("eval", 3)
        with pytest.raises(OSError, match="not written: File too large"):
            log.flush()
        assert [row["step"] for row in log_rows(tmp_path)] == [1]
    finally:
        quota.free()
    log.write("eval", 4)
    assert log.flush() == (tmp_path / "log.jsonl").stat().st_size
    assert [row["step"] for row in log_rows(tmp_path)] == [1, 2, 3, 4]


# ---------------------------------------------------------------- misbehaving environments


class Odd(Walk):
    """A walk that from step `since` of its life on returns what `change` makes of its own
    (obs, reward, terminated, truncated)."""

    def __init__(self, change, since: int = 1, kind: str = "discrete"):
        super().__init__(ACTION_SPACES[kind]())
        self.change, self.since, self.count = change, since, 0

    def step(self, action):
        self.count += 1
        values = super().step(action)[:4]
        return (*(self.change(*values) if self.count >= self.since else values), {})


BUFFER = np.zeros(2, np.float32)


def reused(obs, *rest):
    BUFFER[:] = obs
    return BUFFER, *rest


ODD = {  # what comes back -> the observations that must be learned from
    "float64": (lambda obs, *r: (obs.astype(np.float64), *r), lambda obs: obs),
    "uint8": (lambda obs, *r: (np.uint8([7, 255]), *r), lambda obs: [7, 255]),
    "list": (lambda obs, *r: (obs.tolist(), *r), lambda obs: obs),
    "not contiguous": (lambda obs, *r: (np.repeat(obs, 3)[::3], *r), lambda obs: obs),
    "one buffer": (reused, lambda obs: obs),
    "far outside": (lambda obs, *r: (obs * 1e30, *r), lambda obs: obs * np.float32(1e30)),
}


@pytest.mark.parametrize("change, expected", ODD.values(), ids=ODD)
def test_unusual_observations_are_learned_from(tmp_path, change, expected):
    seen: list[dict] = []

    def make():
        env = Odd(change)
        env.seen = seen
        return env

    agent = train(make, tiny_config(steps=40), tmp_path, device="cpu", progress=False).agent
    assert all(p.isfinite().all() for p in agent.parameters())
    steps = [i for i, event in enumerate(seen) if event["event"] == "step"]
    replay = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    rows = np.array([expected(seen[i]["obs"]) for i in steps], np.float32)
    arrived = replay["obs"][~replay["is_first"]].numpy()
    np.testing.assert_allclose(arrived, rows[: len(arrived)], rtol=1e-6)
    assert len(arrived) >= 39


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_huge_rewards_and_one_step_episodes_are_learned_from(kind):
    rewards = iter([1e8, -1e8] * 1000)
    change = lambda obs, *_: (obs, next(rewards), True, False)  # noqa: E731
    make = lambda: Odd(change, kind=kind)  # noqa: E731
    agent = train(make, tiny_config(steps=50, evals=1), progress=False).agent
    assert all(p.isfinite().all() for p in agent.parameters())


def endless(obs, reward, *_):
    return obs, reward, False, False


@pytest.mark.parametrize("repeat", [1, 4])  # 25 is no multiple of 4
def test_an_endless_episode_is_cut_in_training_and_evaluation(tmp_path, monkeypatch, repeat):
    monkeypatch.setattr(envs, "MAX_EPISODE_STEPS", 25)
    config = tiny_config(evals=1, action_repeat=repeat)
    with pytest.warns(UserWarning, match="Odd: an episode that did not end in 25 steps was cut"):
        run = train(lambda: Odd(endless), config, tmp_path, progress=False)
    assert [row["length"] for row in run.episodes] == [25, 25]
    replay = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    assert replay["is_last"].sum() == 2 and not replay["is_terminal"].any()
    with pytest.warns(UserWarning, match="cut"):
        assert len(evaluate(run.agent, lambda: Odd(endless), 2)) == 2
    with pytest.warns(UserWarning, match="cut"):
        assert len(random_returns(lambda: Odd(endless), 2)) == 2


def failing(error: Exception):
    def change(*values):
        raise error

    return change


FAULTS = {
    "NaN observation": (
        lambda obs, *r: (obs * np.nan, *r),
        r"observation at step 33 is not finite in float32: \[nan nan\]",
    ),
    "infinite observation": (
        lambda obs, *r: (np.array([1, np.inf]), *r),
        r"observation at step 33 is not finite in float32: \[ ?1\. inf\]",
    ),
    "too large for float32": (
        lambda obs, *r: (obs.astype(np.float64) * 1e300, *r),
        "observation at step 33 is not finite in float32: .*e\\+",
    ),
    "NaN reward": (
        lambda obs, reward, *r: (obs, float("nan"), *r),
        "reward at step 33 is not finite in float32: nan",
    ),
    "infinite reward": (
        lambda obs, reward, *r: (obs, -np.inf, *r),
        "reward at step 33 is not finite in float32: -inf",
    ),
    "no reward": (
        lambda obs, reward, *r: (obs, "much", *r),
        "reward at step 33 is not a number: 'much'",
    ),
    "another shape": (
        lambda obs, *r: (np.zeros(3), *r),
        r"observation at step 33 is not 2 numbers: array\(\[0., 0., 0.\]\)",
    ),
    "an error": (
        failing(ZeroDivisionError("no gravity")),
        "step at step 33 raised ZeroDivisionError: no gravity",
    ),
}


@pytest.mark.parametrize("change, message", FAULTS.values(), ids=FAULTS)
def test_a_faulty_environment_stops_the_run_at_its_last_good_state(tmp_path, change, message):
    """...and with the environment mended the run goes on as if nothing had happened."""
    config = tiny_config(evals=2)
    with pytest.raises(EnvFault, match="Odd: " + message) as error:
        train(lambda: Odd(change, 33), config, tmp_path / "run", device="cpu", progress=False)
    assert f"step 32 is in {tmp_path / 'run'}" in str(error.value)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["counters"][0] == 32
    mended = lambda: Odd(change, 10**9)  # noqa: E731
    train(mended, config, tmp_path / "run", True, "cpu", progress=False)
    train(mended, config, tmp_path / "whole", device="cpu", progress=False)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("since", [33, 34, 35, 36])
def test_a_fault_while_an_action_is_held_loses_nothing_either(tmp_path, since):
    """One of these is the first of the four steps of an action, and one the last."""
    config, change = tiny_config(action_repeat=4), failing(ZeroDivisionError("no gravity"))
    with pytest.raises(EnvFault, match="no gravity"):
        train(lambda: Odd(change, since), config, tmp_path / "run", device="cpu", progress=False)
    mended = lambda: Odd(change, 10**9)  # noqa: E731
    train(mended, config, tmp_path / "run", True, "cpu", progress=False)
    train(mended, config, tmp_path / "whole", device="cpu", progress=False)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_the_sum_of_a_held_actions_rewards_must_be_finite():
    rows = lambda obs, *_: (obs, 2e38, False, False)  # noqa: E731
    with pytest.raises(EnvFault, match="reward at step 4 is not finite in float32: 7.9+.*e\\+38"):
        train(lambda: Odd(rows), tiny_config(action_repeat=4), progress=False)


def test_an_action_that_the_environment_changes_is_held_all_the_same():
    seen: list[float] = []

    class Greedy(Walk):
        def step(self, action):
            seen.append(float(action[0]))
            action *= 0.5
            return super().step(action)

    env = envs.AgentEnv(lambda: Greedy(ACTION_SPACES["box"](), drift=0.01), action_repeat=3)
    env.reset(seed=0)
    env.step(np.float32([1, 1]))
    assert seen == [2.0, 2.0, 2.0]


def test_a_fault_in_reset_or_in_an_evaluation_loses_nothing_either(tmp_path):
    whole = tmp_path / "whole"
    config = tiny_config(evals=2)

    class Moody(Walk):
        resets = 0
        fails_at = None

        def reset(self, *, seed=None, options=None):
            Moody.resets += 1
            if Moody.resets == Moody.fails_at:
                raise OSError("the robot is gone")
            return super().reset(seed=seed)

    make = lambda: Moody(ACTION_SPACES["discrete"]())  # noqa: E731
    train(make, config, whole, device="cpu", progress=False)
    for fails_at in range(2, Moody.resets, 3):
        run_dir = tmp_path / f"run{fails_at}"
        Moody.resets, Moody.fails_at = 0, fails_at
        with pytest.raises(EnvFault, match="Moody: reset at step .* raised OSError: the robot is"):
            train(make, config, run_dir, device="cpu", progress=False)
        train(make, config, run_dir, True, "cpu", progress=False)
        assert_same_runs(whole, run_dir)


# ---------------------------------------------------------------- extremes and determinism


@pytest.mark.parametrize("kind", ["discrete", "box"])
@pytest.mark.parametrize(
    "changes",
    [
        dict(imag_horizon=1),
        dict(batch_size=1, imag_starts=1),
        dict(seq_len=2),
        dict(categoricals=1, classes=2),
        dict(deter=1, hidden=1, unimix=0.0),
        dict(gamma=0.0, lam=0.0, free_nats=0.0),
        dict(gamma=1.0, lam=1.0, replay_value_weight=0.0, slow_weight=0.0),
        dict(batch_size=1, seq_len=2, imag_horizon=1, categoricals=1, classes=2, capacity=7),
        dict(prefill=0, actor_grad="pathwise", imag_horizon=1),
        dict(train_ratio=0.0, evals=60),
    ],
    ids=str,
)
def test_sensible_extremes_train(kind, changes):
    run = train(walk(kind), tiny_config(**{"steps": 36, "evals": 1, **changes}), progress=False)
    assert all(p.isfinite().all() for p in run.agent.parameters())
    assert len(run.evals) == (0 if "train_ratio" in changes else 1)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "LunarLander-v3"])
def test_the_same_numbers_twice_in_a_row(env, tmp_path):
    if env == "LunarLander-v3":
        pytest.importorskip("Box2D")
    config = tiny_config(steps=80, train_ratio=8, seed=3)
    for name in ("first", "second"):
        train(env, config, tmp_path / name, device="cpu", progress=False)
    assert_same_runs(tmp_path / "first", tmp_path / "second")
    other = tiny_config(steps=80, train_ratio=8, seed=4)
    train(env, other, tmp_path / "other", device="cpu", progress=False)
    assert log_rows(tmp_path / "other") != log_rows(tmp_path / "first")


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("actor_grad", ["reinforce", "pathwise"])
@pytest.mark.parametrize("discrete", [True, False])
def test_adversarial_data_leaves_all_weights_finite(discrete, actor_grad):
    agent = DreamerAgent(2, 2, discrete, tiny_config(actor_grad=actor_grad), CPU)
    rng = np.random.default_rng(0)
    for _ in range(200):
        adversarial_update(agent, rng)
    assert all(value.isfinite().all() for value in agent.state_dict().values())


# Differences of two numbers must be float32 numbers themselves, hence half of the largest.
LARGEST = float(np.finfo(np.float32).max) / 2
BINS = twohot_bins()


@st.composite
def float32_arrays(draw, *shape: int, largest: float = LARGEST):
    """Arrays of one magnitude from 1e-30 to `largest`, or of all magnitudes at once."""
    size = draw(st.sampled_from([1e-30, 1e-3, 1.0, 30.0, 1e3, 1e8, 1e20, largest]))
    bound = float(np.float32(min(size, largest)))
    elements = st.floats(-bound, bound, width=32, allow_subnormal=False)
    return draw(hnp.arrays(np.float32, shape, elements=elements, fill=st.nothing()))


def log_softmax64(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def close(got: torch.Tensor, expected, size: float) -> None:
    """Equal up to float32 rounding of numbers as large as `size`."""
    np.testing.assert_allclose(got.detach().double().numpy(), expected, rtol=1e-4, atol=2e-6 * size)


def bin_weights64(x: float) -> np.ndarray:
    """Two-hot weights from the place of `x` between the bins, in numbers of bins."""
    place = np.interp(x, BINS.double().numpy(), np.arange(len(BINS)))
    return np.maximum(0, 1 - np.abs(place - np.arange(len(BINS))))


@given(float32_arrays(255), float32_arrays(1))
def test_twohot_and_gradients_over_all_of_float32(logits, target):
    x = torch.from_numpy(logits).requires_grad_()
    loss = twohot_loss(x, torch.from_numpy(target)[0], BINS)
    loss.backward()
    log_probs, weights = log_softmax64(logits), bin_weights64(float(target[0]))
    close(loss, -(weights * log_probs).sum(), 10 + np.abs(log_probs).max())
    close(x.grad, np.exp(log_probs) - weights, 10)

    x = torch.from_numpy(logits).requires_grad_()
    mean = twohot_mean(x, BINS)
    mean.backward()
    probs, bins = np.exp(log_probs), BINS.double().numpy()
    expected = (probs * bins).sum()
    spread = (probs * np.abs(bins)).sum()
    close(mean, expected, 10 * spread)
    close(x.grad, probs * (bins - expected), 10 * spread)


@given(float32_arrays(1, 1, 2, 5, largest=LARGEST / 2), st.data())
def test_kl_and_gradients_over_all_of_float32(post, data):
    prior = data.draw(float32_arrays(1, 1, 2, 5, largest=LARGEST / 2))
    q, p = (torch.from_numpy(x).requires_grad_() for x in (post, prior))
    dyn, rep = kl_losses(q, p, 0.0)
    (dyn + rep).sum().backward()
    log_q, log_p = log_softmax64(post), log_softmax64(prior)
    kl = (np.exp(log_q) * (log_q - log_p)).sum(-1, keepdims=True)
    size = 10 + np.abs(log_q).max() + np.abs(log_p).max()
    close(dyn, kl.sum((-2, -1)), size)
    close(rep, kl.sum((-2, -1)), size)
    live = kl.sum() > 1e-4 * size  # below, rounding decides which side of the floor of 0 it is
    if live:
        close(p.grad, np.exp(log_p) - np.exp(log_q), 10)
        close(q.grad, np.exp(log_q) * (log_q - log_p - kl), size)
    assert p.grad.isfinite().all() and q.grad.isfinite().all()


@given(st.integers(1, 6), st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.data())
def test_lambda_return_and_gradients_over_all_of_float32(steps, lam, data):
    reward = data.draw(float32_arrays(1, steps, largest=LARGEST / 8))
    value = data.draw(float32_arrays(1, steps + 1, largest=LARGEST / 8))
    cont = np.abs(data.draw(float32_arrays(1, steps, largest=1.0)))
    gamma = 1 - 1 / 333
    r, v, c = (torch.from_numpy(x).requires_grad_() for x in (reward, value, cont))
    ret = lambda_return(r, v, c, gamma, lam)
    ret[0, 0].backward()

    # R_0 = sum of (product of γ c λ so far) * (r + γ c (1-λ) v), and v_H behind the last.
    reward, value, cont = (x[0].astype(np.float64) for x in (reward, value, cont))
    reach = np.cumprod([1.0, *(gamma * cont * lam)])
    grad_v = np.array([0.0, *(reach[:-1] * gamma * cont * (1 - lam))])
    grad_v[-1] += reach[-1]
    expected = (reach[:-1] * reward).sum() + (grad_v * value).sum()
    size = np.abs(reward).sum() + np.abs(value).sum()
    close(ret[0, 0], expected, size)
    close(r.grad[0], reach[:-1], 1)
    close(v.grad[0], grad_v, 1)
    inner = lambda_return64(reward, value, cont, gamma, lam)
    grad_c = reach[:-1] * gamma * ((1 - lam) * value[1:] + lam * inner[1:])
    close(c.grad[0], grad_c, size)


def lambda_return64(reward, value, cont, gamma: float, lam: float) -> np.ndarray:
    """R_0..R_H as the recursion says (v2, eq. 7), float64."""
    ret = [value[-1]]
    for t in reversed(range(len(reward))):
        ret.append(reward[t] + gamma * cont[t] * ((1 - lam) * value[t + 1] + lam * ret[-1]))
    return np.array(ret[::-1])


@given(st.lists(float32_arrays(4, 5), min_size=1, max_size=4))
def test_percentile_scale_over_all_of_float32(batches):
    scale, low, high, weight = PercentileScale(decay=0.9), 0.0, 0.0, 0.0
    for batch in batches:
        got = scale.update(torch.from_numpy(batch))
        p5, p95 = np.percentile(batch.astype(np.float64), [5, 95])
        low, high, weight = 0.9 * low + 0.1 * p5, 0.9 * high + 0.1 * p95, 0.9 * weight + 0.1
    close(got, max(1.0, (high - low) / weight), 10 * max(float(np.abs(b).max()) for b in batches))
