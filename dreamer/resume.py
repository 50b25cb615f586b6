"""Save a run, go on from where it was saved, and load a trained agent.

A run that was stopped and resumed goes on, number for number, as if it had never been stopped.
(How the files are written: checkpoint.py.)
"""

import dataclasses
import os
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamer.agent import DreamerAgent
from dreamer.checkpoint import (
    CheckpointError,
    Lock,
    Log,
    load_checkpoint,
    read_log,
    save_checkpoint,
    write_json,
)
from dreamer.config import Config
from dreamer.envs import EnvSpec
from dreamer.rssm import State
from dreamer.run import Run, pick_device

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"  # their names in a run's folder


# ---------------------------------------------------------------- agents


def save_agent(agent: DreamerAgent, path: Path | str, env: str = "") -> None:
    """The agent's weights alone, enough to act (`load_agent`). env: the id of its environment, for
    `python -m dreamer watch`."""
    save_checkpoint(path, {**agent_part(agent), "env": env})


def agent_env(path: Path | str) -> str:
    """Id of the environment that an agent was trained on. Raises ValueError where it is unknown."""
    env = load_checkpoint(path).get("env")
    if not env:
        raise ValueError(f"{path} does not say what environment it is for: name it with --env")
    return env


def agent_part(agent: DreamerAgent) -> dict[str, Any]:
    """What a checkpoint says of the agent itself."""
    return {
        "sizes": [agent.obs_size, agent.action_size, list(agent.segments)],
        "config": dataclasses.asdict(agent.config),
        "agent": agent.state_dict(),
    }


