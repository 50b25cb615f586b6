"""What befalls a run and costs it nothing: kills, full disks, environments that fail."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from conftest import ACTION_SPACES, Odd, Walk, quiet_train, tiny_config
from faults import (
    Filler,
    Quota,
    assert_same_runs,
    log_rows,
    small_disk,
)

from dreamer import run
from dreamer.checkpoint import load_checkpoint
from dreamer.config import Config
from dreamer.envs import EnvFault


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(environment, config) -> the folder of a run of it that nothing befell."""
    made: dict[tuple, Path] = {}

    def run_dir(make, config: Config) -> Path:
        key = type(make()), config
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            quiet_train(make, config, made[key])
        return made[key]

    return run_dir


@pytest.fixture(params=["quota", "full disk"])
def disk(request, tmp_path):
    """(a run's folder, the fault that befalls it)."""
    if request.param == "quota":
        pytest.importorskip("resource", reason="Windows has no limits of this kind")
        yield tmp_path / "run", Quota()
    else:
        with small_disk(tmp_path / "disk") as folder:
            yield folder / "run", Filler()


class Hook(Walk):
    """A walk that calls functions at some of the run's steps."""

    def __init__(self, at_step: dict):
        super().__init__(ACTION_SPACES["discrete"]())
        self.at_step, self.count = at_step, 0

    def step(self, action):
        self.count += 1
        self.at_step.get(self.count, int)()
        return super().step(action)


CANNOT = r"(checkpoint\.pt|log\.jsonl) was not written: (File too large|No space left on device)"


@pytest.fixture
def checkpoints(monkeypatch):
    """A function that says after how many seconds the next checkpoints are due."""
    return lambda seconds: monkeypatch.setattr(run, "CHECKPOINT_SECONDS", seconds)


@pytest.mark.filterwarnings("ignore:no checkpoint of step")
def test_a_disk_full_for_a_while_costs_nothing(disk, whole, checkpoints):
    run_dir, fault = disk
    config = tiny_config(evals=2)
    hooks = {
        30: lambda: checkpoints(0),
        33: lambda: fault.fill(run_dir),
        42: fault.free,
        45: lambda: checkpoints(60),
    }
    with pytest.warns(UserWarning, match="no checkpoint of step 40, as .*" + CANNOT):
        quiet_train(lambda: Hook(hooks), config, run_dir)
    assert_same_runs(whole(lambda: Hook({}), config), run_dir)


@pytest.mark.filterwarnings("ignore:no checkpoint of step")
def test_a_disk_that_stays_full_ends_in_an_error_and_a_good_checkpoint(disk, whole, checkpoints):
    run_dir, fault = disk
    config = tiny_config(evals=2)
    hooks = {
        30: lambda: checkpoints(0),
        33: lambda: fault.fill(run_dir),
        36: lambda: checkpoints(60),
    }
    try:
        with pytest.raises(OSError, match="not written") as error:
            quiet_train(lambda: Hook(hooks), config, run_dir)
        assert re.search(r"checkpoint\.pt|log\.jsonl", error.value.filename)
    finally:
        fault.free()
    assert load_checkpoint(run_dir / "checkpoint.pt")["numbers"]["step"] == 32
    assert log_rows(run_dir)  # none torn
    quiet_train(lambda: Hook({}), config, run_dir, resume=True)
    assert_same_runs(whole(lambda: Hook({}), config), run_dir)


def no_gravity(*values):
    raise ZeroDivisionError("no gravity")


@pytest.mark.parametrize("repeat", [1, 4])
@pytest.mark.parametrize("since", [33, 34, 35, 36])
def test_a_faulty_environment_stops_the_run_at_its_last_good_state(tmp_path, whole, since, repeat):
    """With the environment mended the run goes on. With repeats, one of these steps is the first
    of an action's four, and one the last."""
    config = tiny_config(action_repeat=repeat)
    with pytest.raises(EnvFault, match=r"^Odd: step at step \d\d must .*no gravity") as error:
        quiet_train(lambda: Odd(no_gravity, since), config, tmp_path)
    before = load_checkpoint(tmp_path / "checkpoint.pt")
    kept = before["numbers"]["step"]
    assert kept == since - 1 if repeat == 1 else 32 <= kept <= 44
    assert f"step {kept} is in {tmp_path}: resume it when the environment" in str(error.value)
    mended = lambda: Odd(no_gravity, 10**9)  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet_train(mended, config, tmp_path, resume=True)
    saved = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    sound = load_checkpoint(whole(mended, config) / "checkpoint.pt")["replay"]
    rows = len(before["replay"]["obs"])
    assert torch.equal(saved["obs"][:rows], sound["obs"][:rows])
    assert (saved["is_first"][1:] == saved["is_last"][:-1]).all()
    assert not (saved["is_last"] & ~sound["is_last"])[: rows + 1].any()  # it was not cut


def test_a_fault_in_reset_or_in_an_evaluation_loses_nothing_either(tmp_path):
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
    quiet_train(make, config, tmp_path / "whole")
    assert Moody.resets > 12
    for fails_at in range(5, Moody.resets, 4):  # before: those of a look at each environment
        run_dir = tmp_path / f"run{fails_at}"
        Moody.resets, Moody.fails_at = 0, fails_at
        with pytest.raises(EnvFault, match="Moody: reset at step .*OSError: the robot is"):
            quiet_train(make, config, run_dir)
        quiet_train(make, config, run_dir, resume=True)
        assert_same_runs(tmp_path / "whole", run_dir)
