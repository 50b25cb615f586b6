"""Save a run, go on from where it was saved, and load a trained agent.

A run that was stopped and resumed goes on, number for number, as if it had never been stopped.
(How the files are written: checkpoint.py.)
"""

import contextlib
import dataclasses
import math
import os
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamer.agent import DreamerAgent, rate_factor
from dreamer.checkpoint import (
    CheckpointError,
    Lock,
    Log,
    check,
    load_checkpoint,
    read_log,
    save_checkpoint,
    write_json,
)
from dreamer.config import Config
from dreamer.envs import EnvSpec
from dreamer.rssm import State
from dreamer.run import PREFILL_HOLD, Run, pick_device

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"  # their names in a run's folder
CONTINUABLE = "a run that this program can go on with"


# ---------------------------------------------------------------- agents


def save_agent(agent: DreamerAgent, path: Path | str, env: str = "") -> None:
    """The agent's weights alone, enough to act (`load_agent`). env: the id of its environment, for
    `python -m dreamer watch`."""
    save_checkpoint(path, {**agent_part(agent), "env": env})


def agent_env(path: Path | str) -> str:
    """Id of the environment that an agent was trained on. Raises ValueError where it is unknown."""
    env = load_checkpoint(path).get("env")
    if not (env and isinstance(env, str)):
        raise ValueError(f"{path} does not say what environment it is for: name it with --env")
    return env


def agent_part(agent: DreamerAgent) -> dict[str, Any]:
    """What a checkpoint says of the agent itself."""
    return {
        "sizes": [agent.obs_size, agent.action_size, list(agent.segments)],
        "obs_parts": list(agent.obs_parts),
        "masked": agent.masked,
        "images": [list(shape) for shape in agent.images],
        "config": dataclasses.asdict(agent.config),
        "agent": agent.state_dict(),
    }


def load_agent(path: Path | str, device: str = "auto") -> DreamerAgent:
    """An agent to act with, from `save_agent`'s file or from a checkpoint of `train`.

    Raises CheckpointError when the file is damaged or does not fit this program.
    """
    path = Path(path).expanduser()
    saved, torch_device = load_checkpoint(path), pick_device(device)
    length = path.stat().st_size
    with refusing(path, "an agent that this program can build"):
        parts = read_parts(saved, length)
        with torch.device("meta"):
            like = dict(Blueprint(**parts).state_dict())
        if sum(x.nbytes for x in like.values()) > 2 * length:  # two modules may share numbers
            raise ValueError("its sizes ask for more numbers than it holds")
        check(saved["agent"], like, "agent")
        agent = DreamerAgent(**parts, device=torch_device)
        agent.load_state_dict(saved["agent"])
    return agent


class Blueprint(DreamerAgent):
    """Shapes alone, built under `torch.device("meta")`: they take no memory, whatever the sizes."""

    def to(self, *args: Any, **kwargs: Any) -> "Blueprint":
        return self  # no numbers go to any device


def read_parts(saved: dict[str, Any], length: int) -> dict[str, Any]:
    """What `DreamerAgent` is built of, from a file of so many bytes: each number of an observation
    or action has its weights there. Raises ValueError for what no agent has."""
    obs_size, action_size, segments = saved["sizes"]
    obs_parts, masked, images = saved["obs_parts"], saved["masked"], saved["images"]
    if any(len(shape) != 3 for shape in images):
        raise ValueError("an image has three sizes")
    numbers = obs_size - sum(map(math.prod, images))  # of an observation, before its pixels
    sides = [n for shape in images for n in shape]
    for sizes, least in ([action_size, *segments, *sides], 1), ([numbers, *obs_parts], 0):
        if any(type(n) is not int or not least <= n <= length for n in sizes):
            raise ValueError("sizes are not whole numbers that the file has room for")
    sums = sum(segments), sum(max(n, 1) for n in obs_parts)
    if sums[0] not in (0, action_size) or sums[1] not in (0, numbers) or not (numbers or images):
        raise ValueError("sizes do not add up")
    if type(masked) is not bool or masked and not (segments and action_size <= numbers):
        raise ValueError("there is no room for a mask")
    if any(type(value) not in (int, float, str) for value in saved["config"].values()):
        raise ValueError("config holds something else than numbers and names")
    return {
        "obs_size": obs_size,
        "action_size": action_size,
        "discrete": list(segments),
        "config": Config(**saved["config"]),
        "obs_parts": list(obs_parts),
        "masked": masked,
        "images": [tuple(shape) for shape in images],
    }


