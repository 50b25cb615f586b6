"""The training loop, with its checkpoints and its log.

    train("CartPole-v1", Config(steps=10_000))     learns, returns a `Run` with the agent
    evaluate(agent, "CartPole-v1", 100, seed=1)    greedy episodes on fresh seeds

A run writes into its folder: `config.json`, `log.jsonl` (one row per episode, report and
evaluation) and, every minute, `checkpoint.pt`. A run resumed from its checkpoint goes on, number
for number, as if it had never been stopped. (Files: `checkpoint.py`.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import signal
import tempfile
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dreamer.agent import Config, DreamerAgent, Metrics
from dreamer.checkpoint import (
    CheckpointError,
    Log,
    load_checkpoint,
    read_log,
    save_checkpoint,
    write_json,
)
from dreamer.envs import EnvFault, EnvSpec, make_envs
from dreamer.evaluation import EVALUATION, EXPLORATION, evaluate, open_loop_error
from dreamer.replay_buffer import ReplayBuffer
from dreamer.rssm import State
from dreamer.utils import derive_seed, has_cpp_compiler, pick_device, symlog, tune_cpu

CHECKPOINT_SECONDS = 60.0  # between checkpoints: what a kill can cost
REPORTS = 200  # rows of metrics in the log of a run
PREFILL_HOLD = 16  # rows for which the prefill holds a random action at most

# Streams of random numbers that `derive_seed` tells apart; others are in evaluation.py.
REPLAY, EPISODES = 2, 10


# ---------------------------------------------------------------- trained agents


def save_agent(agent: DreamerAgent, path: Path | str) -> None:
    """The agent's weights alone, enough to act (`load_agent`)."""
    save_checkpoint(path, agent_part(agent))


def agent_part(agent: DreamerAgent) -> dict[str, Any]:
    """What a checkpoint says of the agent itself."""
    return {
        "sizes": [agent.obs_size, agent.action_size, agent.discrete],
        "config": dataclasses.asdict(agent.config),
        "agent": agent.state_dict(),
    }


def load_agent(path: Path | str, device: str = "auto") -> DreamerAgent:
    """An agent to act with, from `save_agent`'s file or from a checkpoint of `train`.

    Raises CheckpointError when the file is damaged or does not fit this program.
    """
    saved, torch_device = load_checkpoint(path), pick_device(device)
    try:
        config = Config(**{**saved["config"], "compile": False})
        agent = DreamerAgent(*saved["sizes"], config, torch_device)
        agent.load_state_dict(saved["agent"])
    except Exception as error:  # whatever the modules make of contents that do not fit them
        reason = textwrap.shorten(str(error), 200)
        raise CheckpointError(
            f"{path} does not hold an agent that this program can build ({reason}): use the "
            "version of the program that wrote it, or train anew"
        ) from error
    return agent


# ---------------------------------------------------------------- training


@dataclass
class Run:
    """What `train` returns: the agent, the log's rows by kind, and the minutes of training, by the
    clock on the wall and of the processor."""

    agent: DreamerAgent
    episodes: list[dict[str, Any]]
    reports: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    minutes: float
    cpu_minutes: float


