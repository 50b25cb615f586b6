"""The numbers of finished runs: recorded beside each run, gathered in assets/results, tabled.

    python -m lab.results      writes assets/agents/README.md and draws the training figures of
                               assets/ anew, from assets/results

A run's `result.json` marks it as complete; its `entry` is what a results file keeps of it.

A file of assets/results holds `env_id`, `threshold`, `random_return` (mean of 100 episodes),
`versions`, `cpu`, and `runs`, one entry per seed: among others `curve` (mean return of each greedy
evaluation during training), `train_returns` (step and return of each training episode),
`final_returns` (greedy episodes after training) and `diagnostics` (evaluations and some reports
of the log, enough to draw the training figure). 09's have `probe` too, by lab.pixels.linear_probe.
"""

import dataclasses
import json
import math
import os
import platform
import re
import shlex
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from dreamer.checkpoint import load_checkpoint, write_atomic, write_json
from dreamer.evaluation import random_returns
from dreamer.run import Run
from lab import figures
from lab.cli import ASSETS, Args, short

RESULTS = ASSETS / "results"
SCRIPTS = {  # the file in assets/results -> the script that makes it, its folder in runs/
    "cartpole": "02_dreamer_cartpole",
    "pendulum": "03_dreamer_pendulum",
    "acrobot": "05_dreamer_acrobot",
    "lunar_lander": "06_dreamer_lunar_lander",
    "pixel_pendulum": "09_dreamer_pixels_pendulum",  # stem_task: one script, two tasks
    "pixel_cartpole": "09_dreamer_pixels_cartpole",
}


def finish(
    args: Args,
    task: str,
    env_id: str,
    threshold: float,
    run: Run,
    returns: np.ndarray,
    after: str,
    **more: Any,
) -> None:
    """Record a finished run, draw it over the committed seeds, and say what came of it.

    returns: of the greedy evaluation after training; after: the script to run next, or ""; more:
    what its entry holds besides. All files go to the run's folder.
    """
    entry, mean, worst = run_entry(run, returns) | more, float(returns.mean()), float(returns.min())
    result = {"env_id": env_id, "return": mean, "worst_episode": worst, "threshold": threshold}
    result |= {"minutes": run.minutes, "config": entry["config"], "entry": entry}
    write_json(args.run_dir / "result.json", result)
    ours = load(RESULTS / f"{task}.json")
    chance = ours["random_return"] if ours else random_returns(env_id).mean()
    figure = args.run_dir / f"{args.script.stem[:2]}_{task}_training.png"
    draw(env_id, [entry], threshold, chance, figure, ours["runs"] if ours else [])
    agent = short(args.run_dir / "agent.pt")
    verdict = "reached" if mean >= threshold else "NOT reached"
    grey = ", the committed seeds in grey" if ours else ""
    print(
        f"{env_id}, seed {run.config.seed}: mean return {mean:.1f} over {len(returns)} greedy "
        f"episodes (worst {worst:.1f}) after {run.step} steps in {run.minutes:.1f} minutes; "
        f"threshold {threshold:g} {verdict}\n"
        f"Figure:    {short(figure)} (this run in blue{grey})\n"
        f"Agent:     {agent}\n"
        f"Watch it:  python -m dreamer watch {shlex.quote(str(agent))}\n"
        f"Dreams:    python -m lab.visualize {shlex.quote(str(agent))}"
        + (f"\nNext:      python {after}" if after else "")
    )


def draw(
    env_id: str, runs: list, threshold: float, chance: float, figure: Path, before: Sequence = ()
) -> None:
    """The training figure of runs, over those of before in grey."""
    space = gym.make(env_id).action_space
    uniform = math.log(space.n) if isinstance(space, gym.spaces.Discrete) else None  # nats
    title = env_id.rpartition(":")[2]  # without the module that registers it
    figures.training_figure(title, runs, threshold, chance, figure, before, uniform)


def run_entry(run: Run, returns: np.ndarray) -> dict[str, Any]:
    """What the results file keeps of one run."""
    reports = run.reports[:: max(1, math.ceil(len(run.reports) / 50))]
    evals = [{k: v for k, v in row.items() if k != "returns"} for row in run.evals]
    return {
        "seed": run.config.seed,
        "config": dataclasses.asdict(run.config),
        "env_steps": run.config.steps,
        "minutes": significant(run.minutes),
        "cpu_minutes": significant(run.cpu_minutes),
        "cpu": cpu_name(),
        "curve": {
            "env_steps": [row["step"] for row in run.evals],
            "return": [significant(row["return"]) for row in run.evals],
        },
        "train_returns": [[row["step"], significant(row["return"])] for row in run.episodes],
        "final_returns": [significant(value) for value in returns],
        "diagnostics": [
            {k: significant(v) if isinstance(v, float) else v for k, v in row.items()}
            for row in sorted(evals + reports, key=lambda row: row["step"])
        ],
    }


def significant(value: float, digits: int = 4) -> float:
    """Rounded to a few significant digits, to keep the files small."""
    return float(f"{value:.{digits}g}")


def versions() -> dict[str, str]:
    """Of everything that moves the numbers."""
    found = {module.__name__: module.__version__ for module in (torch, gym, np)}
    return {"python": platform.python_version(), **found}