@contextlib.contextmanager
def refusing(path: Path, what: str) -> Iterator[None]:
    """Whatever fails in this block does so because of what the file at `path` says."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = textwrap.shorten(str(error), 200)
        raise CheckpointError(
            f"{path} does not hold {what} ({reason}): use the version of the program that wrote "
            "it, or train again"
        ) from error


# ---------------------------------------------------------------- begin or go on


def start(
    env: EnvSpec, config: Config, run_dir: Path | str, resume: bool = False, device: str = "auto"
) -> Run:
    """A new run, or with `resume` the one whose checkpoint is in run_dir, if there is one.

    Without `resume` the files of an earlier run are kept as `previous-...`. Raises ValueError for
    an environment that is not supported and CheckpointError for a checkpoint that does not fit.
    """
    if not isinstance(config, Config):
        raise ValueError(f"config must be a Config, got {config!r}: Config(steps=...)")
    folder = Path(run_dir).expanduser().absolute()
    lock = Lock(folder)
    try:
        run = Run(env, config, folder, pick_device(device))
    except BaseException:
        lock.release()
        raise
    run.lock = lock
    try:
        if resume and (folder / CHECKPOINT).exists():
            restore(run)
        else:
            keep_previous(folder)
            run.log = Log(folder / LOG)
        (folder / "result.json").unlink(missing_ok=True)  # the mark of a complete run
        write_json(folder / "config.json", {"env": run.env.name, **dataclasses.asdict(config)})
    except BaseException:
        run.close()
        raise
    return run


def keep_previous(folder: Path) -> None:
    """An earlier run's checkpoint and log, perhaps a long one's, are kept together. A folder
    without a checkpoint leaves those of the run before it in their place.

    The log goes first: after a kill between the two the next start completes the pair. If they are
    named back before that, the log's checksum in the checkpoint tells whether they belong together.
    """
    if not (folder / CHECKPOINT).exists():
        return
    for name in (LOG, CHECKPOINT):
        if (folder / name).exists():
            os.replace(folder / name, folder / f"previous-{name}")


# ---------------------------------------------------------------- save


def save(run: Run) -> None:
    """Everything that the rest of the run depends on, in one file. Raises OSError naming what
    could not be written; the checkpoint before it is kept then."""
    run.log.flush()  # first: a checkpoint never knows more rows than the log
    log = {"log_size": run.log.size, "log_sha256": run.log.digest.hexdigest()}
    save_checkpoint(run.run_dir / CHECKPOINT, {**agent_part(run.agent), **contents(run), **log})


def contents(run: Run) -> dict[str, Any]:
    """What a checkpoint says of the run besides its agent's weights and its log."""
    kept = run.replay.rows["action"]
    actions = np.array(run.episode_actions, kept.dtype).reshape(-1, *kept.shape[1:])
    return {
        "env": run.env.name,
        "device": run.agent.device.type,
        "optimizer": run.agent.optimizer.state_dict()["state"],
        "agent_rng": run.agent.rng.get_state(),
        "replay": run.replay.state_dict(),
        "replay_rng": run.replay_rng.bit_generator.state,
        "explore_rng": run.explore_rng.bit_generator.state,
        "held": [torch.from_numpy(run.held_action), run.held_steps],
        "counters": [run.step, run.updates, run.episode, run.evaluated, run.reported],
        "eval_steps": run.eval_steps,
        "longest": run.longest,
        "minutes": [run.minutes, run.cpu_minutes],
        "metrics": run.metrics,
        "summed": run.summed,
        "obs": None if run.obs is None else torch.from_numpy(run.obs),
        "last": [run.reward, run.ret, run.is_first],
        "episode_actions": torch.from_numpy(actions),
        "state": run.state and tensors(run.state),
        "chosen": run.chosen and [torch.from_numpy(run.chosen[0]), tensors(run.chosen[1])],
    }


