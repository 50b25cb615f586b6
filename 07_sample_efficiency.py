"""Sample efficiency: against what a user would pick instead.

PPO and DQN (PPO and SAC on Pendulum) from Stable-Baselines3, with the hyperparameters and the
number of steps that RL Baselines3 Zoo found for each task, over five seeds, against our own
committed runs of one configuration. All are judged alike: greedy episodes on fresh environments
and seeds, while they learn and at the end.

You will see runs/07_sample_efficiency/07_sample_efficiency.png, return against environment steps
on a logarithmic axis (the others take many times our steps), and a table of where we win and where
we lose. Steps are what a robot or a slow simulator costs; on environments as cheap as these ones,
minutes count.

    python 07_sample_efficiency.py --plot-only                     figure and table, in seconds
    python 07_sample_efficiency.py --jobs 2                        what is missing: hours
    python 07_sample_efficiency.py --tasks cartpole --methods ppo  a part
    python 07_sample_efficiency.py --publish                       bring what is complete to assets/

Each run is a process of its own; what is complete, here or in assets/results, is skipped, so that
the same command again finishes what a crash or Ctrl-C left.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lab import cli, figures, results
from dreamer.checkpoint import write_json
from lab.jobs import Job, result_of, run_jobs, summary

try:
    from lab import baselines
except ModuleNotFoundError:  # --plot-only does without Stable-Baselines3
    baselines = None

SCRIPT = Path(__file__).resolve()
FIGURE = f"{SCRIPT.stem}.png"
TASKS = results.load_tasks()  # our own runs, which are never made here
THEIRS = results.RESULTS / "sample_efficiency"  # the committed runs of the others
BASELINES = {  # what a user would pick instead
    "cartpole": ["ppo", "dqn"],
    "pendulum": ["ppo", "sac"],
    "acrobot": ["ppo", "dqn"],
    "lunar_lander": ["ppo", "dqn"],
}
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


# ---------------------------------------------------------------- the runs


def make_job(task: str, method: str, seed: int, flags: argparse.Namespace) -> Job:
    """A run in a process of its own: this script with --run."""
    config = baselines.settings(TASKS[task]["env_id"], method, seed)
    if flags.smoke:
        config |= {"first_eval": 100, "evals": 2, "eval_episodes": 2, "final_episodes": 2}
        config["hyperparameters"] = config["hyperparameters"] | {"n_timesteps": 300}
    name = f"{task}_{method}"
    words = ["--run", task, method, str(seed), "--out", str(flags.out)]
    return Job(
        name=name,
        seed=seed,
        command=[str(SCRIPT), *words, *(["--smoke"] if flags.smoke else [])],
        folder=str(flags.folder / name / f"seed{seed}"),
        config=config,
        threads=1,
        fresh=flags.fresh,
    )


def run_one(job: Job) -> None:
    """Train and judge in this process; leave the result in the job's folder."""
    entry = baselines.run(job.config)
    write_json(
        Path(job.folder) / "result.json",
        {
            "return": float(np.mean(entry["final_returns"])),
            "minutes": entry["minutes"],
            "config": job.config,
            "entry": entry,
        },
    )


def run_all(flags: argparse.Namespace) -> bool:
    """Make the runs that are not complete; whether all went well."""
    jobs = [
        make_job(task, method, seed, flags)
        for seed in dict.fromkeys(flags.seeds)  # first, so that each method has a curve early
        for task in flags.tasks
        for method in BASELINES[task]
        if method in flags.methods
    ]
    if not flags.fresh:
        planned = len(jobs)
        jobs = [job for job in jobs if not is_committed(job)]
        if len(jobs) < planned:
            print(f"{planned - len(jobs)} of {planned} runs are in {cli.short(THEIRS)} already")
    outcomes = list(run_jobs(jobs, flags.jobs))
    print("\n" + summary(jobs, outcomes) + "\n")
    return all(outcome.good for outcome in outcomes)


def is_committed(job: Job) -> bool:
    data = results.load(THEIRS / f"{job.name}.json") or {"runs": []}
    return any(run["config"] == job.config for run in data["runs"])


# ---------------------------------------------------------------- what came of them


def gather(flags: argparse.Namespace) -> Comparison:
    """Our committed runs beside those of the others, committed or complete in this folder, which
    gets a results file of each; None where there are no runs. A smoke run has its own alone."""
    compared: Comparison = {}
    for task, ours in TASKS.items():
        compared[task] = {"dreamer": ours}
        for method in BASELINES[task]:
            path = flags.folder / f"{task}_{method}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if not flags.smoke and (THEIRS / path.name).exists():
                shutil.copyfile(THEIRS / path.name, path)
            complete = finished(task, method, flags) if baselines else []
            if complete:
                results.merge(path, ours["env_id"], ours["threshold"], complete)
            compared[task][method] = results.load(path)
    return compared


