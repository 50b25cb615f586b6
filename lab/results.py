"""The numbers of finished runs: one JSON file per task, and what the README says about them.

A file of assets/results holds `env_id`, `threshold`, `random_return` (mean of 100 episodes),
`versions`, `cpu`, and `runs`, one entry per seed: `seed`, `config`, `env_steps`, `minutes`,
`cpu_minutes`, `cpu`, `curve` (mean return of each greedy evaluation during training),
`train_returns` (step and return of each training episode), `final_returns` (greedy episodes after
training) and `diagnostics` (evaluation rows and every few report rows of the log, enough to draw
the training figure).
The files of the baselines, in its folder sample_efficiency, are alike: `config` are their settings,
and of diagnostics there are the evaluation rows alone.

    python -m lab.results --readme README.md            rewrite the README's generated parts
    python -m lab.results --readme README.md --check    only say whether they are up to date
    python -m lab.results --readme README.md --figures  redraw the figures too
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from dreamer.checkpoint import write_atomic, write_json
from dreamer.evaluation import random_returns
from dreamer.training import Run
from lab import effects, figures

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SCRIPTS = {  # the file in assets/results -> the script that makes it
    "cartpole": "02_dreamer_cartpole",
    "pendulum": "03_dreamer_pendulum",
    "acrobot": "05_dreamer_acrobot",
    "lunar_lander": "06_dreamer_lunar_lander",
}
BASELINES = {  # what a user would pick instead, task by task (07_sample_efficiency.py)
    "cartpole": ["ppo", "dqn"],
    "pendulum": ["ppo", "sac"],
    "acrobot": ["ppo", "dqn"],
    "lunar_lander": ["ppo", "dqn"],
}
Comparison = dict[str, dict[str, dict[str, Any] | None]]  # task -> method -> its results file
AIMS = [("matched", ["1"], 1.3), ("matched", ["2"], 1.4), ("default", ["1", "2"], 1.6)]
TIE = 1.2  # steps that differ by less are nearer than two of the baselines' evaluations
REPORT_ROWS = 50  # of a run's report rows, kept in its results file


# ---------------------------------------------------------------- recording


def record(
    path: Path, env_id: str, threshold: float, run: Run, returns: np.ndarray
) -> contextlib.AbstractContextManager[dict[str, Any]]:
    """`record_entry` for a finished run of ours. returns: the greedy evaluation after training."""
    return record_entry(path, env_id, threshold, run_entry(run, returns))


@contextlib.contextmanager
def record_entry(
    path: Path, env_id: str, threshold: float, entry: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Merge one run into a results file; `with record_entry(...) as data` gives the file's
    content, and no other run is recorded before that block ends: the figure drawn in it shows all.

    entry: what the file keeps of the run, with at least `seed`, `config`, `cpu` and
    `final_returns`. The entry of the same seed is replaced; entries of another config go, as means
    over them would mean nothing, and with the last of them the random policy's return, which is
    measured anew over as many episodes. Written atomically, and where the system has `flock` two
    processes that record at once wait for each other.
    """
    with locked(path.parent):
        old = json.loads(path.read_text()) if path.exists() else {"runs": []}
        kept = [r for r in old["runs"] if same_but_seed(r["config"], entry["config"])]
        if kept:
            random_return = old["random_return"]
        else:
            episodes = len(entry["final_returns"])
            random_return = significant(random_returns(env_id, episodes).mean())
        runs = [r for r in kept if r["seed"] != entry["seed"]] + [entry]
        data = {
            "env_id": env_id,
            "threshold": threshold,
            "random_return": random_return,
            "versions": versions(),
            "cpu": "; ".join(sorted({run["cpu"] for run in runs})),
            "runs": sorted(runs, key=lambda r: r["seed"]),
        }
        text = dump(data)
        write_atomic(path, lambda temporary: temporary.write_text(text))
        yield data


