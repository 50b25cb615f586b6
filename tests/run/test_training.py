"""`train`: what it trains, the same numbers again, the bar, the minute, Ctrl-C."""

import importlib
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, quiet_train, tiny_config, walk
from faults import Hook, assert_same_runs, log_rows
from tqdm import tqdm

from dreamer import run, train
from dreamer.checkpoint import load_checkpoint


def test_the_same_seed_gives_the_same_numbers_in_a_thread_too(tmp_path):
    """Signals can be handled in the main thread only."""

    def trained(name: str, seed: int) -> None:
        quiet_train("Pendulum-v1", tiny_config(steps=40, seed=seed), tmp_path / name)

    trained("first", 3)
    trained("other", 4)
    thread = threading.Thread(target=trained, args=("second", 3))
    thread.start()
    thread.join()
    assert_same_runs(tmp_path / "first", tmp_path / "second")
    assert log_rows(tmp_path / "other") != log_rows(tmp_path / "first")


def test_script_02_spells_out_the_loop_of_train(tmp_path, monkeypatch):
    """Weights, replay and log of both are equal, row for row."""
    from lab import cli

    path = ROOT / "02_dreamer_cartpole.py"
    script = importlib.import_module(path.stem)
    monkeypatch.setattr("lab.results.finish", lambda *args, **kwargs: None)
    words = ["--smoke", "--steps", "120", "--device", "cpu", "--out", str(tmp_path)]
    args = cli.parse(path, None, script.CONFIG, words)
    script.main(args)
    quiet_train(script.ENV, args.config, tmp_path / "train")
    assert_same_runs(args.run_dir, tmp_path / "train")
    rows = log_rows(args.run_dir)
    assert {row["kind"] for row in rows} == {"episode", "report", "eval"} and len(rows) > 15


def test_a_checkpoint_is_made_every_minute_and_not_more_often(tmp_path, monkeypatch):
    """By a clock that goes on by 7 seconds at every look, two of which `pause` takes."""
    ticks, steps = iter(range(0, 10**6, 7)), []
    clock = SimpleNamespace(monotonic=lambda: next(ticks), process_time=time.process_time)
    monkeypatch.setattr(run, "time", clock)
    monkeypatch.setattr(run, "try_save", lambda run: steps.append(run.step))
    quiet_train(walk(), tiny_config(train_ratio=0), tmp_path)
    gaps = np.diff([0, *steps])
    assert len(steps) >= 10 and gaps.max() * 2 * 7 <= 60 + 3 * 7 and gaps.min() * 2 * 7 >= 40


def test_the_bar_says_how_good_the_agent_is_and_what_takes_long(monkeypatch):
    left, right = [], []
    monkeypatch.setattr(tqdm, "set_postfix_str", lambda self, text, refresh: right.append(text))
    monkeypatch.setattr(tqdm, "set_description_str", lambda self, text, refresh: left.append(text))
    found = train(walk(), tiny_config(evals=2), device="cpu")
    assert right[0] == "loss {loss:.2f}, entropy {entropy:.2f}".format(**found.reports[0])
    assert right[-1] == f"return {found.evals[-1]['return']:.1f}, evaluated"
    assert left == 2 * [*(f"evaluating {n}/3" for n in range(4)), ""]


INT, TERM = signal.SIGINT, signal.SIGTERM
HUP = getattr(signal, "SIGHUP", TERM)


def signalled(*signals: int, seconds: float = 0):
    """A walk at whose 30th step signals arrive, each a while after the one before."""

    def send():
        for number in signals:
            signal.raise_signal(number)
            time.sleep(seconds)

    return lambda: Hook({30: send})


@pytest.mark.parametrize(
    ("signals", "seconds", "raised"),
    [
        ([INT, INT], 0, KeyboardInterrupt()),
        ([INT, INT], 1.1, KeyboardInterrupt()),
        ([TERM, INT], 0, SystemExit(128 + TERM)),
        ([HUP], 0, SystemExit(128 + HUP)),
    ],
)
def test_a_signal_saves_first_and_a_later_one_does_not_wait(signals, seconds, raised, tmp_path):
    before = [signal.getsignal(number) for number in (INT, TERM, HUP)]
    with pytest.raises(type(raised)) as error:
        quiet_train(signalled(*signals, seconds=seconds), run_dir=tmp_path)
    assert error.value.args == raised.args
    assert [signal.getsignal(number) for number in (INT, TERM, HUP)] == before
    path = tmp_path / "checkpoint.pt"
    assert path.exists() == (seconds < 1) and not (tmp_path / "agent.pt").exists()
    assert seconds > 1 or load_checkpoint(path)["numbers"]["step"] == 30


def test_under_nohup_a_hangup_stays_ignored():
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        assert quiet_train(signalled(HUP)).step == 60
    finally:
        signal.signal(HUP, before)


def test_without_a_folder_a_run_leaves_none_and_ctrl_c_returns_it_so_far(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="^interrupted at step 30: this is the run so far"):
        run = quiet_train(signalled(INT), tiny_config(evals=5))
    assert not run.run_dir.exists() and not list(tmp_path.iterdir())
    assert run.evals and run.reports and run.episodes  # read before it went