class Trainer:
    """All that a run consists of, so that it can be saved and restored as one piece."""

    def __init__(self, env: EnvSpec, config: Config, run_dir: Path, device: torch.device):
        if config.compile and device.type == "cpu" and not has_cpp_compiler():
            warnings.warn("no C++ compiler found: running without compile", stacklevel=3)
            config = dataclasses.replace(config, compile=False)
        self.env_spec, self.config, self.run_dir = env, config, run_dir
        self.env, *spare = make_envs(env, 2 if config.evals else 1, config.action_repeat)
        for other in spare:  # made to see that evaluation will not disturb training
            other.close()
        sizes = self.env.obs_size, self.env.action_size
        self.agent = DreamerAgent(*sizes, self.env.discrete, config, device)
        self.replay = ReplayBuffer(config.capacity, *sizes)
        self.replay_rng = np.random.default_rng(derive_seed(config.seed, REPLAY))
        self.explore_rng = np.random.default_rng(derive_seed(config.seed, EXPLORATION))
        self.step = self.updates = self.episode = 0
        self.evaluated = self.reported = 0  # the steps of the last evaluation and report
        self.minutes = self.cpu_minutes = 0.0
        self.metrics: Metrics = {}  # of the last update
        self.obs: np.ndarray | None = None  # None: the next step starts an episode
        self.reward, self.ret, self.is_first = 0.0, 0.0, True
        self.episode_actions: list[np.ndarray] = []
        self.state: State | None = None
        self.chosen: tuple[np.ndarray, State] | None = None  # the action to take next
        self.held_action, self.held_steps = np.zeros(self.env.action_size, np.float32), 0
        self.prefill = min(config.prefill, config.steps // 2)
        self.log: Log | None = None

    # ------------------------------------------------------------ act

    def start_episode(self) -> None:
        self.obs = self.env.reset(derive_seed(self.config.seed, EPISODES, self.episode))
        self.reward, self.ret, self.is_first = 0.0, 0.0, True
        self.episode_actions = []

    def env_step(self) -> None:
        """Choose an action, take it, add the row, keep what comes back.

        If the environment fails, all that a checkpoint holds is as before: a resumed run takes the
        action again.
        """
        if self.obs is None:
            self.start_episode()
        if self.chosen is None:
            self.chosen = self.choose()
        action, state = self.chosen
        obs, reward, terminated, truncated = self.env.step(action)

        self.replay.add(self.obs, action, self.reward, self.is_first, False, False)
        self.chosen, self.state = None, state
        self.obs, self.reward, self.is_first = obs, reward, False
        self.episode_actions.append(action)
        self.ret += reward
        self.step += self.config.action_repeat
        if terminated or truncated:
            length = self.env.episode_steps
            self.log.write("episode", self.step, **{"return": self.ret, "length": length})
            self.end_episode(terminated)

    def choose(self) -> tuple[np.ndarray, State]:
        """The action (A,) for the present observation, and the filter's state with it."""
        action, state = self.agent.act(self.obs[None], np.array([self.is_first]), self.state)
        action = action[0]
        if self.explores():
            action = self.explore()
            state = state._replace(action=torch.from_numpy(action)[None].to(self.agent.device))
        return (action if self.env.discrete else np.clip(action, -1, 1)), state

    def end_episode(self, terminated: bool) -> None:
        """Add the final observation's row; the next one starts another episode, nothing held."""
        nothing = np.zeros(self.env.action_size, np.float32)
        self.replay.add(self.obs, nothing, self.reward, False, True, terminated)
        self.episode += 1
        self.held_steps = 0
        self.obs, self.episode_actions = None, []

    def explores(self) -> bool:
        """Whether this row's action is random: all are in the prefill, a share `explore` of them
        later on, less what an episode's end cuts off. Then the policy goes on from wherever such a
        push has led, and the data shows what lies beside its path, and what it has given up trying
        (temporally extended ε-greedy; Dabney et al., arXiv 2006.01782).
        """
        c = self.config
        if self.held_steps or self.step < self.prefill:
            return True
        longest = c.explore_hold
        # L - ln(L!) / ln(L + 1): the mean of a log-uniform hold, as `explore` draws it
        mean_hold = longest - math.lgamma(longest + 1) / math.log(longest + 1)
        start = c.explore / (c.explore + (1 - c.explore) * mean_hold)
        return bool(self.explore_rng.random() < start)

    def explore(self) -> np.ndarray:
        """A random action, held for 1 to PREFILL_HOLD or later `explore_hold` rows, log-uniformly:
        such pushes reach far more of a world than trembling does."""
        if self.held_steps == 0:
            self.held_action = self.env.random_action(self.explore_rng)
            longest = PREFILL_HOLD if self.step < self.prefill else self.config.explore_hold
            self.held_steps = int((longest + 1) ** self.explore_rng.random())
        self.held_steps -= 1
        return self.held_action

    # ------------------------------------------------------------ learn

    def updates_due(self) -> int:
        c = self.config
        if self.step < self.prefill or len(self.replay) < c.seq_len:
            return self.updates
        return c.updates_after(self.step)

    def warn_of_faint_observations(self) -> None:
        """Numbers that `ObsNorm` cannot make large enough to be noticed."""
        obs = symlog(torch.from_numpy(self.replay.rows["obs"][: len(self.replay)]).double())
        spread, moves = obs.std(0), obs.amax(0) > obs.amin(0)
        faint = moves & (spread < self.agent.encoder.norm.min_std / 3)
        if faint.any():
            warnings.warn(
                f"{self.env.name}: numbers {faint.nonzero().flatten().tolist()} of the observation "
                "hardly vary for their size, so that the agent hardly sees them; if they matter, "
                "subtract what they have in common and divide by their spread",
                stacklevel=2,
            )

    def learn(self) -> None:
        c = self.config
        if self.updates == 0:
            self.warn_of_faint_observations()
        batch = self.replay.sample(c.batch_size, c.seq_len, self.replay_rng, c.recency)
        self.metrics = metrics = self.agent.update(batch)
        self.updates += 1
        check = sum(metrics[k] for k in metrics if k == "loss" or k.endswith("grad_norm"))
        if not torch.isfinite(check):
            bad = [name for name, value in metrics.items() if not torch.isfinite(value)]
            raise FloatingPointError(
                f"{self.env.name}: update {self.updates} at step {self.step} gave non-finite "
                f"{', '.join(bad)}; the last checkpoint in {self.run_dir}, if there is one, is "
                "from before"
            )

    # ------------------------------------------------------------ report

    def report_due(self) -> bool:
        """REPORTS times in a run, evenly spread, once there are updates."""
        c = self.config
        due = self.step * REPORTS // c.steps > self.reported * REPORTS // c.steps
        return bool(self.metrics) and due

    def report(self) -> dict[str, float]:
        """Log the metrics of the last update, and return them."""
        values = {name: value.item() for name, value in self.metrics.items()}
        self.log.write("report", self.step, update=self.updates, **values)
        self.reported = self.step
        return values

    def evaluation_due(self) -> bool:
        """`evals` times in a run, evenly spread and at its end, once there are updates."""
        c = self.config
        due = self.step * c.evals // c.steps > self.evaluated * c.evals // c.steps
        return bool(self.updates) and due

    def evaluate(self) -> dict[str, float]:
        """Log a greedy evaluation and how good dreams and values are; return the numbers."""
        seed = derive_seed(self.config.seed, EVALUATION, self.step)
        episodes = self.config.eval_episodes
        returns, values = evaluate(self.agent, self.env_spec, episodes, seed, details=True)
        values = {
            "return": float(returns.mean()),
            **values,
            **open_loop_error(self.agent, self.replay, seed),
        }
        details = {"returns": returns.tolist(), "minutes": round(self.minutes, 3)}
        self.log.write("eval", self.step, **values, **details)
        self.evaluated = self.step
        return values

    # ------------------------------------------------------------ save and restore

    @property
    def checkpoint(self) -> Path:
        return self.run_dir / "checkpoint.pt"

    def save(self) -> None:
        """Everything that the rest of the run depends on, in one file. Raises OSError naming what
        could not be written; the checkpoint before it is kept then."""
        log_size = self.log.flush()  # first: a checkpoint never knows more rows than the log
        value = {
            **agent_part(self.agent),
            "env": self.env.name,
            "device": self.agent.device.type,
            "optimizer": self.agent.optimizer.state_dict(),
            "schedule": self.agent.schedule.state_dict(),
            "agent_rng": self.agent.rng.get_state(),
            "replay": self.replay.state_dict(),
            "replay_rng": self.replay_rng.bit_generator.state,
            "explore_rng": self.explore_rng.bit_generator.state,
            "held": [torch.from_numpy(self.held_action), self.held_steps],
            "counters": [self.step, self.updates, self.episode, self.evaluated, self.reported],
            "minutes": [self.minutes, self.cpu_minutes],
            "metrics": self.metrics,
            "obs": None if self.obs is None else torch.from_numpy(self.obs),
            "last": [self.reward, self.ret, self.is_first],
            "episode_actions": torch.tensor(np.array(self.episode_actions, np.float32)),
            "state": self.state and tensors(self.state),
            "chosen": self.chosen and [torch.from_numpy(self.chosen[0]), tensors(self.chosen[1])],
            "log_size": log_size,
        }
        save_checkpoint(self.checkpoint, value)

    def try_save(self) -> None:
        """`save`, but a full disk is no reason to stop: it may have room again by the next time."""
        try:
            self.save()
        except OSError as error:
            warnings.warn(
                f"no checkpoint of step {self.step}, as {error.filename} was "
                f"{error.strerror}; the last one is kept and training goes on",
                stacklevel=2,
            )

    def load(self) -> dict[str, Any]:
        """The checkpoint, if this run can go on from it; raises CheckpointError if not.

        It must be of the same environment, device and config; only `steps` may be another. Of an
        environment only name and sizes can be compared.
        """
        path, c = self.checkpoint, self.config
        saved = load_checkpoint(path)
        if "replay" not in saved:
            raise CheckpointError(f"{path} holds no training state: train anew, without resume")
        sizes = [self.env.obs_size, self.env.action_size, self.env.discrete]
        if saved["env"] != self.env.name or saved["sizes"] != sizes:
            raise CheckpointError(
                f"{path} is of {saved['env']} with sizes {saved['sizes']}, not of {self.env.name} "
                f"with {sizes}: resume with that environment, or choose another folder"
            )
        if saved["device"] != self.agent.device.type:
            raise CheckpointError(
                f"{path} was made on {saved['device']}, not on {self.agent.device.type}: resume "
                "on the same kind of device, or choose another folder"
            )
        then, now = saved["config"], dataclasses.asdict(c)
        others = [k for k in then | now if k != "steps" and then.get(k) != now.get(k)]
        if others:
            values = ", ".join(f"{k}={then.get(k)} instead of {now.get(k)}" for k in others)
            raise CheckpointError(
                f"{path} is of another config, with {values}: resume with that config, choose "
                "another folder, or start anew without resume"
            )
        if saved["counters"][0] > c.steps:
            raise CheckpointError(
                f"{path} is of step {saved['counters'][0]}, beyond Config.steps={c.steps}: resume "
                "with more steps"
            )
        return saved

    def restore(self) -> None:
        """Go on from the checkpoint. Raises CheckpointError if that cannot be.

        The environment is brought back to its state by taking the current episode's actions again
        from its reset.
        """
        saved = self.load()
        self.log = Log(self.run_dir / "log.jsonl", saved["log_size"])
        agent, device = self.agent, self.agent.device
        agent.load_state_dict(saved["agent"])
        agent.optimizer.load_state_dict(saved["optimizer"])
        agent.schedule.load_state_dict(saved["schedule"])
        agent.rng.set_state(saved["agent_rng"])
        self.replay.load_state_dict(saved["replay"])
        self.replay_rng.bit_generator.state = saved["replay_rng"]
        self.explore_rng.bit_generator.state = saved["explore_rng"]
        held_action, self.held_steps = saved["held"]
        self.held_action = held_action.numpy()
        counters = saved["counters"]
        self.step, self.updates, self.episode, self.evaluated, self.reported = counters
        self.minutes, self.cpu_minutes = saved["minutes"]
        self.metrics = {name: value.to(device) for name, value in saved["metrics"].items()}
        self.state = saved["state"] and State(*(x.to(device) for x in saved["state"]))
        if saved["chosen"]:
            action, state = saved["chosen"]
            self.chosen = action.numpy(), State(*(x.to(device) for x in state))

        actions, obs = saved["episode_actions"].numpy(), saved["obs"]
        self.env.steps = self.step - len(actions) * self.config.action_repeat
        if obs is None:
            return
        repeats = self.repeat(actions, obs.numpy(), saved["last"][0])
        self.reward, self.ret, self.is_first = saved["last"]
        if not repeats:
            warnings.warn(
                f"{self.env.name} does not repeat itself when seeded: the interrupted episode is "
                "dropped, and this run will differ from an uninterrupted one",
                stacklevel=3,
            )
            self.env.steps, self.chosen = self.step, None
            self.obs = obs.numpy()
            if len(actions):  # what was lived through ends as by a time limit
                self.end_episode(terminated=False)
            self.obs = None

    def repeat(self, actions: np.ndarray, obs: np.ndarray, reward: float) -> bool:
        """Take the current episode's actions again; whether that leads to `obs` and `reward`."""
        self.start_episode()
        for action in actions:
            self.obs, self.reward, terminated, truncated = self.env.step(action)
            self.episode_actions.append(action)
            if terminated or truncated:
                return False
        return np.array_equal(self.obs, obs) and self.reward == reward

    def close(self) -> None:
        self.log.close()
        self.env.close()


def tensors(state: State) -> list[torch.Tensor]:
    """Plain tensors, free of inference mode, of the filter's state."""
    return [x.clone() for x in state]


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
    bounded one-dimensional `Box` actions. run_dir: where log and checkpoint go (nowhere if None).
    resume: go on from run_dir's checkpoint if there is one (without it, the files of an earlier
    run are kept as `previous-...`); only `steps` may differ from its
    config (rows of the log are then spaced as the new number asks). Ctrl-C saves a checkpoint.

    Raises ValueError for what is not supported, CheckpointError for a checkpoint that cannot be
    used, EnvFault when the environment fails (the last good state is saved first),
    FloatingPointError when a loss is not finite, and OSError when the files of the start or the
    last checkpoint cannot be written; a checkpoint in between that cannot be is a warning.
    """
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("--tensorboard needs `pip install tensorboard`")
    config = Config() if config is None else config
    if run_dir is None:
        with tempfile.TemporaryDirectory() as temporary:
            return train(env, config, temporary, False, device, progress, tensorboard)
    run_dir = Path(run_dir)
    torch_device = pick_device(device)
    if torch_device.type == "cpu":
        tune_cpu()

    trainer = Trainer(env, config, run_dir, torch_device)
    if resume and trainer.checkpoint.exists():
        trainer.restore()
    else:
        for path in (trainer.checkpoint, run_dir / "log.jsonl"):
            if path.exists():  # an earlier run's, perhaps a long one's
                os.replace(path, path.with_name(f"previous-{path.name}"))
        trainer.log = Log(run_dir / "log.jsonl")
    config = trainer.config
    write_json(run_dir / "config.json", {"env": trainer.env.name, **dataclasses.asdict(config)})
    try:
        run_loop(trainer, progress, tensorboard)
    except EnvFault as fault:
        trainer.try_save()
        raise EnvFault(
            f"{fault}. The run up to step {trainer.step} is in {run_dir}: resume it when the "
            "environment is mended"
        ) from fault
    finally:
        trainer.close()

    log_path = run_dir / "log.jsonl"
    rows = (read_log(log_path, kind) for kind in ("episode", "report", "eval"))
    return Run(trainer.agent, *rows, trainer.minutes, trainer.cpu_minutes)


def run_loop(trainer: Trainer, progress: bool, tensorboard: bool) -> None:
    """Act, learn, report, until all steps are done.

    One thing at a time: between any two of them the run can be saved, and goes on from there.
    """
    config = trainer.config
    bar = tqdm(total=config.steps, initial=trainer.step, disable=not progress, unit="step")
    board = open_tensorboard(trainer.run_dir, trainer.step) if tensorboard else None
    evals = read_log(trainer.run_dir / "log.jsonl", "eval")
    ret = f"{evals[-1]['return']:.1f}" if evals else "not known yet"
    saved = time.monotonic()
    began = saved - 60 * trainer.minutes, time.process_time() - 60 * trainer.cpu_minutes
    with bar, board or contextlib.nullcontext(), interrupts() as interrupted:
        while True:
            scalars: dict[str, float] = {}
            if trainer.updates < trainer.updates_due():
                trainer.learn()
            elif trainer.report_due():
                scalars = trainer.report()
                speed = trainer.updates / max(trainer.minutes * 60, 1e-9)
                bar.set_postfix_str(
                    f"return {ret}, loss {scalars['loss']:.2f}, "
                    f"entropy {scalars['entropy']:.2f}, {speed:.1f} updates/s"
                )
            elif trainer.evaluation_due():
                scalars = trainer.evaluate()
                ret = f"{scalars['return']:.1f}"
            elif trainer.step < config.steps:
                trainer.env_step()
                bar.update(trainer.step - bar.n)
            else:
                break

            trainer.minutes = (time.monotonic() - began[0]) / 60
            trainer.cpu_minutes = (time.process_time() - began[1]) / 60
            if board:
                for name, value in scalars.items():
                    board.add_scalar(name, value, trainer.step)
            if interrupted():
                trainer.save()
                raise KeyboardInterrupt
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                trainer.try_save()
                saved = time.monotonic()
    trainer.save()


class interrupts:
    """Turns the first Ctrl-C into a flag that is asked between steps; a second one interrupts."""

    def __enter__(self) -> Callable[[], bool]:
        self.hit = False
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.previous = signal.signal(signal.SIGINT, self.handle)
        return lambda: self.hit

    def handle(self, *_: Any) -> None:
        self.hit = True
        signal.signal(signal.SIGINT, self.previous)

    def __exit__(self, *_: Any) -> None:
        if self.main:
            signal.signal(signal.SIGINT, self.previous)


def open_tensorboard(run_dir: Path, step: int):
    """A SummaryWriter that goes on at `step`."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run_dir / "tensorboard", purge_step=step + 1)
