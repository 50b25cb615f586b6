"""A training run: everything that it consists of, and what surrounds its loop.

The loop itself is in `train` (training.py), and once more in script 02: act, step, add, update,
report. A `Run` decides when a random action, an update, a report or an evaluation is due, counts,
writes the log, and saves itself. How it is saved and restored is in resume.py.
"""

import contextlib
import ctypes
import dataclasses
import math
import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv, VectorEnv
from tqdm import tqdm

from dreamer.agent import DreamerAgent, Metrics
from dreamer.checkpoint import Lock, Log, read_log, save_agent, write_json
from dreamer.config import Config
from dreamer.envs import EnvFault, MakeEnv, make_envs, random_action
from dreamer.evaluation import EVALUATION, EXPLORATION, evaluate_in, open_loop_error
from dreamer.replay_buffer import Layout, ReplayBuffer
from dreamer.resume import CHECKPOINT, LOG, restore, save, try_save
from dreamer.rssm import State
from dreamer.tensorboard import Board
from dreamer.utils import derive_seed, pick_device, symlog

REPORTS = 200  # rows of metrics in the log of a run
PREFILL_HOLD = 16  # rows for which the prefill holds a random action at most
CHECKPOINT_SECONDS = 60.0  # between checkpoints: what a kill can cost

# Streams of random numbers that `derive_seed` tells apart; others are in evaluation.py.
REPLAY, EPISODES = 2, 10


class RandomHolds:
    """Decides when one environment's action is random, and which one it is.

    All are in the warm-up, later a share `explore`, or less where an episode's end cuts holds
    short. An action is held for 1 to PREFILL_HOLD or later `explore_hold` rows, log-uniformly: held
    actions reach far more states than dithering. After a hold the policy goes on from where it led,
    so the replay also covers what is off its path, and what it no longer tries (temporally extended
    ε-greedy; Dabney et al., arXiv 2006.01782).
    """

    def __init__(self, layout: Layout, config: Config, number: int):
        seed = derive_seed(config.seed, EXPLORATION)
        self.rng = np.random.default_rng([seed, number])
        self.layout, self.longest = layout, config.explore_hold
        self.action, self.left = np.zeros(layout.action_size, np.float32), 0
        # L - ln(L!) / ln(L + 1): the mean of a log-uniform hold
        mean_hold = self.longest - math.lgamma(self.longest + 1) / math.log(self.longest + 1)
        self.begins = config.explore / (config.explore + (1 - config.explore) * mean_hold)

    def draw(self, warm_up: bool) -> np.ndarray | None:
        """The random action (A,) of this row, None where the policy acts."""
        if not (self.left or warm_up or self.rng.random() < self.begins):
            return None
        if self.left == 0:
            self.action = random_action(self.layout, self.rng)
            longest = PREFILL_HOLD if warm_up else self.longest
            self.left = int((longest + 1) ** self.rng.random())
        self.left -= 1
        return self.action


