"""`train`: act, learn, report, until all steps are done.

    run = train("CartPole-v1", Config(steps=6_000, train_ratio=96), "runs/mine")
    evaluate(run.agent, "CartPole-v1", 100, seed=1)

A run writes into its folder: `config.json`, `log.jsonl` (one row per episode, report and
evaluation), every minute `checkpoint.pt`, and at its end `agent.pt`, the trained agent.
"""

import importlib.util
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from dreamer.checkpoint import read_log
from dreamer.config import Config
from dreamer.envs import EnvFault, EnvSpec
from dreamer.evaluation import evaluate
from dreamer.resume import LOG, load_agent, save, save_agent, start, try_save
from dreamer.run import Run

__all__ = ["Session", "evaluate", "load_agent", "save_agent", "train"]

CHECKPOINT_SECONDS = 60.0  # between checkpoints: what a kill can cost


def train(
    env: EnvSpec,
    config: Config | None = None,
    run_dir: Path | str | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: bool = True,
    tensorboard: bool = False,
) -> Run:
    """Train an agent on a Gymnasium environment.

    env: an id, or a function that makes an environment: `Box` vector observations, `Discrete` or
    bounded one-dimensional `Box` actions. run_dir: where log, checkpoint and agent go (nowhere if
    None). resume: go on from run_dir's checkpoint if there is one (without it, the files of an
    earlier run are kept as `previous-...`); only `steps` may differ from its config (rows of the
    log are then spaced as the new number asks). Ctrl-C saves a checkpoint.

    Raises ValueError for what is not supported, CheckpointError for a checkpoint that cannot be
    used, EnvFault when the environment fails (the last good state is saved first),
    FloatingPointError when a loss is not finite, and OSError when the files of the start or the
    last checkpoint cannot be written; a checkpoint in between that cannot be is a warning.
    """
    if tensorboard:
        need_tensorboard()
    config = Config() if config is None else config
    if run_dir is None:
        with tempfile.TemporaryDirectory() as temporary:
            return train(env, config, temporary, False, device, progress, tensorboard)
    with Session(start(env, config, run_dir, resume, device), progress, tensorboard) as session:
        run = session.run
        while True:
            while run.updates < run.updates_due():  # learn: replayed rows for each real step
                run.learn()
                session.pause()
            session.report()
            if run.step >= config.steps:
                return run
            run.act()  # one row of real experience
            session.pause()


class Session:
    """A run while it goes on: its progress bar, its clocks, its checkpoints, and Ctrl-C.

    A run can be saved between any two things that it does, and only there: at `pause`. Leaving
    it saves the run and the agent, closes the environment, and reads the log into `run.episodes`,
    `run.reports` and `run.evals`.
    """

    def __init__(self, run: Run, progress: bool = True, tensorboard: bool = False):
        self.run = run
        self.board = open_tensorboard(run) if tensorboard else None
        self.bar = tqdm(
            total=run.config.steps, initial=run.step, disable=not progress, unit="step", leave=True
        )
        evals = read_log(run.run_dir / LOG, "eval")
        self.ret = f"{evals[-1]['return']:.1f}" if evals else "not known yet"
        self.bar.set_postfix_str(f"return {self.ret}", refresh=False)
        self.interrupted = False
        run.say = self.say

    def __enter__(self) -> Self:
        self.saved = self.said = time.monotonic()
        self.began = (
            self.saved - 60 * self.run.minutes,
            time.process_time() - 60 * self.run.cpu_minutes,
        )
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:  # only there can signals be handled
            self.previous = signal.signal(signal.SIGINT, self.interrupt)
        return self

    def interrupt(self, *_: Any) -> None:
        """The first Ctrl-C waits for the next `pause`; a second one interrupts at once."""
        self.interrupted = True
        signal.signal(signal.SIGINT, self.previous)

    def pause(self) -> None:
        """Read the clocks, save when a checkpoint is due, and stop here after a Ctrl-C."""
        run = self.run
        run.minutes = (time.monotonic() - self.began[0]) / 60
        run.cpu_minutes = (time.process_time() - self.began[1]) / 60
        self.bar.update(run.step - self.bar.n)
        if self.interrupted:
            save(run)
            raise KeyboardInterrupt
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
                values,
                f"return {self.ret}, loss {values['loss']:.2f}, "
                f"entropy {values['entropy']:.2f}, {speed:.1f} updates/s",
            )
        if run.evaluation_due():
            values = run.evaluate()
            self.ret = f"{values['return']:.1f}"
            self.show(values, f"return {self.ret}")
            self.bar.refresh()

    def show(self, values: dict[str, float], text: str) -> None:
        self.bar.set_description_str("", refresh=False)
        self.bar.set_postfix_str(text, refresh=False)
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, self.run.step)
        self.pause()

    def say(self, text: str) -> None:
        """At the bar's left, where no narrow window cuts it; a few times a second at most."""
        if not self.bar.disable and time.monotonic() - self.said > max(0.2, self.bar.mininterval):
            self.bar.set_description_str(text)
            self.said = time.monotonic()

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        run = self.run
        if self.main:
            signal.signal(signal.SIGINT, self.previous)
        try:
            if error is None:
                save(run)
                save_agent(run.agent, run.run_dir / "agent.pt")
            elif isinstance(error, EnvFault):
                try_save(run)
                raise EnvFault(
                    f"{error}. The run up to step {run.step} is in {run.run_dir}: resume it when "
                    "the environment is mended"
                ) from error
        finally:
            self.bar.close()
            if self.board:
                self.board.close()
            run.log.close()
            run.env.close()
        if error is None:
            kinds = ("episode", "report", "eval")
            run.episodes, run.reports, run.evals = (read_log(run.run_dir / LOG, k) for k in kinds)


def need_tensorboard() -> None:
    """Raises ValueError where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError("--tensorboard needs `pip install tensorboard`")


def open_tensorboard(run: Run) -> Any:
    """A SummaryWriter that goes on at the run's step."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run.run_dir / "tensorboard", purge_step=run.step + 1)
