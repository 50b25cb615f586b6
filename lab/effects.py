"""What the runs of 08_ablations.py say, in numbers, from their results file.

A run's *score* is the mean of the greedy evaluations while it learned, the area under its learning
curve, on a scale where the random policy has 0 and a policy at the task's threshold 1. An idea's
*effect* on a task is the mean over seeds of the difference between the agent without it and the
full agent, of the same seed: below 0 where the idea is missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FULL = "full"  # the variant from which nothing is removed
DREAMS = "dreams"  # the effect on the error of dreams: above 0 where the idea is missed
LENGTH = 15  # steps of the dreams in the table: as long as those that the actor learns from
SEEDS = 5  # fewer prove nothing: n differences have all the same sign once in 2^(n-1) by chance

# Student's t, 97.5% quantiles for 1 to 9 degrees of freedom. With more seeds the last one is used,
# which makes the interval a little too wide.
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)

Results = dict[str, Any]  # the content of assets/results/ablations.json


@dataclass(frozen=True)
class Effect:
    """Mean difference to the full agent, with its 95% interval: Student's t over the seeds'
    differences (a bootstrap of five numbers is too narrow: it misses three times too often)."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def sign(self) -> int:
        """-1 or 1 where the whole interval lies below or above 0, else 0; 0 for too few seeds."""
        if self.seeds < SEEDS:
            return 0
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        """As in the tables: bold where the interval excludes 0."""
        if not self.seeds:
            return "?"
        return f"**{self.mean:+.2f}**" if self.sign else f"{self.mean:+.2f}"


UNMEASURED = Effect(np.nan, np.nan, np.nan, 0)


def compare(without: dict[int, float], full: dict[int, float]) -> Effect:
    """The effect over the seeds that both have; of a single seed an interval without width."""
    seeds = sorted(without.keys() & full.keys())
    if not seeds:
        return UNMEASURED
    difference = np.array([without[seed] - full[seed] for seed in seeds])
    mean, half = float(difference.mean()), 0.0
    if len(seeds) > 1:
        t = T_975[min(len(seeds) - 1, len(T_975)) - 1]
        half = float(t * difference.std(ddof=1) / np.sqrt(len(seeds)))
    return Effect(mean, mean - half, mean + half, len(seeds))


# ---------------------------------------------------------------- numbers of single runs


def curves(data: Results, task: str, variant: str) -> dict[int, list[float]]:
    """By seed, the evaluations of a run, all equally many: a run that broke down counts as random
    from there on."""
    info = data["tasks"][task]
    kind = info["methods"] if variant in info["methods"] else (FULL, *info["ideas"])
    runs = {
        (run["variant"], run["seed"]): run["curve"]["return"]
        for run in data["runs"]
        if run["task"] == task and run["variant"] in kind
    }
    points = max(map(len, runs.values()), default=0)
    return {
        seed: returns + [info["random_return"]] * (points - len(returns))
        for (name, seed), returns in runs.items()
        if name == variant
    }


def scores(data: Results, task: str, variant: str) -> dict[int, float]:
    """Score of each seed."""
    low, high = data["tasks"][task]["random_return"], data["tasks"][task]["threshold"]
    return {
        seed: (np.mean(returns) - low) / (high - low)
        for seed, returns in curves(data, task, variant).items()
        if returns
    }


def dream_errors(data: Results, variant: str) -> dict[int, list[float]]:
    """By seed, the error of its dreams (H,) against their length, in the data's spread."""
    return {
        run["seed"]: run["dream_error"]
        for run in data["runs"]
        if run["variant"] == variant and run["dream_error"]
    }


def table_errors(data: Results, variant: str) -> dict[int, float]:
    """By seed, the error of dreams of `LENGTH` steps."""
    return {seed: error[:LENGTH][-1] for seed, error in dream_errors(data, variant).items()}


# ---------------------------------------------------------------- what they say together


def effects(data: Results, idea: str) -> dict[str, Effect]:
    """An idea's effect on each task that it is meant to be measured on, and on `DREAMS`."""
    result = {
        task: compare(scores(data, task, idea), scores(data, task, FULL))
        for task, info in data["tasks"].items()
        if idea in info["ideas"]
    }
    if data["dreams"]["task"] in result:
        result[DREAMS] = compare(table_errors(data, idea), table_errors(data, FULL))
    return result


def grid(data: Results) -> dict[str, np.ndarray]:
    """The effects as arrays (ideas, tasks), as `figures.ablation_figure` takes them: `mean`, `low`,
    `high`, `seeds` and `sign` of each, and whether it is `planned`; `full` (tasks,), the full
    agent's scores. NaN, with 0 seeds, where there is no result."""
    rows = [effects(data, idea) for idea in data["ideas"]]
    cells = [[row.get(task, UNMEASURED) for task in data["tasks"]] for row in rows]
    full = [list(scores(data, task, FULL).values()) for task in data["tasks"]]
    return {
        **{
            name: np.array([[getattr(cell, name) for cell in row] for row in cells])
            for name in ("mean", "low", "high", "seeds", "sign")
        },
        "planned": np.array([[task in row for task in data["tasks"]] for row in rows]),
        "full": np.array([np.mean(values) if values else np.nan for values in full]),
    }


def effects_table(data: Results) -> list[list[str]]:
    """Rows, the head first: the full agent's own numbers, then the effect of each idea. Empty
    where a run is not planned, "?" where there is no result yet."""

    def mean(values: dict[int, float]) -> str:
        return f"{np.mean(list(values.values())):.2f}" if values else "?"

    tasks = data["tasks"]
    titles = [info["title"] for info in tasks.values()]
    full = [mean(scores(data, task, FULL)) for task in tasks]
    rows = [
        ["Idea removed", *titles, f"Dream error, {LENGTH} steps"],
        ["(full agent: its own numbers)", *full, mean(table_errors(data, FULL))],
    ]
    for idea in data["ideas"]:
        cells = effects(data, idea)
        rows.append([idea, *(str(cells.get(name, "")) for name in (*tasks, DREAMS))])
    return rows


def scales_table(data: Results, plain: dict[str, list[float]]) -> list[list[str]]:
    """Rows, the head first, for rewards of all sizes: the return of the last evaluation, in the
    plain task's units, mean over seeds and worst seed.

    plain: model-free method -> its returns on the plain task, which come from elsewhere.
    """

    def ends(variant: str, task: str) -> str:
        values = [returns[-1] for returns in curves(data, task, variant).values() if returns]
        if variant in plain and not tasks[task]["methods"]:
            values = plain[variant]
        if not values:
            return "?"
        missing = f", {len(values)} of {SEEDS} seeds" if len(values) < SEEDS else ""
        return f"{np.mean(values):.0f} ({min(values):.0f}{missing})"

    tasks = {task: data["tasks"][task] for task in data["scales"]}
    shared = [
        idea for idea in data["ideas"] if all(idea in info["ideas"] for info in tasks.values())
    ]
    names = {FULL: "Dreamer", **{idea: f"Dreamer without {idea}" for idea in shared}}
    names |= {method: method.upper() for method in plain}
    return [
        ["Rewards", *(f"x {info['scale']:,g}" for info in tasks.values())],
        *([name, *(ends(variant, task) for task in tasks)] for variant, name in names.items()),
    ]
