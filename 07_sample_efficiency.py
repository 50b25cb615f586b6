"""Sample efficiency: against what a user would pick instead.

PPO and DQN (PPO and SAC on Pendulum) from Stable-Baselines3, with the hyperparameters and
training lengths of RL Baselines3 Zoo for each task, over five seeds, against our own committed runs
of one configuration. All are judged alike: greedy episodes on fresh environments and seeds.

You will see runs/07_sample_efficiency/07_sample_efficiency.png, return against environment steps
on a logarithmic axis, and a table of where we win and where we lose. Steps are what a robot or a
slow simulator costs; on environments as cheap as these ones, minutes count.

    python 07_sample_efficiency.py --plot-only                     figure and table, in seconds
    python 07_sample_efficiency.py --jobs 2                        what is missing: hours
    python 07_sample_efficiency.py --tasks cartpole --methods ppo  a part
    python 07_sample_efficiency.py --publish                       bring what is complete to assets/

Each run is a process of its own; what is complete, here or in assets/results, is skipped, so that
the same command again finishes what a crash or Ctrl-C left. A run that was begun begins anew.
"""

import shutil
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
Comparison = dict[str, dict[str, dict[str, Any] | None]]  # task -> method -> its results file
NOTE = """
First reached: the threshold, at the first of two evaluations in a row (20 greedy episodes each)
with a mean at or above it; step and minutes of the median seed, a seed that never reaches it last.
Below it later: evaluations from there on. Solved: the mean of the 100 final greedy episodes is at
or above it. The means are of these. Dreamer's minutes include its evaluations, the baselines' do
not; minutes on different hardware compare roughly."""


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


def gather(folder: Path, complete: engine.Runs, smoke: bool) -> Comparison:
    """Our committed runs beside those of the others, committed or complete in this folder, which
    gets a results file of each; None where there are no runs. A smoke run has its own alone."""
    folder.mkdir(parents=True, exist_ok=True)
    compared: Comparison = {task: {"dreamer": ours} for task, ours in TASKS.items()}
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


def table(compared: Comparison) -> list[list[str]]:
    """Rows, the head first: one for each task and method."""
    rows = []
    for methods in compared.values():
        ours = methods["dreamer"]
        head = ["Task", "Method", *cells(ours)]
        for method, data in methods.items():
            found = cells(data).values() if data else ["not measured yet", *["-"] * (len(head) - 3)]
            rows.append([ours["env_id"], "Dreamer" if data is ours else method.upper(), *found])
    return [head, *rows]


def cells(data: dict[str, Any]) -> dict[str, str]:
    """What a results file says of its method, by column."""
    runs, of = data["runs"], f" of {len(data['runs'])}"
    step, minutes, count, below, later = results.first_reached(data)
    means = [np.mean(run["final_returns"]) for run in runs]
    cpu = [run["cpu_minutes"] for run in runs if "cpu_minutes" in run]
    return {
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
        "CPU minutes per seed": f"{np.mean(cpu):.1f}" if cpu else "-",
        "Hardware": data["cpu"],
    }


def main(flags: Flags) -> int:
    if not (flags.plot_only or flags.publish):
        baselines.need_library()
    files = {pair: results.load(THEIRS / "{}_{}.json".format(*pair)) for pair in PLANNED}
    known = {(*p, run["seed"]): run for p, data in files.items() if data for run in data["runs"]}
    planned = SMOKE if flags.smoke else PLANNED
    _, complete, good = engine.make_runs(NAME, flags, flags.methods, settings, planned, known)
    folder = flags.base / NAME
    compared = gather(folder, complete, flags.smoke)
    figures.sample_efficiency_figure(compared, folder / f"{NAME}.png")
    print(f"{results.markdown(table(compared))}\n{NOTE}\n")
    print(f"Figure: {cli.short(folder / f'{NAME}.png')}")
    if flags.publish:
        results.publish(folder, THEIRS)
    return 0 if good else 1


if __name__ == "__main__":
    cli.run(main, dreamer.cli.parse(Flags, __doc__))
