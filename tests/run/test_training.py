"""`train`: what it trains, the same numbers again, the bar, Ctrl-C, TensorBoard."""

import importlib.util
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ACTION_SPACES, ROOT, Walk, quiet_train, tiny_config, walk
from faults import assert_same_runs, log_rows
from tqdm import tqdm

from dreamer import run, train
from dreamer.checkpoint import load_checkpoint


@pytest.mark.parametrize(
    "changes",
    [
        dict(batch_size=1, seq_len=2, imag_horizon=1, categoricals=1, classes=2, capacity=7),
        dict(prefill=0, actor_grad="pathwise", imag_horizon=1),
        dict(train_ratio=0.0, evals=60),
    ],
    ids=str,
)
def test_sensible_extremes_train(changes):
    """With continuous actions; updates from discrete ones are in test_agent.py."""
    run = quiet_train(walk("box"), tiny_config(**{"steps": 30, "evals": 1, **changes}))
    assert all(p.isfinite().all() for p in run.agent.parameters())
    assert len(run.evals) == (0 if "train_ratio" in changes else 1)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_same_numbers_twice_in_a_row(env, tmp_path):
    for name, seed in [("first", 3), ("second", 3), ("other", 4)]:
        quiet_train(env, tiny_config(steps=40, train_ratio=6, seed=seed), tmp_path / name)
    assert_same_runs(tmp_path / "first", tmp_path / "second")
    assert log_rows(tmp_path / "other") != log_rows(tmp_path / "first")


def test_script_02_spells_out_the_loop_of_train(tmp_path, monkeypatch):
    """Weights, replay and log of both are equal, row for row."""
    from lab import cli

    path = ROOT / "02_dreamer_cartpole.py"
    spec = importlib.util.spec_from_file_location("script_02", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr("lab.results.finish", lambda *args, **kwargs: None)
    words = ["--smoke", "--steps", "160", "--device", "cpu", "--out", str(tmp_path)]
    args = cli.parse(path, None, script.CONFIG, words)
    script.main(args)
    quiet_train(script.ENV, args.config, tmp_path / "train")
    assert_same_runs(args.run_dir, tmp_path / "train")
    rows = log_rows(args.run_dir)
    assert {row["kind"] for row in rows} == {"episode", "report", "eval"} and len(rows) > 25


def test_without_a_folder_a_run_leaves_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = quiet_train(walk(), tiny_config(evals=2))
    assert not run.run_dir.exists() and not list(tmp_path.iterdir())
    assert len(run.evals) == 2 and run.reports and run.episodes  # read before it went


def jumping_clock(monkeypatch, seconds: float) -> None:
    """The session's clock goes on by so much at every look."""
    ticks = iter(np.arange(0, 10**6, seconds).tolist())
    clock = SimpleNamespace(monotonic=lambda: next(ticks), process_time=time.process_time)
    monkeypatch.setattr(run, "time", clock)


def test_a_checkpoint_every_minute_and_not_more(tmp_path, monkeypatch):
    """By a clock that goes on by 7 seconds at every look, two of which `pause` takes."""
    steps: list[int] = []
    jumping_clock(monkeypatch, 7)
    monkeypatch.setattr(run, "try_save", lambda run: steps.append(run.step))
    quiet_train(walk(), tiny_config(train_ratio=0), tmp_path)
    gaps = np.diff([0, *steps])
    assert len(steps) >= 10 and gaps.max() * 2 * 7 <= 60 + 3 * 7 and gaps.min() * 2 * 7 >= 40


def test_the_bar_says_how_good_the_agent_is_and_what_takes_long(monkeypatch, tmp_path):
    left, right = [], []
    monkeypatch.setattr(tqdm, "set_postfix_str", lambda self, text, refresh: right.append(text))
    monkeypatch.setattr(tqdm, "set_description_str", lambda self, text: left.append(text))
    found = train(walk(), tiny_config(train_ratio=18, evals=2), tmp_path, device="cpu")
    first, last = found.reports[0], found.reports[-1]
    assert right[0] == f"loss {first['loss']:.2f}, entropy {first['entropy']:.2f}"
    ret = f"return {found.evals[0]['return']:.1f}, "
    assert right[-2] == f"{ret}loss {last['loss']:.2f}, entropy {last['entropy']:.2f}"
    assert right[-1] == f"return {found.evals[-1]['return']:.1f}, evaluated"
    assert left == 2 * [*(f"evaluating {n}/3" for n in range(4)), ""]


class Signalled(Walk):
    """Signals arrive while the 30th step is taken, each a while after the one before."""

    count = 0

    def __init__(self, signals: list[int], seconds: float):
        super().__init__(ACTION_SPACES["discrete"]())
        self.signals, self.seconds = signals, seconds

    def step(self, action):
        self.count += 1
        for number in self.signals if self.count == 30 else []:
            signal.raise_signal(number)
            time.sleep(self.seconds)
        return super().step(action)


INT, TERM = signal.SIGINT, signal.SIGTERM
HUP = getattr(signal, "SIGHUP", TERM)


@pytest.mark.parametrize(
    ("signals", "seconds", "saved"),
    [([INT], 0, True), ([INT, INT], 0, True), ([INT, INT], 1.1, False), ([TERM, INT], 0, True)]
    + [([TERM], 0, True), ([HUP], 0, True), ([TERM, TERM], 0, True), ([TERM, INT], 1.1, False)],
)
def test_a_signal_saves_first_and_a_later_one_does_not_wait(signals, seconds, saved, tmp_path):
    before = [signal.getsignal(number) for number in (INT, TERM, HUP)]
    with pytest.raises((KeyboardInterrupt, SystemExit)) as raised:
        quiet_train(lambda: Signalled(signals, seconds), run_dir=tmp_path)
    assert [signal.getsignal(number) for number in (INT, TERM, HUP)] == before
    by_hand = signals[-1 if not saved else 0] == INT
    assert raised.type is (KeyboardInterrupt if by_hand else SystemExit)
    assert by_hand or raised.value.code == 128 + signals[0]
    path = tmp_path / "checkpoint.pt"
    assert path.exists() == saved and not (tmp_path / "agent.pt").exists()
    if saved:
        assert load_checkpoint(path)["numbers"]["step"] == 30


def test_under_nohup_a_hangup_stays_ignored(tmp_path, monkeypatch):
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        assert quiet_train(lambda: Signalled([HUP], 0), run_dir=tmp_path).step == 60
    finally:
        signal.signal(HUP, before)


def test_a_run_in_a_thread_is_the_same_run(tmp_path):
    """Signals can be handled in the main thread only."""
    thread = threading.Thread(target=quiet_train, args=(walk(), tiny_config(), tmp_path / "thread"))
    thread.start()
    thread.join()
    quiet_train(walk(), tiny_config(), tmp_path / "main")
    assert_same_runs(tmp_path / "main", tmp_path / "thread")
