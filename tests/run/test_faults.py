"""What befalls a run and costs it nothing: kills, full disks, environments that fail."""

import contextlib
import sys

import numpy as np
import pytest
from conftest import ACTION_SPACES, Odd, Walk, quiet_train, tiny_config
from faults import Hook, assert_same_runs, full_disk, kill_often, train_child

from dreamer import run
from dreamer.checkpoint import load_checkpoint
from dreamer.envs import EnvFault


@pytest.mark.faults
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(("envs", "mode"), [(1, "sync"), (3, "async")])
def test_killed_three_times_and_equal_to_an_uninterrupted_run(envs, mode, tmp_path):
    """In child processes, with SIGKILL, once in the middle of writing a checkpoint; and whether
    its environments have processes of their own or not."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_child(whole, 300, envs, "sync")
    assert kill_often(killed, 300, 3, np.random.default_rng(0), envs, mode) >= 1
    assert_same_runs(whole, killed, except_for=["config"])  # the mode
    saved = load_checkpoint(killed / "checkpoint.pt")
    assert saved["numbers"]["step"] == 300 and len(saved["episode"]) == envs
    assert {p.name for p in killed.iterdir()} == {p.name for p in whole.iterdir()}


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore:no checkpoint of step")
@pytest.mark.parametrize("stays", [False, True])
def test_a_full_disk_costs_a_warning_or_at_the_end_an_error(stays, tmp_path, monkeypatch):
    """Full from step 33 on, until step 42 or until the end. No row and no checkpoint is torn."""
    config, run_dir = tiny_config(evals=2), tmp_path / "run"
    with contextlib.ExitStack() as full:
        due = lambda seconds: monkeypatch.setattr(run, "CHECKPOINT_SECONDS", seconds)  # noqa: E731
        hooks = {30: lambda: due(0), 33: lambda: full.enter_context(full_disk())}
        hooks |= {45: lambda: due(60)} if stays else {42: full.close, 45: lambda: due(60)}
        cannot = r"no checkpoint of step 40, as .*log\.jsonl was not written: File too large"
        with pytest.warns(UserWarning, match=cannot):
            with pytest.raises(OSError) if stays else contextlib.nullcontext() as error:
                quiet_train(lambda: Hook(hooks), config, run_dir)
        if stays:
            assert error.value.filename == str(run_dir / "log.jsonl")
            full.close()
            assert load_checkpoint(run_dir / "checkpoint.pt")["numbers"]["step"] == 32
            quiet_train(lambda: Hook({}), config, run_dir, resume=True)
        quiet_train(lambda: Hook({}), config, tmp_path / "whole")
        assert_same_runs(tmp_path / "whole", run_dir)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("since", "repeat"), [(33, 1), (34, 4), (36, 4)])
def test_a_faulty_environment_stops_the_run_at_its_last_good_state(tmp_path, since, repeat):
    """With the environment mended the run goes on, and no episode is dropped."""
    config = tiny_config(action_repeat=repeat)
    with pytest.raises(EnvFault, match=r"^Odd: step at step \d\d must .*division by zero") as error:
        quiet_train(lambda: Odd(lambda *_: 1 / 0, since), config, tmp_path)
    kept = load_checkpoint(tmp_path / "checkpoint.pt")
    step = kept["numbers"]["step"]
    assert step == since - 1 if repeat == 1 else 32 <= step <= 44
    assert f"step {step} is in {tmp_path}: resume it when the environment" in str(error.value)
    run = quiet_train(lambda: Odd(lambda *values: values), config, tmp_path, resume=True)
    rows, before, number = run.replay.rows, kept["replay"]["obs"].numpy(), len(run.replay)
    np.testing.assert_array_equal(rows["obs"][: len(before)], before)
    assert run.step == 60 and (rows["is_first"][1:number] == rows["is_last"][: number - 1]).all()


def test_a_fault_in_reset_or_in_an_evaluation_loses_nothing_either(tmp_path):
    config = tiny_config(evals=2)

    class Moody(Walk):
        resets, fails_at = 0, None

        def reset(self, *, seed=None, options=None):
            Moody.resets += 1
            if Moody.resets == Moody.fails_at:
                raise OSError("the robot is gone")
            return super().reset(seed=seed)

    make = lambda: Moody(ACTION_SPACES["discrete"]())  # noqa: E731
    quiet_train(make, config, tmp_path / "whole")
    assert Moody.resets > 15
    for fails_at in range(5, Moody.resets, 6):  # before: those of a look at each environment
        run_dir = tmp_path / f"run{fails_at}"
        Moody.resets, Moody.fails_at = 0, fails_at
        with pytest.raises(EnvFault, match="Moody: reset at step .*OSError: the robot is"):
            quiet_train(make, config, run_dir)
        quiet_train(make, config, run_dir, resume=True)
        assert_same_runs(tmp_path / "whole", run_dir)