def finished(task: str, method: str, flags: argparse.Namespace) -> list[dict[str, Any]]:
    """The entries of the runs that are complete in this folder."""
    jobs = [make_job(task, method, seed, flags) for seed in flags.seeds]
    return [result["entry"] for job in jobs if (result := result_of(job))]


def table(compared: Comparison) -> list[list[str]]:
    """Rows, the head first: one for each task and method."""
    rows = [COLUMNS]
    for methods in compared.values():
        env_id = methods["dreamer"]["env_id"]
        for method, data in methods.items():
            cells = cells_of(data) if data else ["not measured yet", *["-"] * 10]
            name = "Dreamer" if method == "dreamer" else method.upper()
            rows.append([env_id, name, *cells])
    return rows


def cells_of(data: dict[str, Any]) -> list[str]:
    """What a results file says of its method."""
    runs = data["runs"]
    step, minutes = results.median_held(data)
    below, later = results.below_later(data)
    means = [np.mean(run["final_returns"]) for run in runs]
    cpu = [run["cpu_minutes"] for run in runs if "cpu_minutes" in run]
    return [
        f"{max(run['env_steps'] for run in runs):,}",
        ", ".join(str(run["seed"]) for run in runs),
        f"{results.seeds_that_held(data)} of {len(runs)}",
        "never" if step == math.inf else f"{step:,}",
        "never" if step == math.inf else f"{minutes:.1f}",
        f"{below} of {later}" if later else "-",
        f"{np.mean(means):.1f}",
        f"{np.min(means):.1f}",
        f"{np.mean([run['minutes'] for run in runs]):.1f}",
        f"{np.mean(cpu):.1f}" if cpu else "-",
        data["cpu"],
    ]


def publish(flags: argparse.Namespace) -> None:
    """Bring results files and figure to assets/."""
    THEIRS.mkdir(parents=True, exist_ok=True)
    for path in flags.folder.glob("*.json"):
        shutil.copyfile(path, THEIRS / path.name)
    shutil.copyfile(flags.folder / FIGURE, cli.ASSETS / FIGURE)
    print(f"Published to {cli.short(THEIRS)} and {cli.short(cli.ASSETS / FIGURE)}")


# ---------------------------------------------------------------- the command line


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks, methods = list(BASELINES), sorted({m for some in BASELINES.values() for m in some})
    parser.add_argument("--tasks", nargs="+", choices=tasks, help="default: all")
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--seeds", nargs="+", type=int, metavar="K", help="default: 0 1 2 3 4")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--fresh", action="store_true", help="run what is complete, too")
    parser.add_argument("--plot-only", action="store_true", help="run nothing")
    parser.add_argument("--publish", action="store_true", help="run nothing; write to assets/")
    parser.add_argument("--smoke", action="store_true", help="every stage in seconds")
    parser.add_argument("--out", type=Path, help="the folder to write to, instead of runs")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # a job's own process
    flags = parser.parse_args()
    if flags.jobs < 1:
        parser.error(f"argument --jobs: must be at least 1, got {flags.jobs}")
    if flags.publish and flags.smoke:
        parser.error("argument --publish: takes whole runs, not --smoke")
    flags.tasks = flags.tasks or (["cartpole", "pendulum"] if flags.smoke else tasks)
    flags.seeds = flags.seeds or ([0] if flags.smoke else [0, 1, 2, 3, 4])
    runs = SCRIPT.parent / "runs"
    flags.out = (flags.out or (runs / "smoke" if flags.smoke else runs)).resolve()
    flags.folder = flags.out / SCRIPT.stem
    return flags


def main() -> int:
    flags = parse_flags()
    idle = flags.plot_only or flags.publish
    if not idle and baselines is None:
        cli.fail("it takes Stable-Baselines3: pip install 'stable-baselines3>=2.9,<3'", status=1)
    if flags.run:
        task, method, seed = flags.run
        run_one(make_job(task, method, int(seed), flags))
        return 0
    try:
        good = idle or run_all(flags)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on with the runs that are not complete.")
        return 130
    compared = gather(flags)
    figures.sample_efficiency_figure(compared, flags.folder / FIGURE)
    print(f"{results.markdown(table(compared))}\n{NOTE}\n")
    print(f"Figure: {cli.short(flags.folder / FIGURE)}")
    if flags.publish:
        publish(flags)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