def run_entry(run: Run, returns: np.ndarray) -> dict[str, Any]:
    """What the results file keeps of one run."""
    config = run.agent.config
    reports = run.reports[:: -(-len(run.reports) // REPORT_ROWS) or 1]
    evals = [{k: v for k, v in row.items() if k != "returns"} for row in run.evals]
    return {
        "seed": config.seed,
        "config": dataclasses.asdict(config),
        "env_steps": config.steps,
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


def finish(run_dir: Path, env_id: str, threshold: float, run: Run, returns: np.ndarray) -> str:
    """Mark a run as complete, `result.json`; returns a sentence on whether it is solved."""
    mean, worst = float(returns.mean()), float(returns.min())
    config = run.agent.config
    result = {
        "return": mean,
        "worst_episode": worst,
        "threshold": threshold,
        "minutes": run.minutes,
        "config": dataclasses.asdict(config),
    }
    write_json(run_dir / "result.json", result)
    verdict = "reached" if mean >= threshold else "NOT reached"
    return (
        f"{env_id}, seed {config.seed}: mean return {mean:.1f} over {len(returns)} greedy episodes "
        f"(worst {worst:.1f}) after {config.steps} steps in {run.minutes:.1f} minutes; "
        f"threshold {threshold:g} {verdict}"
    )


def same_but_seed(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return {**a, "seed": 0} == {**b, "seed": 0}


def significant(value: float, digits: int = 4) -> float:
    """Rounded to a few significant digits, to keep the files small."""
    return float(f"{value:.{digits}g}")


def dump(data: dict[str, Any]) -> str:
    """JSON with one line for each field of a run, so that a change reads well in a diff."""
    line = {key: json.dumps(value, allow_nan=False) for key, value in data.items()}
    runs = [
        ",\n".join(f'   "{key}": {json.dumps(value, allow_nan=False)}' for key, value in r.items())
        for r in data["runs"]
    ]
    line["runs"] = "[\n" + ",\n".join(f"  {{\n{text}\n  }}" for text in runs) + "\n ]"
    return "{\n" + ",\n".join(f' "{key}": {text}' for key, text in line.items()) + "\n}\n"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process at a time is within this block for a folder, where `flock` exists."""
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def versions() -> dict[str, str]:
    """Of everything that moves the numbers."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gymnasium": gym.__version__,
        "numpy": np.__version__,
    }


def cpu_name() -> str:
    """Model and number of cores that this process may use."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found[1].strip() if found else model
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return f"{model}, {cores} core{'s' if cores != 1 else ''}"


# ---------------------------------------------------------------- the README's generated parts


def load(results_dir: Path) -> dict[str, dict[str, Any]]:
    """The tasks' results files that are there, by task."""
    paths = {task: results_dir / f"{task}.json" for task in SCRIPTS}
    return {task: json.loads(path.read_text()) for task, path in paths.items() if path.exists()}


def draw_figures(assets: Path) -> None:
    """Training figures, the comparison's and the benchmark's, as their own commands draw them."""
    for task, data in load(assets / "results").items():
        path = assets / f"{SCRIPTS[task][:2]}_{task}_training.png"
        title = data["env_id"].partition("-")[0]
        figures.training_figure(title, data["runs"], data["threshold"], data["random_return"], path)
    compared = comparison(assets / "results", assets / "results" / "sample_efficiency")
    if any_baseline(compared):
        figures.sample_efficiency_figure(compared, assets / "07_sample_efficiency.png")
    if (path := assets / "results" / "benchmark.json").exists():
        figures.benchmark_figures(json.loads(path.read_text()), assets)


def table(results_dir: Path) -> str:
    """Two tables in Markdown, what came of the runs and how they were made, with a row for each
    task that has a results file."""
    found_head = [
        "Task",
        "Environment steps",
        "Mean of seeds",
        "Std over seeds",
        "Worst seed",
        "Threshold",
        "Random policy",
        "Minutes per seed",
        "Held from",
        "Below it later",
    ]
    made_head = ["Task", "`train_ratio`", "`action_repeat`", "Seeds", "Hardware", "Command"]
    found_rows, made_rows = ([head, ["---"] * len(head)] for head in (found_head, made_head))
    for task, data in load(results_dir).items():
        means = np.array([np.mean(run["final_returns"]) for run in data["runs"]])
        steps = max(run["env_steps"] for run in data["runs"])
        minutes = np.mean([run["minutes"] for run in data["runs"]])
        found_rows.append(
            [
                data["env_id"],
                f"{steps:,}",
                f"{means.mean():.1f}",
                f"{means.std(ddof=1):.1f}" if len(means) > 1 else "-",
                f"{means.min():.1f}",
                f"{data['threshold']:g}",
                f"{data['random_return']:.1f}",
                f"{minutes:.1f}",
                held_from(data),
                below_later(data),
            ]
        )
        made_rows.append(
            [
                data["env_id"],
                f"{data['runs'][0]['config']['train_ratio']:g}",
                str(data["runs"][0]["config"]["action_repeat"]),
                ", ".join(str(run["seed"]) for run in data["runs"]),
                data["cpu"],
                f"`python {SCRIPTS[task]}.py --seed K`",
            ]
        )
    note = (
        '"Held from": the first of two consecutive evaluations (20 greedy episodes each) with a '
        "mean at or above the threshold; median over seeds, a seed that never held counting as "
        'last. "Below it later": how many of the evaluations from there on fell below it. Minutes '
        "on different hardware do not compare."
    )
    made = f"How the runs were made:\n\n{markdown(made_rows)}"
    return "\n\n".join([markdown(found_rows), note, made])


def held_from(data: dict[str, Any]) -> str:
    """When two consecutive evaluations first held the threshold: median step and minutes."""
    step, minutes = median_held(data)
    got_there, seeds = seeds_that_held(data), len(data["runs"])
    count = "" if got_there == seeds else f" ({got_there} of {seeds} seeds)"
    return "never" if step == math.inf else f"step {step:,}, {minutes:.1f} minutes{count}"


def seeds_that_held(data: dict[str, Any]) -> int:
    """How many seeds of a results file ever held the threshold."""
    return sum(held(run, data["threshold"])[0] < math.inf for run in data["runs"])


def median_held(data: dict[str, Any]) -> tuple[float, float]:
    """(step, minutes) of the median seed of a results file (`held`); of an even number of seeds
    the later one in the middle."""
    return sorted(held(run, data["threshold"]) for run in data["runs"])[len(data["runs"]) // 2]


def held(run: dict[str, Any], threshold: float) -> tuple[float, float]:
    """(step, minutes) of the first of two consecutive evaluations whose means are at or above the
    threshold; infinite where there are none."""
    evals = [row for row in run["diagnostics"] if row["kind"] == "eval"]
    for a, b in zip(evals, evals[1:], strict=False):
        if min(a["return"], b["return"]) >= threshold:
            return a["step"], a["minutes"]
    return math.inf, math.inf


def below_later(data: dict[str, Any]) -> str:
    """Of the evaluations since the threshold was first held, how many fell below it again."""
    below = total = 0
    for run in data["runs"]:
        first, _ = held(run, data["threshold"])
        later = [
            row["return"]
            for row in run["diagnostics"]
            if row["kind"] == "eval" and row["step"] >= first
        ]
        below += sum(value < data["threshold"] for value in later)
        total += len(later)
    return f"{below} of {total}" if total else "-"


def comparison(results_dir: Path, baselines_dir: Path) -> Comparison:
    """Our results files beside those of the methods in `BASELINES`, None where one is missing."""
    found = {}
    for task, ours in load(results_dir).items():
        paths = {method: baselines_dir / f"{task}_{method}.json" for method in BASELINES[task]}
        found[task] = {"dreamer": ours} | {
            method: json.loads(path.read_text()) if path.exists() else None
            for method, path in paths.items()
        }
    return found


def sample_efficiency(results_dir: Path) -> str:
    """Figure, table and sentences of the comparison in Markdown, as far as it has been measured."""
    compared = comparison(results_dir, results_dir / "sample_efficiency")
    if not any_baseline(compared):
        return "Not measured yet: `python 07_sample_efficiency.py --jobs 2`."
    image = (
        "![Greedy return against environment steps on a logarithmic axis: Dreamer and the "
        "baselines on four tasks](assets/07_sample_efficiency.png)"
    )
    return f"{image}\n\n{sample_efficiency_table(compared)}"


def any_baseline(compared: Comparison) -> bool:
    """Whether any baseline has been measured on any task."""
    return any(data for methods in compared.values() for data in list(methods.values())[1:])


def sample_efficiency_table(compared: Comparison) -> str:
    """A row for each task and method, and for each task who was first."""
    head = [
        "Task",
        "Method",
        "Environment steps",
        "Seeds",
        "Held from step",
        "Seeds that held",
        "Below it later",
        "Minutes until held",
        "Mean of seeds",
        "Worst seed",
        "Minutes per seed",
        "CPU minutes per seed",
        "Hardware",
    ]
    rows = [head, ["---"] * len(head)]
    first = []
    for methods in compared.values():
        env_id = methods["dreamer"]["env_id"]
        for method, data in methods.items():
            name = figures.METHODS[method].name
            if data is None:
                rows.append([env_id, name, "not measured yet", *["-"] * (len(head) - 3)])
                continue
            rows.append([env_id, name, *comparison_cells(data)])
        first.append(f"- {env_id}: {who_was_first(methods)}")
    note = (
        '"Held from": the first of two consecutive evaluations (20 greedy episodes each) with a '
        "mean at or above the threshold; the baselines are evaluated at steps a constant factor "
        "apart, as on the figure's axis (≈: nearer than two evaluations are). Both of the "
        "median seed, one that never held as last; "
        '"below it later" are the evaluations from there on that fell below the threshold; '
        "the means are of the final evaluation (100 greedy episodes). Evaluations take part in "
        "Dreamer's minutes, not in the baselines'; minutes on different hardware compare roughly."
    )
    return markdown(rows) + "\n\n" + "\n".join(first) + "\n\n" + note


def comparison_cells(data: dict[str, Any]) -> list[str]:
    """What a results file says of its method, after task and method in the table."""
    runs = data["runs"]
    step, minutes = median_held(data)
    means = [np.mean(run["final_returns"]) for run in runs]
    cpu = [run["cpu_minutes"] for run in runs if "cpu_minutes" in run]
    return [
        f"{max(run['env_steps'] for run in runs):,}",
        ", ".join(str(run["seed"]) for run in runs),
        "never" if step == math.inf else f"{step:,}",
        f"{seeds_that_held(data)} of {len(runs)}",
        below_later(data),
        "never" if step == math.inf else f"{minutes:.1f}",
        f"{np.mean(means):.1f}",
        f"{np.min(means):.1f}",
        f"{np.mean([run['minutes'] for run in runs]):.1f}",
        optional(float(np.mean(cpu)) if cpu else None, ".1f"),
        data["cpu"],
    ]


def who_was_first(methods: dict[str, dict[str, Any] | None]) -> str:
    """A task's methods by environment steps, and by minutes, until the threshold was held, with
    the seeds that got there where not all did, and whose final mean is below the threshold."""
    when, below, hardware = {}, [], set()
    for method, data in methods.items():
        if data:
            name, seeds = figures.METHODS[method].name, len(data["runs"])
            final = np.mean([np.mean(run["final_returns"]) for run in data["runs"]])
            if final < data["threshold"]:
                below.append(name)
            if 0 < seeds_that_held(data) < seeds:
                name += f" ({seeds_that_held(data)} of {seeds} seeds)"
            when[name] = median_held(data)
            if seeds_that_held(data):
                hardware.add(data["cpu"])
    held_by = [name for name, (step, _) in when.items() if step < math.inf]
    never = [name for name in when if name not in held_by]
    parts = []
    if held_by:
        by_steps = sorted(held_by, key=lambda name: when[name][0])
        by_minutes = sorted(held_by, key=lambda name: when[name][1])
        steps = f"{by_steps[0]} {when[by_steps[0]][0]:,}"
        for before, name in itertools.pairwise(by_steps):
            near = when[name][0] <= TIE * when[before][0]
            steps += f"{' ≈' if near else ','} {name} {when[name][0]:,}"
        minutes = ", ".join(f"{name} {when[name][1]:.1f}" for name in by_minutes)
        unlike = " (not on the same hardware)" if len(hardware) > 1 else ""
        parts += [f"by environment steps {steps}", f"by minutes{unlike} {minutes}"]
    if never:
        parts.append(f"not held by {', '.join(never)}")
    if below:
        parts.append(f"final mean below the threshold: {', '.join(below)}")
    return "; ".join(parts) + "."


def benchmark_table(results_dir: Path) -> str:
    """The benchmark's table in Markdown, from benchmark.json if that is there."""
    path = results_dir / "benchmark.json"
    if not path.exists():
        command = "python -m lab.benchmark --json assets/results/benchmark.json"
        return f"Not measured yet: `{command}`."
    return speed_table(json.loads(path.read_text()))


def speed_table(data: dict[str, Any]) -> str:
    """What `python -m lab.benchmark` found, in Markdown: a table and a few sentences."""
    head = [
        "Shape",
        "Threads",
        "GFLOP per update",
        "Matrix rate, GFLOP/s",
        "Floor, ms",
        "Eager, ms",
        "Eager / floor",
        "Compiled, ms",
        "Compiled / floor",
        "CPU time of floor / eager / compiled, ms",
        "Compile time, s",
    ]
    rows = [head, ["---"] * len(head)]
    for shape, values in data["shapes"].items():
        for threads, floor in values["floor_ms"].items():
            eager, compiled = (values["update_ms"][threads][k] for k in ("eager", "compiled"))
            cpu = [values["cpu_floor_ms"][threads], *values["cpu_ms"][threads].values()]
            rows.append(
                [
                    shape,
                    threads,
                    f"{values['gflop']:.2f}",
                    f"{data['gflops'][threads]:.1f}",
                    f"{floor:.1f}",
                    f"{eager:.1f}",
                    f"{eager / floor:.2f}",
                    optional(compiled, ".1f"),
                    optional(compiled and compiled / floor, ".2f"),
                    " / ".join(optional(value, ".1f") for value in cpu),
                    optional(values["compile_s"][threads], ".1f"),
                ]
            )
    replay = data["replay_sample_us"]
    facts = [
        "Aims, in units of the floor: " + "; ".join(aims(data)) + ".",
        f"Acting in CartPole: {data['acting_steps_per_s']:.0f} environment steps per second, with "
        "a choice at each.",
        "Sampling a batch from the replay: "
        + ", ".join(f"{us:.0f} μs from {int(rows_held):,} rows" for rows_held, us in replay.items())
        + ".",
    ]
    if data["memory_mb"]:
        parts = (
            f"{m['process']:.0f} MB ({shape}; {m['update']:.0f} MB of it for the updates)"
            for shape, m in data["memory_mb"].items()
        )
        facts.append(f"Largest memory of the process: {', '.join(parts)}.")
    facts.append(f"Measured on: {data['cpu']}{' (quick)' if data['quick'] else ''}.")
    return markdown(rows) + "\n\n" + "\n".join(facts)


def faults_table(results_dir: Path) -> str:
    """What the long fault tests found, in Markdown, from faults.json if that is there."""
    path = results_dir / "faults.json"
    if not path.exists():
        return "Not measured yet: `python -m pytest -m slow tests/test_faults_slow.py`."
    rows = [["Fault", "Measured", "Command"], ["---"] * 3]
    for found in json.loads(path.read_text()).values():
        rows.append([found["fault"], found["found"], f"`{found['command']}`"])
    return markdown(rows)


def ablations_table(results_dir: Path) -> str:
    """What each idea buys, in Markdown, from ablations.json if that is there."""
    path = results_dir / "ablations.json"
    if not path.exists():
        return "Not measured yet: `python 08_ablations.py --jobs 2`."
    data = json.loads(path.read_text())
    head, *rest = effects.rows(data)
    titles: dict[str, list[str]] = {}
    for told in data["tasks"].values():
        titles.setdefault(told["why"], []).append(told["title"])
    tasks = "\n".join(f"- {'; '.join(names)}: {why}." for why, names in titles.items())
    curves = "![What becomes of the learning curve without an idea](assets/08_ablations.png)"
    dreams = "![Error of dreams against their length, without an idea](assets/08_dreams.png)"
    table = markdown([head, ["---"] * len(head), *rest])
    said = "What a run without the idea does, and what the intervals say of it:"
    ideas = "\n".join(f"- {sentence}" for sentence in effects.sentences(data))
    scales = scales_table(data, results_dir)
    return "\n\n".join([curves, table, effects.note(data), tasks, said, ideas, dreams, scales])


def scales_table(data: effects.Results, results_dir: Path) -> str:
    """Returns of one task with rewards of all sizes. On the plain task those of the model-free
    methods come from the other comparison."""
    plain = {}
    for method in BASELINES["pendulum"]:
        path = results_dir / "sample_efficiency" / f"pendulum_{method}.json"
        runs = json.loads(path.read_text())["runs"] if path.exists() else []
        plain[method] = [float(np.mean(run["final_returns"])) for run in runs]
    head, *rest = effects.scale_rows(data, plain)
    sentence = (
        "Pendulum again, with all rewards multiplied: greedy return at the end, in units of the "
        "plain task, mean over seeds (worst seed). One configuration each: Dreamer after "
        f"{data['tasks'][data['scales'][0]]['config']['steps']:,} steps (last evaluation); PPO "
        "and SAC with the hyperparameters and steps that were found for the plain task, where "
        "rewards are not normalised."
    )
    return f"{sentence}\n\n{markdown([head, ['---'] * len(head), *rest])}"


def aims(data: dict[str, Any]) -> list[str]:
    """For each aim in `AIMS`, what was measured: the lower of the eager and the compiled ratio."""
    found = []
    for shape, threads, most in AIMS:
        values = data["shapes"][shape]
        ratio = min(
            time / values["floor_ms"][count]
            for count in threads
            for time in values["update_ms"][count].values()
            if time is not None
        )
        verdict = "met" if ratio <= most else f"missed by {100 * (ratio / most - 1):.0f}%"
        found.append(
            f"{shape} on {' or '.join(threads)} thread(s) at most {most:g}: {ratio:.2f}, {verdict}"
        )
    return found


def optional(value: float | None, form: str) -> str:
    """A number in this format, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def markdown(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# Each generated part of the README: its name, and what makes it from assets/results. The part
# lies between the lines `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
BLOCKS: dict[str, Callable[[Path], str]] = {
    "results": table,
    "sample_efficiency": sample_efficiency,
    "benchmark": benchmark_table,
    "faults": faults_table,
    "ablations": ablations_table,
}


def render(text: str, results_dir: Path) -> str:
    """`text` with every generated part made anew. Raises ValueError where a marker is missing."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, found_begin, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found_begin or not found_end:
            raise ValueError(f"the markers {begin.strip()} and {end} are not there, in this order")
        text = before + begin + make(results_dir).strip() + "\n" + end + after
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Rewrite the README's generated parts from assets/results beside it."
    )
    parser.add_argument("--readme", type=Path, required=True)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if outdated")
    parser.add_argument(
        "--figures", action="store_true", help="redraw the figures of returns and speed"
    )
    args = parser.parse_args()
    try:
        text = args.readme.read_text()
        fresh = render(text, args.readme.parent / "assets" / "results")
    except (OSError, ValueError) as error:
        sys.exit(f"{args.readme}: {error}")
    if args.figures:
        draw_figures(args.readme.parent / "assets")
    if args.check and fresh != text:
        sys.exit(f"{args.readme} is out of date: python -m lab.results --readme {args.readme}")
    if fresh != text:
        write_atomic(args.readme, lambda temporary: temporary.write_text(fresh))


if __name__ == "__main__":
    main()
