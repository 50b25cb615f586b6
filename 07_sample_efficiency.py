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
the same command again finishes what a crash or Ctrl-C left.
"""

import math
import shutil
from pathlib import Path
from typing import Any

from lab import baselines, campaign, cli, figures, results
import numpy as np

FIGURE = "07_sample_efficiency.png"
TASKS = {  # our own runs, which are never made here
    task: data for task, data in results.load_tasks().items() if data["env_id"] in baselines.ZOO
}
THEIRS = results.RESULTS / "sample_efficiency"  # the committed runs of the others
PLANNED = [(task, method) for task in TASKS for method in baselines.ZOO[TASKS[task]["env_id"]]]
SMOKE = [pair for pair in PLANNED if pair[0] in ("cartpole", "pendulum")]
Comparison = dict[str, dict[str, dict[str, Any] | None]]  # task -> method -> its results file
COLUMNS = (
    "Task; Method; Environment steps; Seeds; Seeds that solved it; Solved at step; "
    "Minutes until then; Below it later; Mean of seeds; Worst seed; Minutes per seed; "
    "CPU minutes per seed; Hardware"
).split("; ")
NOTE = """
Solved: the first of two consecutive evaluations (20 greedy episodes each) with a mean at or above
the threshold. Steps and minutes are those of the median seed; a seed that never solves the task
ranks last. Below it later: how many of the evaluations from there on. The means are of the final
evaluation, 100 greedy episodes. Dreamer's minutes include its evaluations, the baselines' do not;
minutes on different hardware compare roughly."""


def settings(task: str, method: str, seed: int, smoke: bool) -> dict[str, Any]:
    """All that the result of a run depends on."""
    return baselines.settings(TASKS[task]["env_id"], method, seed, smoke)


def make(*key: Any) -> dict[str, Any]:
    """Train and judge."""
    run = baselines.run(settings(*key))
    return {**run, "return": float(np.mean(run["final_returns"]))}


def committed() -> campaign.Runs:
    files = {pair: results.load(THEIRS / "{}_{}.json".format(*pair)) for pair in PLANNED}
    return {
        (*pair, run["seed"]): run for pair, data in files.items() if data for run in data["runs"]
    }


def gather(folder: Path, complete: campaign.Runs, smoke: bool) -> Comparison:
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
    rows = [COLUMNS]
    for methods in compared.values():
        for method, data in methods.items():
            cells = cells_of(data) if data else ["not measured yet", *["-"] * 10]
            name = "Dreamer" if method == "dreamer" else method.upper()
            rows.append([methods["dreamer"]["env_id"], name, *cells])
    return rows


def cells_of(data: dict[str, Any]) -> list[str]:
    """What a results file says of its method."""
    runs = data["runs"]
    step, minutes, count, below, later = results.solved(data)
    solved = [f"{step:,}", f"{minutes:.1f}"] if step < math.inf else ["never", "never"]
    means = [np.mean(run["final_returns"]) for run in runs]
    cpu = [run["cpu_minutes"] for run in runs if "cpu_minutes" in run]
    return [
        f"{max(run['env_steps'] for run in runs):,}",
        ", ".join(str(run["seed"]) for run in runs),
        f"{count} of {len(runs)}",
        *solved,
        f"{below} of {later}" if later else "-",
        f"{np.mean(means):.1f}",
        f"{np.min(means):.1f}",
        f"{np.mean([run['minutes'] for run in runs]):.1f}",
        f"{np.mean(cpu):.1f}" if cpu else "-",
        data["cpu"],
    ]


def main() -> int:
    flags = campaign.parse_flags(__file__, __doc__, "methods", PLANNED, SMOKE)
    if not (flags.plot_only or flags.publish or baselines.sb3):
        cli.fail("it takes Stable-Baselines3: pip install 'stable-baselines3>=2.9,<3'", status=1)
    _, complete, good = campaign.run(flags, settings, make, committed())
    compared = gather(flags.folder, complete, flags.smoke)
    figures.sample_efficiency_figure(compared, flags.folder / FIGURE)
    print(f"{results.markdown(table(compared))}\n{NOTE}\n")
    print(f"Figure: {cli.short(flags.folder / FIGURE)}")
    if flags.publish:
        campaign.publish(flags, THEIRS)
    return 0 if good else 1


if __name__ == "__main__":
    cli.run(main)