class Run:
    """The agent with its environments, its replay, and all that has happened so far.

    `with Run(...) as run:` shows a progress bar and listens to Ctrl-C. The run can be saved
    between any two things that it does, and only there. Leaving it saves the run and the agent,
    closes the environments, and reads the log into `episodes`, `reports` and `evals`. For the
    arguments and errors see `train`.
    """

    def __init__(
        self,
        env: MakeEnv,
        config: Config,
        run_dir: Path | str | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: bool = True,
        tensorboard: bool = False,
        threads: int = 1,
    ):
        self.config, self.threads, self.kept = config, threads, run_dir is not None
        self.opened = contextlib.ExitStack()  # all that `close` must close
        try:
            self.envs = make_envs(env, config.envs, config)
            self.opened.callback(self.envs.close)
            self.name, self.layout = (self.envs.get_attr(x)[0] for x in ("name", "layout"))
            self.eval_envs = self.make_eval_envs(env)
            self.replay = self.make_replay()
            self.agent = DreamerAgent(self.layout, config, pick_device(device))
            self.agent.env_spec = self.envs.get_attr("spec_json")[0]
            self.replay_rng = np.random.default_rng(derive_seed(config.seed, REPLAY))
            self.holds = [RandomHolds(self.layout, config, i) for i in range(config.envs)]

            # How far it is. `evaluated` and `reported`: the steps of the last ones.
            self.step = self.updates = self.evaluated = self.reported = 0
            self.minutes = self.cpu_minutes = 0.0
            self.metrics: Metrics = {}  # sums over the updates since the last report
            self.summed = 0  # updates in them
            self.episodes: list[dict[str, Any]] = []
            self.reports: list[dict[str, Any]] = []
            self.evals: list[dict[str, Any]] = []

            # The present episodes. Episode k of environment i has the number k * envs + i.
            self.episode = np.arange(config.envs)
            self.actions: list[list[np.ndarray]] = [[] for _ in range(config.envs)]
            self.obs = np.zeros((config.envs, self.layout.obs_size), np.float32)
            self.reward, self.is_first = np.zeros(config.envs), np.ones(config.envs, bool)
            self.state: State | None = None  # of the filter

            self.open_folder(run_dir, resume)
            self.opened.callback(self.log.close)
            self.bar = self.opened.enter_context(self.make_bar(progress))
            if tensorboard:
                self.log.listen = self.opened.enter_context(Board(self)).row
        except BaseException:
            self.opened.close()
            raise

    # ------------------------------------------------------------ what it consists of

    @property
    def stride(self) -> int:
        """Environment steps of one action in every environment."""
        return self.config.envs * self.config.action_repeat

    def make_eval_envs(self, env: MakeEnv) -> VectorEnv:
        """Environments for evaluation, or training's own where no others can be made."""
        c = self.config
        number = min(c.eval_envs, c.eval_episodes)
        for wrapper in wrappers_of(self.envs):
            if isinstance(
                wrapper, gym.wrappers.NormalizeObservation | gym.wrappers.NormalizeReward
            ):
                warnings.warn(
                    f"{self.name}: {type(wrapper).__name__} keeps running statistics, and each "
                    "environment has its own: evaluations and a resumed run see other numbers than "
                    "training did. Leave it out: the agent normalises what it sees",
                    stacklevel=4,
                )
        if not (c.evals and number):
            return self.envs
        try:
            found = make_envs(env, number, c)
            ours = {id(one.unwrapped) for one in getattr(self.envs, "envs", ())}
            if any(id(one.unwrapped) in ours for one in getattr(found, "envs", ())):
                raise EnvFault(f"{self.name}: the function gave the same environment twice")
        except EnvFault as error:
            warnings.warn(
                f"{error}. So evaluations take place in training's environment, whose episodes they "
                "cut short (Config.eval_envs=0)",
                stacklevel=4,
            )
            return self.envs
        self.opened.callback(found.close)
        return found

    def make_replay(self) -> ReplayBuffer:
        """Raises ValueError where the machine has no memory for so many rows."""
        c, layout = self.config, self.layout
        rows = 2 * c.steps // c.action_repeat + c.envs  # at most: one more for each episode
        rows = min(c.capacity, max(rows, c.seq_len * c.envs))
        row = 4 * (layout.vector_size + layout.action_size) + layout.pixels
        row += 2 * (c.deter + c.categoricals)
        if 3 * rows * row > memory_of_this_machine():  # a checkpoint makes two copies
            raise ValueError(
                f"{self.name}: a replay of {rows:,} rows needs {rows * row / 1e9:.1f} GB, and three "
                "times that while it is saved, more than this machine has: lower Config.capacity"
            )
        return ReplayBuffer(rows, layout, (c.deter, c.categoricals, c.classes), c.envs)

    def open_folder(self, run_dir: Path | str | None, resume: bool) -> None:
        """Begin in the run's folder, or go on from its checkpoint."""
        if run_dir is None:
            run_dir = self.opened.enter_context(tempfile.TemporaryDirectory())
        self.run_dir = Path(run_dir).expanduser().absolute()
        self.opened.callback(Lock(self.run_dir).release)
        if resume and (self.run_dir / CHECKPOINT).exists():
            restore(self)
        else:
            for name in (LOG, CHECKPOINT) * (self.run_dir / CHECKPOINT).exists():
                os.replace(self.run_dir / name, self.run_dir / f"previous-{name}")
            self.log = Log(self.run_dir / LOG)
            self.obs, _ = self.envs.reset(seed=self.seeds())
        (self.run_dir / "result.json").unlink(missing_ok=True)  # the mark of a complete run
        about = {"env": self.name, **dataclasses.asdict(self.config)}
        write_json(self.run_dir / "config.json", about)

    def make_bar(self, progress: bool) -> Any:
        bar = tqdm(total=self.config.steps, initial=self.step, disable=not progress, unit="step")
        self.show = {"return": f"{self.evals[-1]['return']:.1f}"} if self.evals else {}
        return bar

    # ------------------------------------------------------------ act

    def explore(self, action: np.ndarray) -> np.ndarray:
        """The actions to take (N, A): the policy's, clipped to [-1, 1], or random ones."""
        action = action.copy() if self.layout.discrete else np.clip(action, -1, 1)
        for i, hold in enumerate(self.holds):
            random = hold.draw(warm_up=self.step < self.config.warm_up)
            if random is not None:
                action[i] = random
        return action

    def advance(
        self,
        action: np.ndarray,
        state: State,
        obs: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        info: dict[str, Any],
    ) -> None:
        """Go on to what the step brought: all of it as `envs.step` returned it, after the action
        taken (N, A) and the filter's state with which it was chosen."""
        self.step += self.stride
        taken = torch.from_numpy(action).to(self.agent.device)
        self.state = state._replace(action=taken)
        self.obs, self.reward, self.is_first = obs, reward, np.zeros_like(terminated)
        for history, chosen in zip(self.actions, action, strict=True):
            history.append(chosen)
        ended = terminated | truncated
        for i in ended.nonzero()[0]:
            ret, length = float(info["return"][i]), int(info["length"][i])
            self.log.write("episode", self.step, **{"return": ret, "length": length})
        if ended.any():
            self.end_episodes(ended, terminated)
            self.begin_episodes(ended)
        self.pause()

    def end_episodes(self, which: np.ndarray, terminated: np.ndarray) -> None:
        """Add the final observations' rows of these environments (N,) bool, if they have begun;
        their action is zeros."""
        i = (which & ~self.is_first).nonzero()[0]
        nothing, no, yes = np.zeros((len(i), self.layout.action_size)), i < 0, i >= 0
        self.replay.add(self.obs[i], nothing, self.reward[i], no, yes, terminated[i], streams=i)

    def begin_episodes(self, which: np.ndarray) -> None:
        """Reset these environments (N,) bool; nothing is held there any more."""
        self.episode[which] += self.config.envs
        self.obs, _ = self.envs.reset(seed=self.seeds(), options={"reset_mask": which})
        self.reward, self.is_first = np.where(which, 0.0, self.reward), self.is_first | which
        for i in which.nonzero()[0]:
            self.actions[i], self.holds[i].left = [], 0

    def seeds(self) -> list[int]:
        """Seed of each environment's present episode."""
        return [derive_seed(self.config.seed, EPISODES, int(k)) for k in self.episode]

    # ------------------------------------------------------------ learn

    def updates_due(self) -> int:
        """Updates that should have been made by now: `train_ratio` replayed rows for each step of
        the environments after the warm-up."""
        enough = self.replay.can_sample(self.config.seq_len)
        return self.config.updates_after(self.step) if enough else 0

    def record(self, metrics: Metrics) -> None:
        """Count an update and what it says. Raises FloatingPointError where a loss or a gradient is
        no longer finite."""
        self.metrics = {name: self.metrics.get(name, 0) + x for name, x in metrics.items()}
        self.summed += 1
        self.updates += 1
        check = sum(metrics[k] for k in metrics if k == "loss" or k.endswith("grad_norm"))
        if not torch.isfinite(torch.as_tensor(check)):
            bad = [name for name, value in metrics.items() if not torch.isfinite(value)]
            raise FloatingPointError(
                f"{self.name}: update {self.updates} at step {self.step} gave non-finite "
                f"{', '.join(bad)}"
                + (f"; the last checkpoint in {self.run_dir} is from before" if self.kept else "")
            )
        if self.updates == 1:
            for text in self.faint_data():
                warnings.warn(f"{self.name}: {text}", stacklevel=2)
        self.pause()

    def faint_data(self) -> Iterator[str]:
        """What the agent would barely see, in what was collected before the first update."""
        rows, norm = self.replay.rows, self.agent.encoder.norm
        seen = self.replay.filled()
        obs = symlog(torch.from_numpy(rows["obs"][seen, : self.layout.numbers]).double())
        moves = obs.amax(0) > obs.amin(0)
        faint = (moves & (obs.std(0) < norm.min_std / 3)).nonzero().flatten().tolist()
        if faint:
            yield (
                f"observation dimensions {', '.join(map(str, faint[:5]))}{', ...' * (len(faint) > 5)} "
                "barely vary relative to their size; rescale them with fixed constants if they matter"
            )
        largest = float(np.abs(rows["reward"][seen]).max())
        if 0 < largest < 0.001:  # bins near 0 are 0.17 apart, and the return scale is at least 1
            yield (
                f"rewards are at most {largest:.1g} in size, so small that the agent barely sees "
                "them; multiply them by a constant (gymnasium.wrappers.TransformReward)"
            )
        if self.layout.pixels and rows["pixels"][seen].max() <= 1:
            yield "pixels are 0 and 1 of 255: give them in the whole range of their space"

    # ------------------------------------------------------------ report

    def is_due(self, before: int, times: int) -> bool:
        """Whether one of so many evenly spread things is due, after the last one at step `before`."""
        steps = self.config.steps
        return self.step * times // steps > before * times // steps

    def report(self) -> None:
        """Log the metrics' means, and evaluate, when they are due."""
        if self.summed and self.is_due(self.reported, REPORTS):
            values = {name: value.item() / self.summed for name, value in self.metrics.items()}
            self.metrics, self.summed, self.reported = {}, 0, self.step
            self.log.write("report", self.step, update=self.updates, **values)
            self.show |= {name: f"{values[name]:.2f}" for name in ("loss", "entropy")}
            self.bar.set_postfix(self.show, refresh=False)
        if self.updates and self.is_due(self.evaluated, self.config.evals):
            self.evaluate()

    def evaluate(self) -> None:
        """Log a greedy evaluation and how good dreams and values are."""
        c, everyone = self.config, np.ones(self.config.envs, bool)
        seed = derive_seed(c.seed, EVALUATION, self.step)
        shared = self.eval_envs is self.envs

        def progress(done: int) -> None:
            self.bar.set_description_str(f"evaluating {done}/{c.eval_episodes}")

        progress(0)
        if shared:
            self.end_episodes(everyone, ~everyone)
        returns, values = evaluate_in(
            self.agent, self.eval_envs, c.eval_episodes, seed, progress=progress
        )
        if shared:
            self.begin_episodes(everyone)
        self.bar.set_description_str("")
        self.evaluated = self.step
        values = {
            "return": float(returns.mean()),
            **values,
            **open_loop_error(self.agent, self.replay, seed),
        }
        details = {"returns": returns.tolist(), "minutes": round(self.minutes, 3)}
        self.log.write("eval", self.step, **values, **details)
        self.evals.append(values)
        self.show["return"] = f"{values['return']:.1f}"
        self.bar.set_postfix(self.show)

    # ------------------------------------------------------------ begin, pause, end

    def __enter__(self) -> Self:
        self.saved = time.monotonic()
        self.began = (
            self.saved - 60 * self.minutes,
            time.process_time() - 60 * self.cpu_minutes,
        )
        self.signals = self.opened.enter_context(Signals())
        if self.agent.device.type == "cpu":
            self.opened.enter_context(fast_cpu(self.threads))
        return self

    def pause(self) -> None:
        """Read the clocks, save when a checkpoint is due, and stop here after a signal."""
        self.minutes = (time.monotonic() - self.began[0]) / 60
        self.cpu_minutes = (time.process_time() - self.began[1]) / 60
        self.bar.update(self.step - self.bar.n)
        if self.signals.number:
            save(self)
            self.signals.end()
        if time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            try_save(self)
            self.saved = time.monotonic()

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> bool:
        try:
            if error is None:
                save(self)
                save_agent(self.agent, self.run_dir / "agent.pt")
                if self.config.train_ratio and not self.updates:
                    warnings.warn(
                        f"{self.name}: nothing was learned: {self.step} steps owe no update, or "
                        f"never filled one window of seq_len={self.config.seq_len} rows",
                        stacklevel=2,
                    )
            elif isinstance(error, EnvFault | EOFError | ConnectionError):  # of a worker that died
                try_save(self)
                saved = (
                    f". The run up to step {self.step} is in {self.run_dir}: resume it when the "
                )
                saved = saved + "environment is fixed" if self.kept else ""
                raise EnvFault(f"{error or repr(error)}{saved}") from error
            elif isinstance(error, KeyboardInterrupt) and not self.kept:
                warnings.warn(
                    f"interrupted at step {self.step}: this is the run so far", stacklevel=2
                )
                return True
            return False
        finally:
            kinds = ("episode", "report", "eval")
            self.log.close()
            found = (read_log(self.run_dir / LOG, k) for k in kinds)
            self.episodes, self.reports, self.evals = found
            self.opened.close()