def try_save(run: Run) -> None:
    """`save`, but a full disk is no reason to stop: it may have room again by the next time."""
    try:
        save(run)
    except OSError as error:
        warnings.warn(
            f"no checkpoint of step {run.step}, as {error.filename} was "
            f"{error.strerror}; the last one is kept and training goes on",
            stacklevel=2,
        )


def tensors(state: State) -> list[torch.Tensor]:
    """Plain tensors, free of inference mode, of the filter's state."""
    return [x.clone() for x in state]


# ---------------------------------------------------------------- restore


def load(run: Run) -> dict[str, Any]:
    """The run's checkpoint, if it can go on from it; raises CheckpointError if not.

    It must be of the same environment, device and config; only `steps` may be another. Of an
    environment only name and sizes can be compared.
    """
    path, steps, device = run.run_dir / CHECKPOINT, run.config.steps, run.agent.device.type
    saved, length = load_checkpoint(path), path.stat().st_size
    if "replay" not in saved:
        raise CheckpointError(f"{path} holds no training state: train again, without resume")
    with refusing(path, CONTINUABLE):
        check([saved["env"], saved["device"], saved["counters"][0]], ["", "", 0], "checkpoint")
        found, own = read_parts(saved, length), read_parts(agent_part(run.agent), length)
        then, now = (dataclasses.asdict(x.pop("config")) for x in (found, own))
        others = [k for k in then | now if k != "steps" and then.get(k) != now.get(k)]
        values = ", ".join(f"{k}={then.get(k)} instead of {now.get(k)}" for k in others)
        elsewhere = "or choose another folder"
        reason = None
        if saved["env"] != run.env.name or found != own:
            reason = (
                f"is of {saved['env']} with sizes {[*found.values()][:3]}, not of {run.env.name} "
                f"with {[*own.values()][:3]}: resume with that environment, {elsewhere}"
            )
        elif saved["device"] != device:
            reason = f"was made on {saved['device']}, not on {device}: resume there, {elsewhere}"
        elif others:
            reason = f"is of another config, with {values}: resume with that config, {elsewhere}"
        elif (step := saved["counters"][0]) > steps:
            reason = f"is of step {step}, beyond Config.steps={steps}: resume with more steps"
        if reason:
            raise CheckpointError(f"{path} {reason}")
        check(saved, example(run, saved), "checkpoint")
        check_values(run, saved)
    return saved


def example(run: Run, saved: dict[str, Any]) -> dict[str, Any]:
    """The form of a checkpoint of this run, for `check`: that of the new run itself, and of what it
    does not have yet."""
    c, begun, summed = run.config, bool(saved["counters"][1]), saved["summed"] > 0
    number, action = torch.empty(()), torch.empty(run.env.action_size)
    state = [torch.empty(1, c.deter), torch.empty(1, c.categoricals, c.classes), action[None]]
    weights = [p for group in run.agent.optimizer.param_groups for p in group["params"]]
    adam = [{"step": number, "exp_avg": p, "exp_avg_sq": p} for p in weights]
    return {
        "agent": dict(run.agent.state_dict()),
        **contents(run),
        "optimizer": dict(enumerate(adam)) if begun else {},
        "metrics": dict.fromkeys(["loss", "entropy", *saved["metrics"]] * summed, number),
        "obs": (None, torch.empty(run.env.obs_size)),
        "state": (None, state),
        "chosen": (None, [action, state]),
        "log_size": 0,
        "log_sha256": "",
    }


