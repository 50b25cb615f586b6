"""`train`: act, learn, report, until all steps are done.

    run = train("CartPole-v1", Config(steps=6_000, train_ratio=96), "runs/mine")
    evaluate(run.agent, "CartPole-v1", 100, seed=1)

A run writes into its folder: `config.json`, `log.jsonl` (one row per episode, report and
evaluation), every minute `checkpoint.pt`, and at its end `agent.pt`, the trained agent.
"""

import contextlib
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from dreamer.checkpoint import read_log
from dreamer.config import Config
from dreamer.envs import EnvFault, EnvSpec
from dreamer.resume import LOG, save, save_agent, start, try_save
from dreamer.run import Run, fast_cpu
from dreamer.tensorboard import Board, need_tensorboard

CHECKPOINT_SECONDS = 60.0  # between checkpoints: what a kill can cost
ALWAYS = (signal.SIGINT, signal.SIGTERM)
SIGNALS = (*ALWAYS, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))  # but under nohup


def train(
    env: EnvSpec,
    config: Config | None = None,
    run_dir: Path | str | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: bool = True,
    tensorboard: bool = False,
    threads: int = 1,
) -> Run:
    """Train an agent on a Gymnasium environment.

    env: an id, or a function that makes an environment (see `AgentEnv` for the spaces). run_dir:
    where log, checkpoint and agent go (nowhere if None). resume: go on from run_dir's checkpoint if
    there is one (without it, the checkpoint and log of an earlier run are kept as `previous-...`);
    only `steps` may differ from its config (rows of the log are then spaced as the new number
    asks). threads: of PyTorch while it trains on the CPU.

    Ctrl-C saves a checkpoint; without run_dir it ends the training, and the run so far is returned.
    Raises ValueError for what is not supported, CheckpointError for a checkpoint that cannot be
    used, EnvFault when the environment fails (the last good state is saved first),
    FloatingPointError when a loss is not finite, and OSError when the files of the start or the
    last checkpoint cannot be written; a checkpoint in between that cannot be is a warning.
    """
    if tensorboard:
        need_tensorboard()
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be a whole number from 1 on, got {threads!r}")
    if run_dir is not None and not str(run_dir):
        raise ValueError("run_dir is empty: name a folder, or None to keep no files")
    if resume and run_dir is None:
        raise ValueError("resume needs run_dir, the folder of the run to go on with")
    config = Config() if config is None else config
    folder = tempfile.TemporaryDirectory() if run_dir is None else contextlib.nullcontext(run_dir)
    with folder as path:
        run = start(env, config, path, resume, device)
        run.kept = run_dir is not None
        with Session(run, progress, tensorboard, threads) as session:
            while True:
                while run.updates < run.updates_due():  # learn: replayed rows for each real step
                    run.learn()
                    session.pause()
                session.report()
                if run.step >= config.steps:
                    break
                run.act()  # one row of real experience
                session.pause()
    return run


