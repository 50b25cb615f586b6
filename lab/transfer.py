"""Twelve tasks that nobody tuned for: DM Control from numbers, beside the authors' own curves.

    pip install "dm_control==1.0.37" "mujoco<3.6"   # Python 3.11 or 3.12
    python -m lab.transfer --jobs 2                 # many hours; goes on where it was
    python -m lab.transfer --publish                # numbers and figure to assets/

`CONFIG` was written down before the first run, and nothing is changed because of what came out: a
task that is not learned stays in the table. Three tasks run for twice as long (`long`), and three
with networks twice as wide (`large`).

The authors' numbers are returns of training episodes (assets/results/transfer/authors.json). Ours
are greedy evaluations; our training episodes are drawn beside them.
"""

import dataclasses
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

import dreamer.cli
from dreamer import Config, evaluate, train
from dreamer.checkpoint import write_json
from lab import cli, engine, figures, results

NAME = "transfer"
AUTHORS = results.load(results.RESULTS / NAME / "authors.json")["tasks"]
CONFIG = Config(steps=50_000, action_repeat=2, train_ratio=64, evals=10, eval_episodes=10)
LONG = "cheetah_run", "hopper_stand", "walker_walk"
LARGE = "cheetah_run", "hopper_stand", "acrobot_swingup"
VARIANTS = {  # name -> tasks, config
    "default": (tuple(AUTHORS), CONFIG),
    "long": (LONG, replace(CONFIG, steps=100_000)),
    "large": (LARGE, replace(CONFIG, hidden=256, deter=256)),
}