def cpu_name() -> str:
    """Model and number of cores that this process may use."""
    about = Path("/proc/cpuinfo")  # on Linux
    found = re.search(r"model name\s*:\s*(.+)", about.read_text()) if about.exists() else None
    model = found[1].strip() if found else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} core{'s' if cores != 1 else ''}"


# ---------------------------------------------------------------- results files


def load(path: Path) -> dict[str, Any] | None:
    """A results file; None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def load_tasks() -> dict[str, dict[str, Any]]:
    """The tasks' results files that are there, by task."""
    return {task: data for task in SCRIPTS if (data := load(RESULTS / f"{task}.json"))}


def merge(
    path: Path, env_id: str, threshold: float, entries: list[dict[str, Any]]
) -> dict[str, Any]:
    """Bring runs of one config into a results file, and return its content.

    They replace entries of the same seed, and those of another config. Where no entry stays, the
    random policy's return is measured anew, over as many episodes as in `final_returns`.
    """
    old, first = load(path) or {"runs": []}, entries[0]
    alike = [run for run in old["runs"] if same_but_seed(run["config"], first["config"])]
    chance = old["random_return"] if alike else None
    if chance is None:
        chance = significant(random_returns(env_id, len(first["final_returns"])).mean())
    runs = {run["seed"]: run for run in alike + entries}
    data = {
        "env_id": env_id,
        "threshold": threshold,
        "random_return": chance,
        "versions": versions(),
        "cpu": "; ".join(sorted({run["cpu"] for run in runs.values()})),
        "runs": [runs[seed] for seed in sorted(runs)],
    }
    text = dump(data)
    write_atomic(path, lambda temporary: temporary.write_text(text))
    return data


def publish(folder: Path, target: Path) -> None:
    """Bring the JSON files of a comparison's folder to `target`, and its figures to assets/."""
    target.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.*"):
        shutil.copyfile(path, (target if path.suffix == ".json" else ASSETS) / path.name)
    print(f"Published to {short(target)} and {short(ASSETS)}")


def same_but_seed(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return {**a, "seed": 0} == {**b, "seed": 0}


def dump(data: dict[str, Any]) -> str:
    """JSON with one line for each field of a run, so that a change reads well in a diff."""
    write = partial(json.dumps, allow_nan=False)
    runs = [",\n".join(f'   "{key}": {write(run[key])}' for key in run) for run in data["runs"]]
    text = {key: write(data[key]) for key in data}
    text["runs"] = "[\n" + ",\n".join(f"  {{\n{run}\n  }}" for run in runs) + "\n ]"
    return "{\n" + ",\n".join(f' "{key}": {text[key]}' for key in text) + "\n}\n"


def solved(data: dict[str, Any]) -> int:
    """How many runs of a results file solved their task: the mean of their final greedy episodes,
    100 of them, is at or above the threshold."""
    return sum(np.mean(run["final_returns"]) >= data["threshold"] for run in data["runs"])


def first_reached(data: dict[str, Any]) -> tuple[float, float, int, int, int]:
    """When the runs of a results file first reached the threshold: at the first of two evaluations
    in a row with a mean at or above it. They may lose it again.

    Returns step and minutes of the median seed (of an even number the later one in the middle; one
    that never reached it ranks last), how many seeds did, and of the evaluations since then how
    many were below the threshold, and how many there were.
    """
    firsts, since = [], []
    for run in data["runs"]:
        evals = [row for row in run["diagnostics"] if row["kind"] == "eval"]
        good = [row["return"] >= data["threshold"] for row in evals]
        first = next((i for i in range(len(good) - 1) if good[i] and good[i + 1]), len(good))
        firsts += [(row["step"], row["minutes"]) for row in evals[first : first + 1]]
        since += good[first:]
    never = [(math.inf, math.inf)] * (len(data["runs"]) - len(firsts))
    step, minutes = (sorted(firsts) + never)[len(data["runs"]) // 2]
    return step, minutes, len(firsts), since.count(False), len(since)


def markdown(rows: list[list[str]]) -> str:
    """A table: its head, then its rows."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def model_card() -> str:
    """assets/agents/README.md: where each agent there comes from, and what its run came to."""
    rows = ["Name | Task | Seed | Steps | `train_ratio` | Return | Licence".split(" | ")]
    for task, data in load_tasks().items():
        config = load_checkpoint(ASSETS / "agents" / f"{task}.pt")["config"]
        run = next(run for run in data["runs"] if run["config"] == config)
        numbers = str(config["seed"]), f"{config['steps']:,}", f"{config['train_ratio']:g}"
        ret = f"{np.mean(run['final_returns']):.1f}"
        rows.append([f"`{task}`", data["env_id"].rpartition(":")[2], *numbers, ret, "MIT"])
    return f"""# Trained agents

{markdown(rows)}

Watch one with `python -m dreamer watch cartpole`. In Python, `load_agent("cartpole")` reads it.

Each is the median seed of its task. Its return is the mean of 100 greedy episodes after training,
on fresh seeds. All numbers: [results](../../docs/results.md).
`python -m lab.results` makes this page of the agents and of `assets/results`.
"""


def write_card() -> None:
    text = model_card()
    write_atomic(ASSETS / "agents" / "README.md", lambda temporary: temporary.write_text(text))


if __name__ == "__main__":
    write_card()
    for task, data in load_tasks().items():
        path = ASSETS / f"{SCRIPTS[task][:2]}_{task}_training.png"
        draw(data["env_id"], data["runs"], data["threshold"], data["random_return"], path)
        print(path)
