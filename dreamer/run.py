"""A training run: everything that it consists of, and what surrounds its loop.

The loop itself is in `train` (training.py), and once more in script 02: act, step, add, update,
report. A `Run` says when a random action, an update, a report or an evaluation is due, counts,
writes the log, and saves itself. How it is saved and restored is in resume.py.
"""

import contextlib
import dataclasses
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from tqdm import tqdm

from dreamer.agent import DreamerAgent, Metrics
from dreamer.checkpoint import Log, lock, read_log, save_agent, write_json
from dreamer.config import Config
from dreamer.envs import EnvFault, MakeEnv, VectorEnv, make_envs, random_action
from dreamer.evaluation import EVALUATION, EXPLORATION, evaluate_in, open_loop_error
from dreamer.machine import Signals, fast_cpu, memory, pick_device
from dreamer.replay_buffer import Layout, ReplayBuffer
from dreamer.resume import CHECKPOINT, LOG, restore, save, try_save
from dreamer.rssm import State
from dreamer.tensorboard import Board
from dreamer.utils import derive_seed, symlog

REPORTS = 200  # rows of metrics in the log of a run
FEW_UPDATES = 100  # no verdict on dreams before
PREFILL_HOLD = 16  # rows for which the prefill holds a random action at most
CHECKPOINT_SECONDS = 60.0  # between checkpoints: what a kill can cost

# Streams of random numbers that `derive_seed` tells apart; others are in evaluation.py.
REPLAY, EPISODES = 2, 10


