"""What the runs of 08_ablations.py say, in numbers and in sentences, from their results file.

A run's *score* is the mean of the greedy evaluations while it learned, the area under its learning
curve, on a scale where the random policy has 0 and a policy at the task's threshold 1. An idea's
*effect* on a task is the mean over seeds of the difference between the agent without it and the
full agent, of the same seed: below 0 where the idea is missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

FULL = "full"  # the variant from which nothing is removed
DREAMS = "dreams"  # the effect on the error of dreams: above 0 where the idea is missed
LENGTH = 15  # of the dreams in the table, steps: as long as those that the actor learns from
SEEDS = 5  # fewer prove nothing: n differences have all the same sign once in 2^(n-1) by chance

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


def curves(data: Results, task: str, variant: str) -> dict[int, list[float]]:
    """The evaluations of each seed, all equally many: a run that broke down counts as random from
    there on."""
    told = data["tasks"][task]
    kind = told["methods"] if variant in told["methods"] else (FULL, *told["ideas"])
    found = {
        (run["variant"], run["seed"]): run["curve"]["return"]
        for run in data["runs"]
        if run["task"] == task and run["variant"] in kind
    }
    points = max(map(len, found.values()), default=0)
    return {
        seed: returns + [told["random_return"]] * (points - len(returns))
        for (name, seed), returns in found.items()
        if name == variant
    }


def scores(data: Results, task: str, variant: str) -> dict[int, float]:
    """Score of each seed."""
    told = data["tasks"][task]
    return {
        seed: (np.mean(returns) - told["random_return"])
        / (told["threshold"] - told["random_return"])
        for seed, returns in curves(data, task, variant).items()
        if returns
    }


def dream_errors(data: Results, variant: str) -> dict[int, list[float]]:
    """Of each seed, the error of its dreams (H,) against their length, in the data's spread."""
    return {
        run["seed"]: run["dream_error"]
        for run in data["runs"]
        if run["variant"] == variant and run["dream_error"]
    }


def compare(without: dict[int, float], full: dict[int, float]) -> Effect | None:
    """The effect over the seeds that both have; None without any."""
    seeds = sorted(without.keys() & full.keys())
    if not seeds:
        return None
    difference = np.array([without[seed] - full[seed] for seed in seeds])
    mean, half = float(difference.mean()), 0.0
    if len(seeds) > 1:
        error = difference.std(ddof=1) / np.sqrt(len(seeds))
        half = float(stats.t.ppf(0.975, len(seeds) - 1) * error)
    return Effect(mean, mean - half, mean + half, len(seeds))


def effects(data: Results, idea: str) -> dict[str, Effect | None]:
    """An idea's effect on each task that is meant to be measured, and on `DREAMS`; None where
    there is no result yet."""
    found = {
        task: compare(scores(data, task, idea), scores(data, task, FULL))
        for task, told in data["tasks"].items()
        if idea in told["ideas"]
    }
    if idea in data["tasks"][data["dreams"]["task"]]["ideas"]:
        at_length = [
            {seed: error[:LENGTH][-1] for seed, error in dream_errors(data, variant).items()}
            for variant in (idea, FULL)
        ]
        found[DREAMS] = compare(*at_length)
    return found


def grid(data: Results) -> dict[str, np.ndarray]:
    """The effects as arrays (ideas, tasks), as `figures.ablation_figure` takes them."""
    table = [effects(data, idea) for idea in data["ideas"]]
    nothing = Effect(np.nan, np.nan, np.nan, 0)
    cells = [[found.get(task) or nothing for task in data["tasks"]] for found in table]
    names = ("mean", "low", "high", "seeds", "sign")
    full = [list(scores(data, task, FULL).values()) for task in data["tasks"]]
    return {
        **{name: np.array([[getattr(e, name) for e in row] for row in cells]) for name in names},
        "planned": np.array([[task in found for task in data["tasks"]] for found in table]),
        "full": np.array([np.mean(values) if values else np.nan for values in full]),
    }


def sentence(data: Results, idea: str) -> str:
    """What the measured intervals say of an idea, and no more than that."""
    found = effects(data, idea)
    judged = {name: e for name, e in found.items() if e and e.seeds >= SEEDS}
    if not judged:
        return f"not measured yet with {SEEDS} seeds."
    titles = {task: told["title"] for task, told in data["tasks"].items()}
    signs = {"costs": [], "gains": [], "raises": [], "lowers": []}
    for name, e in judged.items():
        if e.sign and name == DREAMS:
            change = f"the error of {LENGTH}-step dreams by {abs(e.mean):.2f}"
            signs["raises" if e.sign > 0 else "lowers"].append(change)
        elif e.sign:
            change = f"{abs(e.mean):.2f} on {titles[name]}"
            signs["gains" if e.sign > 0 else "costs"].append(change)
    parts = [f"{verb} {listed(changes)}" for verb, changes in signs.items() if changes]
    parts = [f"removing it {'; '.join(parts)}"] if parts else []
    if sum(map(len, signs.values())) < len(judged):
        parts.append("nothing measurable in the rest" if parts else "nothing measurable here")
    if len(judged) < len(found):
        parts.append(f"{len(found) - len(judged)} of {len(found)} not measured yet")
    return "; ".join(parts) + "."