def check_values(run: Run, saved: dict[str, Any]) -> None:
    """Raises ValueError for well-formed values that no run can reach."""
    c, replay, actions = run.config, saved["replay"], saved["episode_actions"]
    step, updates, *others = saved["counters"]
    classes = [actions, replay["action"]] if run.env.segments else []
    number, moments = torch.tensor(run.env.segments), saved["optimizer"].values()
    rules = {
        "counters": step % c.action_repeat == 0 and max(others) <= step,
        "updates": saved["summed"] <= updates <= c.updates_after(c.warm_up + step),
        "minutes": min(saved["minutes"]) >= 0,
        "held": saved["held"][1] <= max(c.explore_hold, PREFILL_HOLD),
        "stoch": ((replay["stoch"] >= -1) & (replay["stoch"] < c.classes)).all(),
        "state": (saved["state"] is None) == (step == 0),
        "obs": saved["obs"] is not None or not len(actions),
        "episode_actions": len(actions) * c.action_repeat <= step,
        "classes": all(((x >= -1) & (x < number)).all() for x in classes),
        "optimizer": all(x["step"] >= 0 and (x["exp_avg_sq"] >= 0).all() for x in moments),
    }
    wrong = [name for name, right in rules.items() if not right]
    if wrong:
        raise ValueError(f"no run comes to such numbers: {', '.join(wrong)}")


def restore(run: Run) -> None:
    """Bring a new run to where its checkpoint was made. Raises CheckpointError if that cannot be,
    and has touched no file then.

    The environment is brought back to its state by taking the present episode's actions again
    from its reset.
    """
    saved = load(run)
    with refusing(run.run_dir / CHECKPOINT, CONTINUABLE):
        restore_numbers(run, saved)
        actions, obs = saved["episode_actions"].numpy(), saved["obs"]
        obs = None if obs is None else obs.numpy()
    run.log = Log(run.run_dir / LOG, saved["log_size"], saved["log_sha256"])
    run.evals = read_log(run.run_dir / LOG, "eval")
    run.env.steps = run.step - len(actions) * run.config.action_repeat
    if obs is None:
        return
    repeats = repeat(run, actions, obs, saved["last"][0])
    run.reward, run.ret, run.is_first = saved["last"]
    if not repeats:
        warnings.warn(
            f"{run.env.name} does not repeat itself when seeded: the interrupted episode is "
            "dropped, and this run will differ from an uninterrupted one",
            stacklevel=3,
        )
        run.env.steps, run.chosen = run.step, None
        run.obs = obs
        if len(actions):  # what was lived through ends as by a time limit
            run.end_episode(terminated=False)
        run.obs = None


def restore_numbers(run: Run, saved: dict[str, Any]) -> None:
    """All but the environment's state and the log."""
    agent, device = run.agent, run.agent.device
    run.step, run.updates, run.episode, run.evaluated, run.reported = saved["counters"]
    agent.load_state_dict(saved["agent"])
    groups = agent.optimizer.state_dict()["param_groups"]
    agent.optimizer.load_state_dict({"state": saved["optimizer"], "param_groups": groups})
    agent.schedule.last_epoch = run.updates
    for group in agent.optimizer.param_groups:  # as the schedule sets them
        group["lr"] = group["initial_lr"] * rate_factor(run.config, run.updates)
    agent.rng.set_state(saved["agent_rng"])
    run.replay.load_state_dict(saved["replay"])
    run.replay_rng.bit_generator.state = saved["replay_rng"]
    run.explore_rng.bit_generator.state = saved["explore_rng"]
    held_action, run.held_steps = saved["held"]
    run.held_action = held_action.numpy()
    run.eval_steps, run.longest = saved["eval_steps"], saved["longest"]
    run.minutes, run.cpu_minutes = saved["minutes"]
    run.metrics = {name: value.to(device) for name, value in saved["metrics"].items()}
    run.summed = saved["summed"]
    run.state = saved["state"] and State(*(x.to(device) for x in saved["state"]))
    if saved["chosen"]:
        action, state = saved["chosen"]
        run.chosen = action.numpy(), State(*(x.to(device) for x in state))


def repeat(run: Run, actions: np.ndarray, obs: np.ndarray, reward: float) -> bool:
    """Take the present episode's actions again; whether that leads to `obs` and `reward`."""
    run.start_episode()
    for kept in actions:
        run.obs, run.reward, terminated, truncated = run.env.step(run.replay.decode_action(kept))
        run.episode_actions.append(kept)
        if terminated or truncated:
            return False
    return np.array_equal(run.obs, obs) and run.reward == reward