class Session:
    """A run while it goes on: its progress bar, its clocks, its checkpoints, Ctrl-C and SIGTERM.

    A run can be saved between any two things that it does, and only there: at `pause`. Leaving it
    saves the run and the agent, closes the environments, and reads the log into `run.episodes`,
    `run.reports` and `run.evals`.
    """

    def __init__(
        self, run: Run, progress: bool = True, tensorboard: bool = False, threads: int = 1
    ):
        self.run, self.threads = run, threads
        self.board = Board(run) if tensorboard else None
        self.bar = tqdm(
            total=run.config.steps,
            initial=run.step,
            disable=not progress,
            unit="step",
            file=Quiet(sys.stderr),
        )
        evals = read_log(run.run_dir / LOG, "eval")
        self.ret = format_return(evals[-1]) if evals else "not known yet"
        self.bar.set_postfix_str(f"return {self.ret}", refresh=False)
        self.signal: int | None = None  # that asked for the end
        run.say = self.say
        if self.board:
            run.log.listen = self.board.row

    def __enter__(self) -> Self:
        self.saved = self.said = time.monotonic()
        self.began = (
            self.saved - 60 * self.run.minutes,
            time.process_time() - 60 * self.run.cpu_minutes,
        )
        self.previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # signals are handled there only
            for number in SIGNALS:
                if number in ALWAYS or signal.getsignal(number) != signal.SIG_IGN:
                    self.previous[number] = signal.signal(number, self.interrupt)
        self.around = contextlib.ExitStack()
        if self.run.agent.device.type == "cpu":
            self.around.enter_context(fast_cpu(self.threads))
        return self

    def interrupt(self, number: int, _: Any) -> None:
        """The first signal waits for the next `pause`; one that comes a second later, or after
        that, interrupts at once. (Shells and `timeout` may send two in a row.)"""
        if self.signal is None:
            self.signal, self.signalled = number, time.monotonic()
        elif time.monotonic() - self.signalled > 1:
            self.restore_signals()
            signal.raise_signal(number)

    def end(self) -> BaseException:
        """What the signal that came raises."""
        by_hand = self.signal == signal.SIGINT
        return KeyboardInterrupt() if by_hand else SystemExit(128 + (self.signal or 0))

    def restore_signals(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def pause(self) -> None:
        """Read the clocks, save when a checkpoint is due, and stop here after a signal."""
        run = self.run
        run.minutes = (time.monotonic() - self.began[0]) / 60
        run.cpu_minutes = (time.process_time() - self.began[1]) / 60
        self.bar.update(run.step - self.bar.n)
        if self.signal is not None:
            save(run)
            raise self.end()
        if time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            try_save(run)
            self.saved = time.monotonic()

    def report(self) -> None:
        """Metrics and a greedy evaluation where they are due: to the log, the bar, TensorBoard."""
        run = self.run
        if run.report_due():
            values = run.report()
            speed = run.updates / max(run.minutes * 60, 1e-9)
            self.show(
                f"return {self.ret}, loss {values['loss']:.2f}, "
                f"entropy {values['entropy']:.2f}, {speed:.1f} updates/s",
            )
        if run.evaluation_due():
            if values := run.evaluate():
                self.ret = format_return(values)
            self.show(f"return {self.ret}")
            self.bar.refresh()

    def show(self, text: str) -> None:
        self.bar.set_description_str("", refresh=False)
        self.bar.set_postfix_str(text, refresh=False)
        self.pause()

    def say(self, text: str) -> None:
        """At the bar's left, where no narrow window cuts it; a few times a second at most."""
        if not self.bar.disable and time.monotonic() - self.said > max(0.2, self.bar.mininterval):
            self.bar.set_description_str(text)
            self.said = time.monotonic()

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> bool:
        run = self.run
        try:
            if error is None:
                save(run)
                save_agent(run.agent, run.run_dir / "agent.pt", run.env.spec_name)
                run.warn_of_what_never_came()
            elif isinstance(error, EnvFault):
                try_save(run)
                if run.kept:
                    raise EnvFault(
                        f"{error}. The run up to step {run.step} is in {run.run_dir}: resume it "
                        "when the environment is fixed"
                    ) from error
            elif isinstance(error, KeyboardInterrupt) and not run.kept:
                warnings.warn(
                    f"interrupted at step {run.step}: this is the run so far", stacklevel=2
                )
                return True
            return False
        finally:
            self.restore_signals()
            self.around.close()
            self.bar.close()
            if self.board:
                self.board.close()
            run.close()
            kinds = ("episode", "report", "eval")
            run.episodes, run.reports, run.evals = (read_log(run.run_dir / LOG, k) for k in kinds)
            if error is None and self.signal is not None and run.kept:  # after the last pause
                raise self.end()


def format_return(values: dict[str, float]) -> str:
    """Of an evaluation, for the bar."""
    few = {1: " (1 episode)"}.get(int(values["episodes"]), f" ({values['episodes']:.0f} episodes)")
    return f"{values['return']:.1f}" + (few if values["episodes"] < 10 else "")


class Quiet:
    """A stream for the progress bar; that it cannot be written is no reason to stop a run."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            encoding = getattr(self.stream, "encoding", None) or "utf-8"
            self.stream.write(text.encode(encoding, "replace").decode(encoding))

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