def listed(words: list[str]) -> str:
    """The words as a list in a sentence."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def rows(data: Results) -> Iterator[list[str]]:
    """The README's table, its head first: the full agent, then one row for each idea."""
    tasks = data["tasks"]
    yield [
        "Idea",
        *(told["title"] for told in tasks.values()),
        f"Dream error, {LENGTH} steps",
    ]
    full = [mean_of(scores(data, task, FULL)) for task in tasks]
    errors = dream_errors(data, FULL)
    full.append(mean_of({seed: error[:LENGTH][-1] for seed, error in errors.items()}))
    yield ["(full agent: its own numbers)", *full]
    for idea in data["ideas"]:
        found = effects(data, idea)
        cells = [cell(found[name]) if name in found else "" for name in (*tasks, DREAMS)]
        yield [idea, *cells]


def sentences(data: Results) -> Iterator[str]:
    """For each idea what stands in its place when it is removed, and what was measured then."""
    for idea, removed in data["ideas"].items():
        yield f"**{idea}** ({removed}): {sentence(data, idea)}"


def note(data: Results) -> str:
    """How the table is to be read, and what it rests on."""
    runs = data["runs"]
    found = [effect for idea in data["ideas"] for effect in effects(data, idea).values()]
    planned = [1 + len(told["ideas"]) + len(told["methods"]) for told in data["tasks"].values()]
    cpus = sorted({run["cpu"] for run in runs})
    hours = sum(run["cpu_minutes"] for run in runs) / 60
    return (
        "Score: mean of the greedy evaluations while learning, 0 at the random policy, 1 at the "
        "threshold. Cells: its change when the idea is removed (first row: the full agent's own "
        f"score), mean over seeds, **bold** where its 95% interval (Student's t, {SEEDS} "
        f"paired seeds) excludes 0. Of {len(found)} intervals about {0.05 * len(found):.0f} would "
        "do so by chance. Dream error: in the data's spread, + is worse; on episodes of "
        "random actions, while each model has learned from its own agent's experience. Empty: not "
        "run, as the idea has no part in what makes that task hard. "
        f"?: no result yet. {len(runs)} of {SEEDS * sum(planned)} runs, {hours:.1f} CPU hours "
        f"({'; '.join(cpus)}). The tasks, and the ideas chosen for them:"
    )


def scale_rows(data: Results, plain: dict[str, list[float]]) -> Iterator[list[str]]:
    """The README's table of rewards of all sizes, its head first: the greedy return at the end, in
    the plain task's units, mean over seeds and worst seed.

    plain: method -> its returns on the plain task, where the runs are those of another comparison.
    """
    tasks = [(name, data["tasks"][name]) for name in data["scales"]]
    yield ["Rewards", *(f"x {told['scale']:,g}" for _, told in tasks)]
    shared = [idea for idea in data["ideas"] if all(idea in told["ideas"] for _, told in tasks)]
    names = {FULL: "Dreamer", **{idea: f"Dreamer without {idea}" for idea in shared}}
    names |= {method: method.upper() for method in plain}
    for variant, name in names.items():
        ends = [[c[-1] for c in curves(data, task, variant).values() if c] for task, _ in tasks]
        if variant in plain:
            ends = [
                found if told["methods"] else plain[variant]
                for found, (_, told) in zip(ends, tasks, strict=True)
            ]
        yield [name, *map(ends_of_seeds, ends)]


def ends_of_seeds(values: list[float]) -> str:
    """Mean and worst seed; how many they are, where some are missing."""
    if not values:
        return "?"
    missing = f", {len(values)} of {SEEDS} seeds" if len(values) < SEEDS else ""
    return f"{np.mean(values):.0f} ({min(values):.0f}{missing})"


def mean_of(values: dict[int, float]) -> str:
    return f"{np.mean(list(values.values())):.2f}" if values else "?"


def cell(effect: Effect | None) -> str:
    """An effect in a table: bold where its interval excludes 0."""
    if effect is None:
        return "?"
    text = f"{effect.mean:+.2f}"
    return f"**{text}**" if effect.sign else text
