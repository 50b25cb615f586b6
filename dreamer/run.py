"""A training run: everything that it consists of, and what it does, one thing at a time.

Act adds a row of real experience to the replay, learn makes one update from it, report and evaluate
write to the log. The loop around them is `train` in training.py, and once more, spelled out, script
02; how a run is saved and restored is in resume.py.
"""

import contextlib
import ctypes
import math
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from dreamer.agent import DreamerAgent, Metrics
from dreamer.checkpoint import Lock
from dreamer.config import Config
from dreamer.envs import EnvSpec, make_envs, share_a_simulator
from dreamer.evaluation import (
    EVALUATION,
    EXPLORATION,
    SIDE_BY_SIDE,
    evaluate_in,
    open_loop_error,
)
from dreamer.replay_buffer import ReplayBuffer
from dreamer.rssm import Posterior, State
from dreamer.utils import derive_seed, symlog

REPORTS = 200  # rows of metrics in the log of a run
PREFILL_HOLD = 16  # rows for which the prefill holds a random action at most

# Streams of random numbers that `derive_seed` tells apart; others are in evaluation.py.
REPLAY, EPISODES = 2, 10


class Run:
    """The agent with its environment, its replay, and all that has happened so far.

    `train` returns it with the log's rows by kind, `episodes`, `reports` and `evals`, and the
    wall-clock and CPU minutes of training.
    """

    def __init__(self, env: EnvSpec, config: Config, run_dir: Path, device: torch.device):
        self.config, self.run_dir = config, run_dir
        self.log: Any = None  # a `Log`
        self.lock: Lock | None = None  # on the run's folder
        self.kept = True  # whether that folder outlives the run
        # Evaluation has environments of its own, kept, and more of them where they are needed.
        self.env_spec = env
        self.env, *self.eval_envs = make_envs(env, 2 if config.evals else 1, config)
        try:
            self.check_envs()
            sizes = self.env.obs_size, self.env.action_size, self.env.segments
            parts, masked = self.env.obs_parts, self.env.masked
            self.agent = DreamerAgent(*sizes, config, device, parts, masked, self.env.images)
            rows = 2 * config.steps // config.action_repeat  # at most: one more for each episode
            rows = min(config.capacity, max(rows, config.seq_len, 2))
            self.replay = ReplayBuffer(rows, *sizes, self.agent.rssm.sizes, self.env.pixels)
        except BaseException:
            self.close()
            raise
        self.replay_rng = np.random.default_rng(derive_seed(config.seed, REPLAY))
        self.explore_rng = np.random.default_rng(derive_seed(config.seed, EXPLORATION))

        # How far it is. `evaluated` and `reported`: the steps of the last evaluation and report.
        self.step = self.updates = self.episode = self.evaluated = self.reported = 0
        self.eval_steps = 0  # of the environment, in all evaluations
        self.longest = 0  # episode so far, steps of the environment
        self.minutes = self.cpu_minutes = 0.0
        self.metrics: Metrics = {}  # sums over the updates since the last report
        self.summed = 0  # updates in them

        # The present episode.
        self.obs: Any = None  # (O,); None: the next step starts an episode
        self.reward, self.ret, self.is_first = 0.0, 0.0, True
        self.episode_actions: list[np.ndarray] = []
        self.state: State | None = None  # of the filter
        self.chosen: tuple[np.ndarray, State] | None = None  # what to do next
        self.held_action, self.held_steps = np.zeros(self.env.action_size, np.float32), 0

        self.episodes: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = []
        self.evals: list[dict[str, Any]] = []
        self.say: Callable[[str], None] = lambda text: None  # what takes long is said here

    def check_envs(self) -> None:
        """Raises ValueError where evaluation would disturb training; warns of what it would not
        share with it."""
        if self.eval_envs and share_a_simulator(self.env, self.eval_envs[0]):
            raise ValueError(
                f"{self.env.name}: what one environment does happens to the other one too, as with "
                "one simulator behind both: make them independent, or train with Config(evals=0)"
            )
        for name in wrappers_with_memory(self.env.env):
            warnings.warn(
                f"{self.env.name}: {name} keeps running statistics, and each environment has its "
                "own: evaluations and a resumed run see other numbers than training did. Leave it "
                "out: the agent normalises what it sees",
                stacklevel=3,
            )

    # ------------------------------------------------------------ act

    def act(self) -> None:
        """One action in the real environment, one row in the replay."""
        self.take(*self.choose())

    def choose(self) -> tuple[np.ndarray, State]:
        """The action (A,) for the present observation, and the filter's state with it. The actor's
        action, or a random one (`random_is_due`).

        It stays chosen until `take` has succeeded: after a fault of the environment a resumed run
        takes the same action again.
        """
        if self.obs is None:
            self.start_episode()
        if self.chosen is None:
            is_first = np.array([self.is_first])
            actions, state = self.agent.act(self.obs[None], is_first, self.state)
            action = actions[0]
            if self.random_is_due():
                action = self.random_action()
                state = state._replace(action=torch.from_numpy(action)[None].to(self.agent.device))
            self.chosen = (action if self.env.segments else np.clip(action, -1, 1)), state
        return self.chosen

    def take(self, action: np.ndarray, state: State) -> None:
        """Take the chosen action, add the row to the replay, keep what comes back."""
        obs, reward, terminated, truncated = self.env.step(action)
        self.replay.add(self.obs, action, self.reward, self.is_first, False, False, state)
        self.state, self.chosen = state, None
        self.obs, self.reward, self.is_first = obs, reward, False
        self.episode_actions.append(self.replay.encode_action(action))
        self.ret += reward
        self.step += self.config.action_repeat
        if terminated or truncated:
            length = self.env.episode_steps
            self.longest = max(self.longest, length)
            self.log.write("episode", self.step, **{"return": self.ret, "length": length})
            self.end_episode(terminated)

    def start_episode(self) -> None:
        self.obs = self.env.reset(derive_seed(self.config.seed, EPISODES, self.episode))
        self.reward, self.ret, self.is_first = 0.0, 0.0, True
        self.episode_actions = []

    def end_episode(self, terminated: bool) -> None:
        """Add the final observation's row; the next one starts another episode, nothing held."""
        nothing = np.zeros(self.env.action_size, np.float32)
        self.replay.add(self.obs, nothing, self.reward, False, True, terminated)
        self.episode += 1
        self.held_steps = 0
        self.obs, self.episode_actions = None, []

    def random_is_due(self) -> bool:
        """Whether this row's action is random: all are in the warm-up, later a share `explore`, or
        less where an episode's end cuts holds short. After a hold the policy goes on from where it
        led, so the replay also covers what is off its path, and what it no longer tries
        (temporally extended ε-greedy; Dabney et al., arXiv 2006.01782).
        """
        c = self.config
        if self.held_steps or self.step < self.config.warm_up:
            return True
        longest = c.explore_hold
        # L - ln(L!) / ln(L + 1): the mean of a log-uniform hold, as `random_action` draws it
        mean_hold = longest - math.lgamma(longest + 1) / math.log(longest + 1)
        start = c.explore / (c.explore + (1 - c.explore) * mean_hold)
        return bool(self.explore_rng.random() < start)

    def random_action(self) -> np.ndarray:
        """A random action, held for 1 to PREFILL_HOLD or later `explore_hold` rows, log-uniformly:
        held actions reach far more states than dithering."""
        if self.held_steps == 0 or not self.env.allows(self.held_action):
            self.held_action = self.env.random_action(self.explore_rng)
            longest = PREFILL_HOLD if self.step < self.config.warm_up else self.config.explore_hold
            self.held_steps = int((longest + 1) ** self.explore_rng.random())
        self.held_steps -= 1
        return self.held_action

    # ------------------------------------------------------------ learn

    def updates_due(self) -> int:
        """Updates that should have been made by now: `train_ratio` replayed rows for each step of
        the environment after the warm-up."""
        enough = len(self.replay) >= self.config.seq_len
        return self.config.updates_after(self.step) if enough else 0

    def learn(self) -> None:
        """One update of world model, actor and critic from replayed windows."""
        batch = self.sample()
        self.learned(batch["index"], *self.agent.update(batch))

    def sample(self) -> dict[str, np.ndarray]:
        """A batch of windows from the replay."""
        c = self.config
        if self.updates == 0:
            if self.agent.obs_parts:
                self.warn_of_faint_observations()
            self.warn_of_faint_rewards()
        return self.replay.sample(c.batch_size, c.seq_len, self.replay_rng, c.recency)

    def learned(self, index: np.ndarray, metrics: Metrics, states: Posterior) -> None:
        """Count an update of these rows (B, T), and keep what it says. Raises FloatingPointError
        where a loss or a gradient is no longer finite."""
        self.replay.refresh(index, states)
        self.metrics = {name: self.metrics.get(name, 0) + x for name, x in metrics.items()}
        self.summed += 1
        self.updates += 1
        check = sum(metrics[k] for k in metrics if k == "loss" or k.endswith("grad_norm"))
        if not torch.isfinite(torch.as_tensor(check)):
            bad = [name for name, value in metrics.items() if not torch.isfinite(value)]
            raise FloatingPointError(
                f"{self.env.name}: update {self.updates} at step {self.step} gave non-finite "
                f"{', '.join(bad)}"
                + f"; the last checkpoint in {self.run_dir} is from before"
                * self.kept
            )

    def warn_of_faint_observations(self) -> None:
        """Numbers that `ObsNorm` cannot make large enough to be noticed."""
        obs = symlog(torch.from_numpy(self.replay.rows["obs"][: len(self.replay)]).double())
        spread, moves = obs.std(0), obs.amax(0) > obs.amin(0)
        norm = self.agent.encoder.norm
        faint = (norm.numbers.cpu() & moves & (spread < norm.min_std / 3)).nonzero().flatten()
        if len(faint):
            warnings.warn(
                f"{self.env.name}: observation dimensions {listed(faint.tolist())} barely vary "
                "relative to their size, so the agent barely sees them; rescale them with fixed "
                "constants if they matter",
                stacklevel=2,
            )

    def warn_of_faint_rewards(self) -> None:
        """Rewards too small to be told apart: bins near 0 are 0.17 apart, and the return scale is
        at least 1."""
        largest = float(np.abs(self.replay.rows["reward"][: len(self.replay)]).max())
        if 0 < largest < 0.001:
            warnings.warn(
                f"{self.env.name}: rewards are at most {largest:.1g} in size, so small that the "
                "agent barely sees them; multiply them by a constant "
                "(gymnasium.wrappers.TransformReward)",
                stacklevel=2,
            )

    # ------------------------------------------------------------ report

    def report_due(self) -> bool:
        """REPORTS times in a run, evenly spread, where there are updates to report."""
        c = self.config
        due = self.step * REPORTS // c.steps > self.reported * REPORTS // c.steps
        return self.summed > 0 and due

    def report(self) -> dict[str, float]:
        """Log the metrics, averaged over the updates since the last report, and return them."""
        values = {name: value.item() / self.summed for name, value in self.metrics.items()}
        self.metrics, self.summed = {}, 0
        self.log.write("report", self.step, update=self.updates, **values)
        self.reported = self.step
        return values

    def evaluation_due(self) -> bool:
        """`evals` times in a run, evenly spread and at its end, once there are updates and an
        episode or more would not cost too much."""
        c = self.config
        due = self.step * c.evals // c.steps > self.evaluated * c.evals // c.steps
        return due and bool(self.updates) and self.affordable_episodes() > 0

    def affordable_episodes(self) -> int:
        """How many episodes an evaluation can afford now: `eval_cost` steps for each step of
        training, less those that were taken and those of one episode at the run's end.

        An episode is reckoned to be as long as the environment's time limit. Where none is known it
        is the longest so far, and from one evaluation to the next their number at most doubles:
        greedy episodes may last longer.
        """
        c, most, length = self.config, self.config.eval_episodes, self.env.time_limit
        if not length:
            length = max(self.longest, self.env.episode_steps, 1)
            most = min(most, int(2 * self.evals[-1]["episodes"]) if self.evals else 1)
        length = math.ceil(length / c.action_repeat) * c.action_repeat
        left = c.eval_cost * self.step - self.eval_steps
        if self.step < c.steps:
            left = min(left, c.eval_cost * c.steps - self.eval_steps - length)
        return max(0, int(min(most, left // length)))

    def evaluate(self) -> dict[str, float]:
        """Log a greedy evaluation and how good dreams and values are; return the numbers. What was
        begun is finished, also if it takes more steps than it should have by now; none are
        returned where it would take more than all evaluations of the run may."""
        seed = derive_seed(self.config.seed, EVALUATION, self.step)
        episodes = self.affordable_episodes()
        missing = min(episodes, SIDE_BY_SIDE) - len(self.eval_envs)
        if missing > 0:
            others = [self.env, *self.eval_envs]
            self.eval_envs += make_envs(self.env_spec, missing, self.config, others)

        def progress(done: int) -> None:
            self.say(f"evaluating {done}/{episodes}")

        progress(0)
        before = sum(env.steps for env in self.eval_envs)
        left = self.config.eval_cost * self.config.steps - self.eval_steps
        returns, values = evaluate_in(
            self.agent, self.eval_envs, episodes, seed, progress=progress, max_steps=left
        )
        self.eval_steps += sum(env.steps for env in self.eval_envs) - before
        self.evaluated = self.step
        self.longest = max(self.longest, *(env.episode_steps for env in self.eval_envs))
        if not len(returns):
            return {}
        values = {
            "return": float(returns.mean()),
            **values,
            **open_loop_error(self.agent, self.replay, seed),
        }
        details = {"returns": returns.tolist(), "minutes": round(self.minutes, 3)}
        self.log.write("eval", self.step, **values, **details)
        self.evals.append(values)
        return values

    def warn_of_what_never_came(self) -> None:
        """At the end of a run: no update, no evaluation."""
        c = self.config
        if c.train_ratio and not self.updates:
            warnings.warn(
                f"{self.env.name}: nothing was learned: {c.steps} steps with train_ratio="
                f"{c.train_ratio:g} owe no update of batch_size={c.batch_size} windows of seq_len="
                f"{c.seq_len} rows, or never filled one window ({len(self.replay)} rows)",
                stacklevel=2,
            )
        elif c.evals and c.eval_cost and not self.evals:
            length = self.env.time_limit or max(self.longest, self.env.episode_steps)
            warnings.warn(
                f"{self.env.name}: no evaluation fitted into eval_cost={c.eval_cost:g}, as an "
                f"episode may take {length} steps or more: raise eval_cost or steps",
                stacklevel=2,
            )

    def close(self) -> None:
        """Close all environments and the log, and leave the folder to others."""
        with contextlib.ExitStack() as parts:
            if self.lock:
                parts.callback(self.lock.release)
            for part in (self.log, *self.eval_envs, self.env):
                if part:
                    parts.callback(part.close)


def listed(numbers: list[int]) -> str:
    """The first five of them."""
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return ", ".join(map(str, numbers[:5])) + more


MEMORY = re.compile(r"(^|_)rms$|running_?(mean|std|var|stat)", re.IGNORECASE)


def wrappers_with_memory(env: Any) -> list[str]:
    """Names of wrappers (and the environment's own, if so) that keep running statistics, each copy
    its own, as the names of their attributes and of those attributes' types tell."""
    found = []
    while env is not None:
        names = [name for k, v in vars(env).items() for name in (k, type(v).__name__)]
        if any(map(MEMORY.search, names)) or {"mean", "var", "count"} <= vars(env).keys():
            found.append(type(env).__name__)
        env = env.env if isinstance(env, gym.Wrapper) else None
    return found


# ---------------------------------------------------------------- devices and threads


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is a GPU, else the CPU. Raises ValueError for anything unknown."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but this PyTorch sees no CUDA GPU: use cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


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
