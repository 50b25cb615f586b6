"""Save a run, and go on from where it was saved.

A run that was stopped and resumed goes on, number for number, as if it had never been stopped.
(How the files are written: checkpoint.py.)
"""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dreamer.agent import rate_factor
from dreamer.checkpoint import (
    CheckpointError,
    Log,
    agent_part,
    fitting,
    load_checkpoint,
    read_log,
    save_checkpoint,
)
from dreamer.rssm import State

if TYPE_CHECKING:
    from dreamer.run import Run

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"  # their names in a run's folder
NUMBERS = "step updates evaluated reported summed minutes cpu_minutes".split()  # of a run


def save(run: "Run") -> None:
    """Write everything that the rest of the run depends on into one file. Raises OSError naming
    what could not be written; the checkpoint before it is kept then."""
    size = run.log.flush()  # first: a checkpoint never knows more rows than the log
    save_checkpoint(
        run.run_dir / CHECKPOINT,
        {
            **agent_part(run.agent),
            "env": run.name,
            "device": run.agent.device.type,
            "log_size": size,
            "numbers": {name: getattr(run, name) for name in NUMBERS},
            "metrics": run.metrics,
            "optimizer": run.agent.optimizer.state_dict()["state"],
            "agent_rng": run.agent.rng.get_state(),
            "holds": [
                [hold.rng.bit_generator.state, torch.from_numpy(hold.action), hold.left]
                for hold in run.holds
            ],
            "replay": run.replay.state_dict(),
            "replay_rng": run.replay_rng.bit_generator.state,
            "episode": run.episode.tolist(),
            "actions": [torch.from_numpy(np.array(taken)) for taken in run.actions],
            "now": [torch.from_numpy(x) for x in (run.obs, run.reward, run.is_first)],
            "state": run.state and [x.clone() for x in run.state],
        },
    )


def try_save(run: "Run") -> None:
    """`save`, but a full disk is no reason to stop: it may have room again by the next time."""
    try:
        save(run)
    except OSError as error:
        warnings.warn(
            f"no checkpoint of step {run.step}, as {error.filename} was "
            f"{error.strerror}; the last one is kept and training goes on",
            stacklevel=2,
        )


def restore(run: "Run") -> None:
    """Bring a new run to where its checkpoint was made. Raises CheckpointError if that cannot be,
    and has touched no file then.

    Each environment is brought back to its state by taking the present episode's actions again
    from its reset.
    """
    path = run.run_dir / CHECKPOINT
    saved = load_checkpoint(path)
    with fitting(path):
        check_same_run(run, saved)
        restore_numbers(run, saved)
        run.log = Log(run.run_dir / LOG, saved["log_size"])
        restore_episodes(run, saved)


def check_same_run(run: "Run", saved: dict[str, Any]) -> None:
    """Raises CheckpointError for a checkpoint of another environment, device or config; only
    `steps` may be another."""
    path, elsewhere = run.run_dir / CHECKPOINT, "resume what it is of, or choose another folder"
    if "replay" not in saved:
        raise CheckpointError(f"{path} holds no training state: train again, without resume")
    now = {"env": run.name, "device": run.agent.device.type, **agent_part(run.agent)}
    now, then = now | now.pop("config"), saved | saved["config"]
    for key, value in now.items():
        if key not in ("steps", "agent") and then[key] != value:
            raise CheckpointError(f"{path} is of {key}={then[key]}, not {value}: {elsewhere}")
    if (step := saved["numbers"]["step"]) >= run.config.steps + run.stride:
        raise CheckpointError(f"{path} is of step {step}, beyond {run.config.steps}: {elsewhere}")


def restore_numbers(run: "Run", saved: dict[str, Any]) -> None:
    """Everything except the environments' state and the log."""
    agent, device = run.agent, run.agent.device
    for name, value in saved["numbers"].items():
        setattr(run, name, value)
    run.metrics = {name: value.to(device) for name, value in saved["metrics"].items()}
    agent.load_state_dict(saved["agent"])
    groups = agent.optimizer.state_dict()["param_groups"]
    agent.optimizer.load_state_dict({"state": saved["optimizer"], "param_groups": groups})
    agent.schedule.last_epoch = run.updates
    for group in agent.optimizer.param_groups:  # as the schedule sets them
        group["lr"] = group["initial_lr"] * rate_factor(run.config, run.updates)
    agent.rng.set_state(saved["agent_rng"])
    run.replay.load_state_dict(saved["replay"])
    run.replay_rng.bit_generator.state = saved["replay_rng"]
    for hold, (rng, action, left) in zip(run.holds, saved["holds"], strict=True):
        hold.rng.bit_generator.state, hold.action, hold.left = rng, action.numpy(), left
    run.state = saved["state"] and State(*(x.to(device) for x in saved["state"]))


def restore_episodes(run: "Run", saved: dict[str, Any]) -> None:
    """Take the present episodes' actions again. An episode that does not repeat itself ends there,
    as by a time limit, and another one begins."""
    run.evals = read_log(run.run_dir / LOG, "eval")
    run.episode[:] = saved["episode"]
    run.actions = [list(taken.numpy()) for taken in saved["actions"]]
    histories = dict(zip(run.seeds(), run.actions, strict=True))
    obs, info = run.envs.reset(seed=run.seeds(), options={"actions": histories})
    run.obs, run.reward, run.is_first = (x.numpy() for x in saved["now"])
    run.obs[run.is_first] = obs[run.is_first]  # nothing was done there yet
    same = (obs == run.obs).all(1) & (info["reward"] == run.reward)
    if not same.all():
        warnings.warn(
            f"{run.name} does not repeat itself when seeded: the interrupted episode is dropped, "
            "and this run will differ from an uninterrupted one",
            stacklevel=4,
        )
        run.end_episodes(~same, np.zeros_like(same))
        run.begin_episodes(~same)
