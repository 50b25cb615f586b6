"""What the runs of 08_ablations.py say, in numbers, from their results file.

A run's *score* is the mean of the greedy evaluations while it learned, the area under its learning
curve: 0 is the random policy's, 1 a policy's at the task's threshold. An idea's *effect* on a task
is the mean over seeds of the score without it minus the full agent's: below 0 where it is missed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit  # quantiles of Student's t

FULL = "full"  # the variant from which nothing is removed
DREAMS = "dreams"  # the effect on the error of dreams: above 0 where the idea is missed
LENGTH = 15  # steps of the dreams in the table: as long as those that the actor learns from
SEEDS = 5  # fewer prove nothing: n differences have all the same sign once in 2^(n-1) by chance

Results = dict[str, Any]  # the content of assets/results/ablations.json


@dataclass(frozen=True)
class Effect:
    """Mean difference to the full agent, with its 95% interval: Student's t over the seeds'
    differences (a bootstrap of five numbers is too narrow: it misses three times too often)."""

    mean: float = np.nan
    low: float = np.nan
    high: float = np.nan
    seeds: int = 0

    @property
    def sign(self) -> int:
        """-1 or 1 where the whole interval lies below or above 0, else 0; 0 for too few seeds."""
        return (int(self.low > 0) - int(self.high < 0)) if self.seeds >= SEEDS else 0

    def __str__(self) -> str:
        """As in the tables: bold where the interval excludes 0."""
        bold = "**" if self.sign else ""
        return f"{bold}{self.mean:+.2f}{bold}" if self.seeds else "?"


def compare(without: dict[int, float], full: dict[int, float]) -> Effect:
    """The effect over the seeds that both have; of a single seed an interval without width."""
    seeds = sorted(without.keys() & full.keys())
    if not seeds:
        return Effect()
    difference = np.array([without[seed] - full[seed] for seed in seeds])
    mean, half = difference.mean(), 0.0
    if len(seeds) > 1:
        half = stdtrit(len(seeds) - 1, 0.975) * difference.std(ddof=1) / np.sqrt(len(seeds))
    return Effect(mean, mean - half, mean + half, len(seeds))


def curves(data: Results, task: str, variant: str) -> dict[int, list[float]]:
    """By seed, the evaluations of a run, all equally many: a run that broke down counts as random
    from there on."""
    info = data["tasks"][task]
    alike = info["methods"] if variant in info["methods"] else (FULL, *info["ideas"])
    runs = [run for run in data["runs"] if run["task"] == task and run["variant"] in alike]
    found = {run["seed"]: run["curve"]["return"] for run in runs if run["variant"] == variant}
    points = max((len(run["curve"]["return"]) for run in runs), default=0)
    return {seed: (found[seed] + [info["random_return"]] * points)[:points] for seed in found}


def measures(data: Results, variant: str) -> dict[str, dict[int, float]]:
    """By seed, the score on each task on which the variant is to be measured, and as `DREAMS` the
    error of dreams of `LENGTH` steps, in the data's spread."""
    found = {}
    for task, info in data["tasks"].items():
        if variant in (FULL, *info["ideas"]):
            low, high = info["random_return"], info["threshold"]
            runs = curves(data, task, variant)
            found[task] = {seed: (np.mean(runs[seed]) - low) / (high - low) for seed in runs}
    if data["dreams"]["task"] in found:
        runs = [run for run in data["runs"] if run["variant"] == variant and run["dream_error"]]
        found[DREAMS] = {run["seed"]: run["dream_error"][LENGTH - 1] for run in runs}
    return found


def effects(data: Results, idea: str) -> dict[str, Effect]:
    """An idea's effect on each task on which it is to be measured, and on `DREAMS`."""
    full = measures(data, FULL)
    return {name: compare(values, full[name]) for name, values in measures(data, idea).items()}


def effects_table(data: Results) -> list[list[str]]:
    """Rows, the head first: the full agent's own numbers, then the effect of each idea. Empty
    where a run is not planned, "?" where there is no result yet."""
    titles = [info["title"] for info in data["tasks"].values()]
    full = [list(values.values()) for values in measures(data, FULL).values()]
    own = [f"{np.mean(values):.2f}" if values else "?" for values in full]
    rows = [["Idea removed", *titles, f"Dream error, {LENGTH} steps"]]
    rows.append(["(full agent: its own numbers)", *own])
    for idea in data["ideas"]:
        cells = effects(data, idea)
        rows.append([idea, *(str(cells.get(name, "")) for name in (*data["tasks"], DREAMS))])
    return rows


def scales_table(data: Results, plain: dict[str, list[float]]) -> list[list[str]]:
    """Rows, the head first, for rewards of all sizes: the return of the last evaluation, in the
    plain task's units, mean over seeds and worst seed. plain: model-free method -> its returns on
    the plain task, which come from elsewhere."""
    tasks = {task: data["tasks"][task] for task in data["scales"]}
    rows = [["Rewards", *(f"x {info['scale']:,g}" for info in tasks.values())]]
    ideas = [i for i in data["ideas"] if all(i in info["ideas"] for info in tasks.values())]
    for variant in (FULL, *ideas, *plain):
        title = variant.upper() if variant in plain else f"Dreamer without {variant}"
        row = ["Dreamer" if variant == FULL else title]
        for task, info in tasks.items():
            ends = [curve[-1] for curve in curves(data, task, variant).values()]
            if variant in plain and not info["methods"]:
                ends = plain[variant]
            missing = f", {len(ends)} of {SEEDS} seeds" if len(ends) < SEEDS else ""
            row.append(f"{np.mean(ends):.0f} ({min(ends):.0f}{missing})" if ends else "?")
        rows.append(row)
    return rows