def load_agent(path: Path | str, device: str = "auto") -> DreamerAgent:
    """An agent to act with, from `save_agent`'s file or from a checkpoint of `train`.

    Raises CheckpointError when the file is damaged or does not fit this program.
    """
    saved, torch_device = load_checkpoint(path), pick_device(device)
    try:
        obs_size, action_size, segments = saved["sizes"]
        config = Config(**saved["config"])
        agent = DreamerAgent(obs_size, action_size, segments, config, torch_device)
        agent.load_state_dict(saved["agent"])
    except Exception as error:  # whatever the modules make of contents that do not fit them
        reason = textwrap.shorten(str(error), 200)
        raise CheckpointError(
            f"{path} does not hold an agent that this program can build ({reason}): use the "
            "version of the program that wrote it, or train anew"
        ) from error
    return agent


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
    without a checkpoint leaves those of the run before it in their place."""
    if not (folder / CHECKPOINT).exists():
        return
    for name in (CHECKPOINT, LOG):
        if (folder / name).exists():
            os.replace(folder / name, folder / f"previous-{name}")


# ---------------------------------------------------------------- save


def save(run: Run) -> None:
    """Everything that the rest of the run depends on, in one file. Raises OSError naming what
    could not be written; the checkpoint before it is kept then."""
    log_size = run.log.flush()  # first: a checkpoint never knows more rows than the log
    value = {
        **agent_part(run.agent),
        "env": run.env.name,
        "device": run.agent.device.type,
        "optimizer": run.agent.optimizer.state_dict(),
        "schedule": run.agent.schedule.state_dict(),
        "agent_rng": run.agent.rng.get_state(),
        "replay": run.replay.state_dict(),
        "replay_rng": run.replay_rng.bit_generator.state,
        "explore_rng": run.explore_rng.bit_generator.state,
        "held": [torch.from_numpy(run.held_action), run.held_steps],
        "counters": [run.step, run.updates, run.episode, run.evaluated, run.reported],
        "eval_steps": run.eval_steps,
        "minutes": [run.minutes, run.cpu_minutes],
        "metrics": run.metrics,
        "obs": None if run.obs is None else torch.from_numpy(run.obs),
        "last": [run.reward, run.ret, run.is_first],
        "episode_actions": torch.from_numpy(np.array(run.episode_actions)),
        "state": run.state and tensors(run.state),
        "chosen": run.chosen and [torch.from_numpy(run.chosen[0]), tensors(run.chosen[1])],
        "log_size": log_size,
    }
    save_checkpoint(run.run_dir / CHECKPOINT, value)


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
    saved = load_checkpoint(path)
    if "replay" not in saved:
        raise CheckpointError(f"{path} holds no training state: train anew, without resume")
    sizes = [run.env.obs_size, run.env.action_size, list(run.env.segments)]
    then, now = saved["config"], dataclasses.asdict(run.config)
    others = [k for k in then | now if k != "steps" and then.get(k) != now.get(k)]
    values = ", ".join(f"{k}={then.get(k)} instead of {now.get(k)}" for k in others)
    elsewhere = "or choose another folder"
    reason = None
    if saved["env"] != run.env.name or saved["sizes"] != sizes:
        reason = (
            f"is of {saved['env']} with sizes {saved['sizes']}, not of {run.env.name} with "
            f"{sizes}: resume with that environment, {elsewhere}"
        )
    elif saved["device"] != device:
        reason = f"was made on {saved['device']}, not on {device}: resume there, {elsewhere}"
    elif others:
        reason = f"is of another config, with {values}: resume with that config, {elsewhere}"
    elif (step := saved["counters"][0]) > steps:
        reason = f"is of step {step}, beyond Config.steps={steps}: resume with more steps"
    if reason:
        raise CheckpointError(f"{path} {reason}")
    return saved


def restore(run: Run) -> None:
    """Bring a new run to where its checkpoint was made. Raises CheckpointError if that cannot be.

    The environment is brought back to its state by taking the present episode's actions again
    from its reset.
    """
    saved = load(run)
    run.log = Log(run.run_dir / LOG, saved["log_size"])
    agent, device = run.agent, run.agent.device
    agent.load_state_dict(saved["agent"])
    agent.optimizer.load_state_dict(saved["optimizer"])
    agent.schedule.load_state_dict(saved["schedule"])
    agent.rng.set_state(saved["agent_rng"])
    run.replay.load_state_dict(saved["replay"])
    run.replay_rng.bit_generator.state = saved["replay_rng"]
    run.explore_rng.bit_generator.state = saved["explore_rng"]
    held_action, run.held_steps = saved["held"]
    run.held_action = held_action.numpy()
    run.step, run.updates, run.episode, run.evaluated, run.reported = saved["counters"]
    run.eval_steps = saved["eval_steps"]
    run.evals = read_log(run.run_dir / LOG, "eval")
    run.minutes, run.cpu_minutes = saved["minutes"]
    run.metrics = {name: value.to(device) for name, value in saved["metrics"].items()}
    run.state = saved["state"] and State(*(x.to(device) for x in saved["state"]))
    if saved["chosen"]:
        action, state = saved["chosen"]
        run.chosen = action.numpy(), State(*(x.to(device) for x in state))

    actions, obs = saved["episode_actions"].numpy(), saved["obs"]
    run.env.steps = run.step - len(actions) * run.config.action_repeat
    if obs is None:
        return
    repeats = repeat(run, actions, obs.numpy(), saved["last"][0])
    run.reward, run.ret, run.is_first = saved["last"]
    if not repeats:
        warnings.warn(
            f"{run.env.name} does not repeat itself when seeded: the interrupted episode is "
            "dropped, and this run will differ from an uninterrupted one",
            stacklevel=3,
        )
        run.env.steps, run.chosen = run.step, None
        run.obs = obs.numpy()
        if len(actions):  # what was lived through ends as by a time limit
            run.end_episode(terminated=False)
        run.obs = None


def repeat(run: Run, actions: np.ndarray, obs: np.ndarray, reward: float) -> bool:
    """Take the present episode's actions again; whether that leads to `obs` and `reward`."""
    run.start_episode()
    for kept in actions:
        action = run.replay.one_hot(kept) if len(run.replay.offsets) else kept
        run.obs, run.reward, terminated, truncated = run.env.step(action)
        run.episode_actions.append(kept)
        if terminated or truncated:
            return False
    return np.array_equal(run.obs, obs) and run.reward == reward