class Signals:
    """Turns Ctrl-C, SIGTERM and SIGHUP into `number`, for the run to look at when it can be saved.

    A second signal that comes more than a second later, or after that, interrupts at once. (Shells
    and `timeout` may send two in a row.) Signals reach the main thread only; what is ignored, as
    SIGHUP under nohup, stays ignored.
    """

    number = 0

    def __enter__(self) -> Self:
        self.previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in signal.Signals:
                if number.name in ("SIGINT", "SIGTERM", "SIGHUP"):
                    if signal.getsignal(number) != signal.SIG_IGN:
                        self.previous[number] = signal.signal(number, self.hear)
        return self

    def hear(self, number: int, _: Any) -> None:
        if not self.number:
            self.number, self.since = number, time.monotonic()
        elif time.monotonic() - self.since > 1:
            self.__exit__()
            signal.raise_signal(number)

    def end(self) -> None:
        """Raises what the signal stands for."""
        by_hand = self.number == signal.SIGINT
        raise KeyboardInterrupt() if by_hand else SystemExit(128 + self.number)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def wrappers_of(envs: VectorEnv) -> Iterator[gym.Env]:
    """All layers of the first of the environments in this process."""
    layer: Any = envs.envs[0] if isinstance(envs, SyncVectorEnv) else None
    while layer is not None:
        yield layer
        layer = layer.env if isinstance(layer, gym.Wrapper) else None


def memory_of_this_machine() -> float:
    """Bytes; infinite where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


# ---------------------------------------------------------------- threads


@contextlib.contextmanager
def fast_cpu(threads: int = 1) -> Iterator[None]:
    """`tune_cpu` within this block; afterwards threads and denormal numbers are as before."""
    before, flushed = torch.get_num_threads(), (torch.tensor([1e-40]) * 1).item() == 0
    tune_cpu(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(flushed)


def tune_cpu(threads: int = 1) -> None:
    """Settings of this process that make small tensors fast on a CPU.

    One thread: a second one gains less than a second run beside this one would
    (`python -m lab.benchmark`). Denormal numbers, slow to compute with, are flushed to zero. Freed
    memory is kept for the next update instead of being handed back to the system page by page
    (glibc only).
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(ctypes.c_int(-3), ctypes.c_int(32 * 2**20))  # M_MMAP_THRESHOLD, bytes
        libc.mallopt(ctypes.c_int(-1), ctypes.c_int(2**30))  # M_TRIM_THRESHOLD, bytes