class RandomHolds:
    """The random actions of one environment.

    All actions are random in the warm-up, later a share `explore`, or less where an episode's end
    cuts holds short. One is held for 1 to PREFILL_HOLD or later `explore_hold` rows, log-uniformly:
    held actions reach far more states than dithering. After a hold the policy goes on from where it
    led, so the replay also covers what is off its path, and what it no longer tries (temporally
    extended ε-greedy; Dabney et al., arXiv 2006.01782).
    """

    def __init__(self, layout: Layout, config: Config, number: int):
        self.rng = np.random.default_rng([derive_seed(config.seed, EXPLORATION), number])
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

    episodes: list[dict[str, Any]]  # rows of the log
    reports: list[dict[str, Any]]

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
        callback: Callable[[dict[str, Any]], None] | None = None,
    ):
        self.config, self.threads, self.kept = config, threads, run_dir is not None
        folder = Path(run_dir or ".").expanduser().absolute()  # simulators may leave this one
        self.stride = config.envs * config.action_repeat  # environment steps of one loop
        with contextlib.ExitStack() as opened:
            self.envs = make_envs(env, config.envs, config)
            opened.callback(self.envs.close)
            self.name, self.layout = (self.envs.get_attr(x)[0] for x in ("name", "layout"))
            self.eval_envs = self.make_eval_envs(env)
            if self.eval_envs is not self.envs:
                opened.callback(self.eval_envs.close)
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
            self.evals: list[dict[str, Any]] = []  # rows of the log

            # The present episodes. Episode k of environment i has the number k * envs + i.
            self.episode = np.arange(config.envs)
            self.actions: list[list[np.ndarray]] = [[] for _ in range(config.envs)]
            self.obs = np.zeros((config.envs, self.layout.obs_size), np.float32)
            self.reward, self.is_first = np.zeros(config.envs), np.ones(config.envs, bool)
            self.state: State | None = None  # of the filter

            if run_dir is None:
                folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            self.run_dir = folder
            opened.enter_context(lock(self.run_dir))
            self.begin_or_resume(resume)
            opened.callback(self.log.close)
            if tensorboard:
                self.log.listeners.append(opened.enter_context(Board(self)).row)
            if callback:
                self.log.listeners.append(callback)
            self.live = sys.stderr.isatty() or "ipykernel" in sys.modules  # else in a file, say
            look: dict[str, Any] = {"unit": "step", "mininterval": 0.1 if self.live else 30}
            bar: Any = tqdm(total=config.steps, initial=self.step, disable=not progress, **look)
            self.bar = opened.enter_context(bar)
            self.opened = opened.pop_all()  # what leaving closes

    def make_eval_envs(self, env: MakeEnv) -> VectorEnv:
        """Environments for evaluation; training's own where no others can be made."""
        c = self.config
        number = min(c.eval_envs, c.eval_episodes)
        layer: Any = getattr(self.envs, "envs", [None])[0]
        while isinstance(layer, gym.Wrapper):
            if isinstance(layer, NormalizeObservation | NormalizeReward):
                warnings.warn(
                    f"{self.name}: {type(layer).__name__} keeps running statistics, and each "
                    "environment has its own: evaluations and a resumed run see other numbers than "
                    "training did. Leave it out: the agent normalises what it sees",
                    stacklevel=4,
                )
            layer = layer.env
        if not (c.evals and number):
            return self.envs
        try:
            return make_envs(env, number, c, taken=getattr(self.envs, "envs", ()))
        except EnvFault as error:
            warnings.warn(
                f"{error}. So evaluations take place in training's environments and cut their "
                "episodes short (as with Config.eval_envs=0)",
                stacklevel=4,
            )
            return self.envs

    def make_replay(self) -> ReplayBuffer:
        """Raises ValueError where the machine has no memory for so many rows."""
        c = self.config
        rows = 2 * c.steps // c.action_repeat + c.envs  # at most: one more for each episode
        rows = min(c.capacity, max(rows, c.seq_len * c.envs))
        latent = c.deter, c.categoricals, c.classes
        replay = ReplayBuffer(rows, self.layout, latent, c.envs)
        if 3 * rows * replay.row_bytes > memory():  # a checkpoint makes two copies
            raise ValueError(
                f"{self.name}: {rows:,} replay rows take {rows * replay.row_bytes / 1e9:.1f} GB, "
                "and thrice that while it is saved, which this machine lacks: lower Config.capacity"
            )
        return replay

    def begin_or_resume(self, resume: bool) -> None:
        """Go on from the folder's checkpoint, or begin there and keep what an earlier run left."""
        if resume and (self.run_dir / CHECKPOINT).exists():
            restore(self)
        else:
            for name in (LOG, CHECKPOINT) if (self.run_dir / CHECKPOINT).exists() else ():
                with contextlib.suppress(FileNotFoundError):  # a kill came between the two
                    os.replace(self.run_dir / name, self.run_dir / f"previous-{name}")
            self.log = Log(self.run_dir / LOG)
            self.obs, _ = self.envs.reset(seed=self.seeds())
        (self.run_dir / "result.json").unlink(missing_ok=True)  # the mark of a complete run
        about = {"env": self.name, **dataclasses.asdict(self.config)}
        write_json(self.run_dir / "config.json", about)

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
        """Go on to what `envs.step` returned for the action taken (N, A), which was chosen in the
        filter's `state`. Where an episode ended, the next one begins."""
        self.step += self.stride
        self.state = state._replace(action=torch.from_numpy(action).to(self.agent.device))
        self.obs, self.reward, self.is_first = obs, reward, np.zeros_like(terminated)
        for history, taken in zip(self.actions, action, strict=True):
            history.append(taken)
        ended = terminated | truncated
        for i in ended.nonzero()[0]:
            about = {"return": float(info["return"][i]), "length": int(info["length"][i])}
            self.log.write("episode", self.step, **about)
        if ended.any():
            self.end_episodes(ended, terminated)
            self.begin_episodes(ended)
        self.pause()

    def end_episodes(self, which: np.ndarray, terminated: np.ndarray) -> None:
        """Add the final observations' rows of these environments, (N,) bool, where an episode has
        begun, and count on to the next ones. A row's action is zeros; nothing is held any more."""
        which = which & ~self.is_first
        i = which.nonzero()[0]
        nothing = np.zeros((len(i), self.layout.action_size))
        final = self.obs[i], nothing, self.reward[i], np.zeros(len(i), bool), True, terminated[i]
        self.replay.add(*final, streams=i)
        self.episode[i] += self.config.envs
        self.reward, self.is_first = np.where(which, 0.0, self.reward), self.is_first | which
        for k in i:
            self.actions[k], self.holds[k].left = [], 0

    def begin_episodes(self, which: np.ndarray) -> None:
        """Reset these environments, (N,) bool. If one fails, the run goes on from here."""
        self.obs, _ = self.envs.reset(seed=self.seeds(), options={"reset_mask": which})

    def seeds(self) -> list[Any]:
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
            before = f"; the last checkpoint in {self.run_dir} is from before" if self.kept else ""
            raise FloatingPointError(
                f"{self.name}: update {self.updates} at step {self.step} gave non-finite "
                f"{', '.join(bad)}{before}"
            )
        if self.updates == 1:
            for text in self.faint_data():
                warnings.warn(f"{self.name}: {text}", stacklevel=2)
        self.pause()

    def faint_data(self) -> Iterator[str]:
        """What the agent would barely see, in what was collected before the first update."""
        rows, filled = self.replay.rows, self.replay.filled()
        obs = symlog(torch.from_numpy(rows["obs"][filled, : self.layout.numbers]).double()).numpy()
        moves, least = np.ptp(obs, 0) > 0, self.agent.encoder.norm.min_std / 3
        faint = [str(i) for i in (moves & (obs.std(0) < least)).nonzero()[0]]
        if faint:
            yield (
                f"observation dimensions {', '.join(faint[:5] + ['...'][: len(faint) - 5])} barely "
                "vary relative to their size, so the agent barely sees them; rescale them with "
                "fixed constants if they matter"
            )
        largest = float(np.abs(rows["reward"][filled]).max())
        if 0 < largest < 0.001:  # bins near 0 are 0.17 apart, and the return scale is at least 1
            yield (
                f"rewards are at most {largest:.1g} in size, so small that the agent barely sees "
                "them; multiply them by a constant (gymnasium.wrappers.TransformReward)"
            )
        if self.layout.pixels and rows["pixels"][filled].max() <= 1:
            yield "pixels are at most 1 of 255: give them in the whole range of their space"

    # ------------------------------------------------------------ report

    def is_due(self, before: int, times: int) -> bool:
        """Whether one of so many evenly spread things is due; the last one was at `before`."""
        steps = self.config.steps
        return self.step * times // steps > before * times // steps

    def report(self) -> None:
        """Log the metrics' means, and evaluate, when they are due."""
        if self.summed and self.is_due(self.reported, REPORTS):
            values = {name: value.item() / self.summed for name, value in self.metrics.items()}
            self.metrics, self.summed, self.reported = {}, 0, self.step
            self.log.write("report", self.step, update=self.updates, **values)
            self.show(f"loss {values['loss']:.2f}, entropy {values['entropy']:.2f}")
        if self.updates and self.is_due(self.evaluated, self.config.evals):
            self.evaluate()
            self.show("evaluated")
            self.pause()

    def show(self, text: str) -> None:
        """Bring the bar up to date."""
        ret = f"return {self.evals[-1]['return']:.1f}, " if self.evals else ""
        self.bar.set_postfix_str(f"{ret}{text}", refresh=False)

    def evaluate(self) -> None:
        """Log a greedy evaluation and how good dreams and values are."""
        c, everyone = self.config, np.ones(self.config.envs, bool)
        seed = derive_seed(c.seed, EVALUATION, self.step)

        def progress(done: int) -> None:
            self.bar.set_description_str(f"evaluating {done}/{c.eval_episodes}", self.live)

        progress(0)
        if self.eval_envs is self.envs:
            self.end_episodes(everyone, ~everyone)
        returns, found = evaluate_in(
            self.agent, self.eval_envs, c.eval_episodes, seed, progress=progress
        )
        if self.eval_envs is self.envs:
            self.begin_episodes(everyone)
        self.bar.set_description_str("", self.live)
        self.evaluated = self.step
        found |= {"return": float(returns.mean())}
        found |= open_loop_error(self.agent, self.replay, seed)
        details = {"returns": returns.tolist(), "minutes": round(self.minutes, 3)}
        self.log.write("eval", self.step, **found, **details)
        self.evals.append(found)

    def not_learned(self) -> Iterator[str]:
        """What the whole run failed to learn, except returns, which the evaluations show."""
        if self.config.train_ratio and not self.updates:
            yield (
                f"nothing was learned: {self.step} steps owe no update, or never filled a window "
                f"of seq_len={self.config.seq_len} rows"
            )
        found = self.evals[-1] if self.evals and self.updates >= FEW_UPDATES else {}
        for part in "obs", "image":
            dream, naive = (found.get(f"{guess}_{part}_error", 0) for guess in ("dream", "naive"))
            if dream > 1.2 * naive:  # of what is pure chance both are as wrong
                yield (
                    f"dreams foresee {'images' if part == 'image' else 'observations'} worse "
                    f"(error {dream:.3g}) than the guess that nothing changes ({naive:.3g}): the "
                    "actor has learned from fantasies; docs/environments.md says what to try"
                )

    # ------------------------------------------------------------ begin, pause, end

    def __enter__(self) -> Self:
        self.saved = time.monotonic()
        self.began = self.saved - 60 * self.minutes, time.process_time() - 60 * self.cpu_minutes
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
            self.signals.stop()
        if time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            try_save(self)
            self.saved = time.monotonic()

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> bool:
        try:
            if error is None:
                save(self)
                save_agent(self.agent, self.run_dir / "agent.pt")
                for text in self.not_learned():
                    warnings.warn(f"{self.name}: {text}", stacklevel=2)
            elif isinstance(error, EnvFault | EOFError | ConnectionError):
                died = f"{self.name}: an environment's process died"
                what = error if isinstance(error, EnvFault) else died
                try_save(self)
                until = f". The run up to step {self.step} is in {self.run_dir}: resume it when the"
                until = f"{until} environment is fixed" if self.kept else ""
                raise EnvFault(f"{what}{until}") from error
            elif isinstance(error, KeyboardInterrupt) and not self.kept:
                text = f"interrupted at step {self.step}: this is the run so far"
                warnings.warn(text, stacklevel=2)
                return True
            return False
        finally:
            log = self.run_dir / LOG
            found = (read_log(log, kind) for kind in ("episode", "report", "eval"))
            self.episodes, self.reports, self.evals = found
            self.opened.close()
