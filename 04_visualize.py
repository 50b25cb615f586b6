"""Inside a trained agent's head: where its states lie, and what it dreams.

For each task it looks into the agent of your own run, runs/<script>/seed<k>/agent.pt, or else into
the one that comes with the repository (--shipped: into that one in any case), and draws

- 04_<task>_latents.png: a map of the world model's states in episodes of its own and of random
  actions, coloured by reward, by value and by a quantity that no loss ever names;
- 04_<task>_dreams.png: dreams against reality. After 5 observed steps the model dreams on with the
  prior alone, taking the actions that were really taken, far beyond the 15 steps of its training;
- 04_<task>.gif: such dreams and the real episode on one canvas, drawn by the environment itself.

Pictures and numbers go to runs/04_visualize/seed<k>. Of another agent, of whatever environment,
`python -m lab.visualize AGENT` draws the same.

    python 04_visualize.py
"""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import gymnasium as gym
import numpy as np

from dreamer import Config, load_agent
from dreamer.checkpoint import write_json
from dreamer.machine import pick_device, tune_cpu
from lab import cli, results
from lab.visualize import POINTS, Visualizer

CONFIG = Config()  # only its seed is used here: that of the agents and of what is drawn


class Task(NamedTuple):
    env_id: str
    quantity: str  # what the last map is coloured by
    measure: Callable[[np.ndarray], np.ndarray]  # dimensions of the observation (O, N) -> (N,)
    colours: str = "viridis"


TASKS = {
    "cartpole": Task("CartPole-v1", "pole angle (°)", lambda x: np.degrees(x[2]), "coolwarm"),
    "pendulum": Task("Pendulum-v1", "angle (0: up)", lambda x: np.arctan2(x[1], x[0]), "twilight"),
    "acrobot": Task("Acrobot-v1", "height of tip", lambda x: -x[0] - x[0] * x[2] + x[1] * x[3]),
    "lunar_lander": Task("LunarLander-v3", "altitude (scaled)", lambda x: x[1]),
}


@dataclasses.dataclass(frozen=True)
class Args(cli.Args):
    shipped: bool = False  # draw the agents of assets/, not those of your own runs


def draw(name: str, args: Args) -> dict[str, float]:
    """Draw one task. Returns how good the agent's dreams are."""
    task = TASKS[name]
    own = args.out / results.SCRIPTS[name] / f"seed{args.run.seed}" / "agent.pt"
    path = cli.ASSETS / "agents" / f"{name}.pt" if args.shipped or not own.exists() else own
    print(f"{task.env_id}: {cli.short(path)}", flush=True)
    quantity = task.quantity, lambda obs: task.measure(obs.T), task.colours
    stem, points = args.run_dir / f"04_{name}", 100 if args.smoke else POINTS
    agent = load_agent(path, args.device)
    return Visualizer(agent, task.env_id, stem, args.run.seed, quantity, points).draw()


def main(args: Args) -> int:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # the environments draw without a window
    if pick_device(args.device).type == "cpu":
        tune_cpu()
    (args.run_dir / "result.json").unlink(missing_ok=True)  # the mark of a complete run
    started, numbers = time.monotonic(), {}
    for name in TASKS:
        try:
            numbers[name] = draw(name, args)
        except gym.error.Error as error:  # such as LunarLander where Box2D is not installed
            print(f"    no pictures: {error}")
    minutes, config = (time.monotonic() - started) / 60, dataclasses.asdict(args.config)
    result = {"tasks": numbers, "minutes": minutes, "config": config}
    write_json(args.run_dir / "result.json", result)
    print(f"Looked into {len(numbers)} of {len(TASKS)} agents: {cli.short(args.run_dir)}")
    return int(len(numbers) < len(TASKS))


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG, kind=Args))