class ControlSuite(gym.Env):
    """A task of the DeepMind Control suite (Tassa et al., arXiv 1801.00690), from proprioception:
    its observations by name, its own limit of 1,000 steps, an end where its discount is 0."""

    def __init__(self, task: str) -> None:
        os.environ.setdefault("MUJOCO_GL", "disable")  # nothing is drawn
        from dm_control import suite

        domain, name = next(pair for pair in suite.ALL_TASKS if "_".join(pair) == task)
        self.suite = suite.load(domain, name)
        shapes = {k: spec.shape or (1,) for k, spec in self.suite.observation_spec().items()}
        inf = np.inf
        self.observation_space = spaces.Dict(
            {name: spaces.Box(-inf, inf, shape, np.float32) for name, shape in shapes.items()}
        )
        action = self.suite.action_spec()
        low, high = (np.broadcast_to(x, action.shape) for x in (action.minimum, action.maximum))
        self.action_space = spaces.Box(low.astype("f"), high.astype("f"))

    def observe(self, observation: dict[str, Any]) -> dict[str, np.ndarray]:
        return {k: np.atleast_1d(value).astype(np.float32) for k, value in observation.items()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple:
        super().reset(seed=seed)
        if seed is not None:
            self.suite.task.random.seed(seed)
        return self.observe(self.suite.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple:
        now = self.suite.step(action)
        ended = now.last() and now.discount == 0
        return self.observe(now.observation), now.reward, ended, now.last() and not ended, {}


def id_of(task: str) -> str:
    return f"lab.transfer:dm_control/{task}-v0"


for task in AUTHORS:
    if f"dm_control/{task}-v0" not in gym.registry:  # `python -m lab.transfer` comes here twice
        gym.register(f"dm_control/{task}-v0", "lab.transfer:ControlSuite", kwargs={"task": task})


@dataclass(frozen=True)
class Flags(cli.JobFlags):
    seeds: tuple[int, ...] = (0, 1)
    tasks: tuple[Literal[tuple(AUTHORS)], ...] = tuple(AUTHORS)
    variants: tuple[Literal[tuple(VARIANTS)], ...] = tuple(VARIANTS)
    plot_only: bool = False  # run nothing


def settings(task: str, variant: str, seed: int, smoke: bool) -> dict[str, Any]:
    """All that the result of a run depends on."""
    config = replace(VARIANTS[variant][1], **(cli.SMOKE if smoke else {}), seed=seed)
    return dataclasses.asdict(config)


def make(task: str, variant: str, seed: int, smoke: bool, folder: str) -> None:
    """Train and judge: what a job does, in a process of its own."""
    config = Config(**settings(task, variant, seed, smoke))
    run = train(id_of(task), config, folder, resume=True, device="cpu")
    returns = evaluate(run.agent, episodes=2 if smoke else 20, seed=seed)
    weights = sum(p.numel() for p in run.agent.parameters() if p.requires_grad)
    entry = results.run_entry(run, returns) | {"weights": weights}
    write_json(Path(folder) / "result.json", entry | {"return": float(returns.mean())})


def theirs(task: str, steps: int) -> float:
    """The authors' mean over seeds after so many steps."""
    data = AUTHORS[task]
    return float(np.mean(data["returns"], 0)[data["env_steps"].index(steps)])


def at(data: dict[str, Any], steps: int) -> float:
    """Our mean over seeds of the evaluation after so many steps."""
    curves = [dict(zip(*run["curve"].values(), strict=True)) for run in data["runs"]]
    return float(np.mean([curve[min(curve, key=lambda s: abs(s - steps))] for curve in curves]))


def reached(data: dict[str, Any], level: float) -> str:
    """After how many steps our mean over seeds is first at or above this level."""
    steps, values = figures.style.same_steps(figures.style.curves_of(data["runs"]))
    good = values.mean(0) >= level
    return f"{steps[good.argmax()]:,}" if good.any() else "never"


def table(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Rows, the head first: one for each results file, by its name `<variant>_<task>`."""
    ours, authors = (10_000, 20_000, 50_000), (20_000, 50_000, 100_000, 200_000)
    head = ["Task", "Run", *(f"ours at {n // 1000}k" for n in ours)]
    head += [f"theirs at {n // 1000}k" for n in authors]
    rows = [[*head, "Steps to theirs at 50k", "Minutes", "CPU minutes", "Weights"]]
    for name, data in found.items():
        variant, _, task = name.partition("_")
        clocks = "minutes", "cpu_minutes"
        minutes = (np.mean([run[clock] for run in data["runs"]]) for clock in clocks)
        row = [task, variant, *(f"{at(data, n):.0f}" for n in ours)]
        row += [f"{theirs(task, n):.0f}" for n in authors]
        row += [reached(data, data["threshold"]), *(f"{x:.0f}" for x in minutes)]
        rows.append([*row, f"{data['runs'][0]['weights']:,}"])
    return rows


def main(flags: Flags) -> int:
    target = flags.base / NAME if flags.smoke else results.RESULTS / NAME
    planned = [(t, v) for v in flags.variants for t in VARIANTS[v][0]]
    planned = planned[:1] if flags.smoke else planned
    files = {pair: results.load(target / "{1}_{0}.json".format(*pair)) for pair in planned}
    known = {(*p, run["seed"]): run for p, data in files.items() if data for run in data["runs"]}
    _, new, good = engine.make_runs(f"lab.{NAME}", flags, flags.variants, settings, planned, known)
    for task, variant in planned if flags.publish or flags.smoke else ():
        if runs := [run for key, run in new.items() if key[:2] == (task, variant)]:
            path = target / f"{variant}_{task}.json"
            results.merge(path, id_of(task), theirs(task, 50_000), runs)
    found = {f"{v}_{t}": results.load(target / f"{v}_{t}.json") for t, v in planned}
    found = {name: data for name, data in found.items() if data}
    if found:
        print(results.markdown(table(found)))
        figure = (target if flags.smoke else cli.ASSETS) / f"{NAME}.png"
        figures.transfer_figure(found, AUTHORS, figure)
        print(figure)
    return 0 if good else 1


if __name__ == "__main__":
    cli.run(main, dreamer.cli.parse(Flags, __doc__))
