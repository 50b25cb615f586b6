"""Sample efficiency: against what a user would pick instead.

PPO and DQN (on Pendulum PPO and SAC) of Stable-Baselines3, tuned and trained as in RL Baselines3
Zoo, against our own committed runs of one configuration. Five seeds each, all judged alike: greedy
episodes on fresh environments and seeds. You will see, in runs/07_sample_efficiency, return against
environment steps on a logarithmic axis, and a table of where we win and where we lose. Steps are
what a robot or a slow simulator costs; on environments as cheap as these ones, minutes count.

    python 07_sample_efficiency.py --plot-only                     figure and table, in seconds
    python 07_sample_efficiency.py --jobs 2                        what is missing: hours
    python 07_sample_efficiency.py --tasks cartpole --methods ppo  a part
    python 07_sample_efficiency.py --publish                       bring what is complete to assets/

What is complete, here or in assets/results, is skipped; a run that was begun begins anew.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import dreamer.cli
from dreamer.checkpoint import write_json
from lab import baselines, cli, engine, figures, results

NAME = "07_sample_efficiency"
TASKS = {  # our own runs, which are never made here
    task: data for task, data in results.load_tasks().items() if data["env_id"] in baselines.ZOO
}
METHODS = ("ppo", "dqn", "sac")
THEIRS = results.RESULTS / "sample_efficiency"  # the committed runs of the others
PLANNED = [(task, method) for task in TASKS for method in baselines.ZOO[TASKS[task]["env_id"]]]
SMOKE = [pair for pair in PLANNED if pair[0] in ("cartpole", "pendulum")]
NOTE = """
First reached: the threshold, at the first of two evaluations in a row (20 greedy episodes each) at
or above it; step and minutes of the median seed, a seed that never reaches it last. Below it later:
evaluations from there on. Solved: the mean of the 100 final greedy episodes is at or above it. The
means are of these. Dreamer's minutes include its evaluations, the baselines' do not.
"""


@dataclass(frozen=True)
class Flags(cli.JobFlags):
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tasks: tuple[Literal[tuple(TASKS)], ...] = tuple(TASKS)
    methods: tuple[Literal[METHODS], ...] = METHODS
    plot_only: bool = False  # run nothing


def settings(task: str, method: str, seed: int, smoke: bool) -> dict[str, Any]:
    """All that the result of a run depends on."""
    return baselines.settings(TASKS[task]["env_id"], method, seed, smoke)


def make(task: str, method: str, seed: int, smoke: bool, folder: str) -> None:
    """Train and judge: what a job does, in a process of its own."""
    run = baselines.run(settings(task, method, seed, smoke))
    write_json(Path(folder) / "result.json", run | {"return": float(np.mean(run["final_returns"]))})


def gather(folder: Path, complete: engine.Runs, smoke: bool) -> dict[str, dict[str, Any]]:
    """Task -> method -> its results file, or None: our committed runs beside those of the others,
    committed or complete, whose files come into the folder. A smoke run has only its own."""
    folder.mkdir(parents=True, exist_ok=True)
    compared = {task: {"dreamer": ours} for task, ours in TASKS.items()}
    for task, method in PLANNED:
        path = folder / f"{task}_{method}.json"
        path.unlink(missing_ok=True)
        if not smoke and (THEIRS / path.name).exists():
            shutil.copyfile(THEIRS / path.name, path)
        runs = [run for key, run in complete.items() if key[:2] == (task, method)]
        if runs:
            results.merge(path, TASKS[task]["env_id"], TASKS[task]["threshold"], runs)
        compared[task][method] = results.load(path)
    return compared


def table(compared: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Rows, the head first: one for each task and method."""
    pairs = [(task, method) for task in compared for method in compared[task]]
    rows = [row(task, method, compared[task][method]) for task, method in pairs]
    return [[*rows[0]], *([*row.values()] for row in rows)]


def row(task: str, method: str, data: dict[str, Any] | None) -> dict[str, str]:
    """What a results file says of its method, by column."""
    name = "Dreamer" if method == "dreamer" else method.upper()
    row = {"Task": TASKS[task]["env_id"], "Method": name}
    if not data:
        return row | {"": "not measured yet"}
    runs, of = data["runs"], f" of {len(data['runs'])}"
    step, minutes, count, below, later = results.first_reached(data)
    means = [np.mean(run["final_returns"]) for run in runs]
    return row | {
        "Environment steps": f"{max(run['env_steps'] for run in runs):,}",
        "Seeds": ", ".join(str(run["seed"]) for run in runs),
        "Seeds that reached it": f"{count}{of}",
        "First reached at step": f"{step:,}" if count > len(runs) // 2 else "never",
        "Minutes until then": f"{minutes:.1f}" if count > len(runs) // 2 else "never",
        "Below it later": f"{below} of {later}" if later else "-",
        "Seeds that solved it": f"{results.solved(data)}{of}",
        "Mean of seeds": f"{np.mean(means):.1f}",
        "Worst seed": f"{np.min(means):.1f}",
        "Minutes per seed": f"{np.mean([run['minutes'] for run in runs]):.1f}",
        "CPU minutes per seed": f"{np.mean([run['cpu_minutes'] for run in runs]):.1f}",
        "Hardware": data["cpu"],
    }


def main(flags: Flags) -> int:
    if not (baselines.INSTALLED or flags.plot_only or flags.publish):
        sys.exit("error: this takes Stable-Baselines3: pip install 'stable-baselines3>=2.9,<3'")
    files = {pair: results.load(THEIRS / "{}_{}.json".format(*pair)) for pair in PLANNED}
    known = {(*p, run["seed"]): run for p, data in files.items() if data for run in data["runs"]}
    planned, folder = SMOKE if flags.smoke else PLANNED, flags.base / NAME
    _, complete, good = engine.make_runs(NAME, flags, flags.methods, settings, planned, known)
    compared = gather(folder, complete, flags.smoke)
    figures.sample_efficiency_figure(compared, folder / f"{NAME}.png")
    print(f"{results.markdown(table(compared))}\n{NOTE}\nFigure: {cli.short(folder)}/{NAME}.png")
    if flags.publish:
        results.publish(folder, THEIRS)
    return 0 if good else 1


if __name__ == "__main__":
    cli.run(main, dreamer.cli.parse(Flags, __doc__))
