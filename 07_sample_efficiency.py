"""Sample efficiency: against what a user would pick instead.

PPO and DQN (PPO and SAC on Pendulum) from Stable-Baselines3, with the hyperparameters and the
number of steps that RL Baselines3 Zoo found for each task, over five seeds, against our own
committed runs of one configuration. All are judged alike: greedy episodes on fresh environments
and seeds, while they learn and at the end.

You will see assets/07_sample_efficiency.png: return against environment steps, on a logarithmic
axis, as the others take many times our steps. Steps are what a robot or a slow simulator costs; on
environments as cheap as these ones, minutes count. The README's table has both, where we win and
where we lose, made from assets/results/<task>.json and assets/results/sample_efficiency/.

    python 07_sample_efficiency.py --jobs 2                        all of it: hours
    python 07_sample_efficiency.py --tasks cartpole --methods ppo  a part
    python 07_sample_efficiency.py --plot-only                     figure and table anew

Each run is a process of its own; what is complete, here or in assets/results, is skipped, so that
the same command again finishes what a crash, Ctrl-C or another machine left.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dreamer.checkpoint import write_json
from lab import cli, figures, results
from lab.jobs import Job, result_of, run_jobs, summary

with contextlib.suppress(ModuleNotFoundError):  # --plot-only does without Stable-Baselines3
    from lab import baselines

SCRIPT = Path(__file__).resolve()
OURS = SCRIPT.parent / "assets" / "results"  # our own runs, which are never made here
TASKS = results.load(OURS)


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
        folder=str(flags.out / "runs" / SCRIPT.stem / name / f"seed{seed}"),
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


def known_runs(job: Job, folder: Path) -> list[dict[str, Any]]:
    """What the job's file of assets/results holds."""
    path = folder / f"{job.name}.json"
    return json.loads(path.read_text())["runs"] if path.exists() else []


def keep(job: Job, folder: Path) -> None:
    """Bring a complete job's result into its file of assets/results, unless it is there."""
    path, result = folder / f"{job.name}.json", result_of(job)
    if result and result["entry"] not in known_runs(job, folder):
        task = TASKS[job.name.rpartition("_")[0]]
        with results.record_entry(path, task["env_id"], task["threshold"], result["entry"]):
            pass


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = list(results.BASELINES)
    methods = sorted({method for found in results.BASELINES.values() for method in found})
    parser.add_argument("--tasks", nargs="+", choices=tasks, help="default: all")
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--seeds", nargs="+", type=int, metavar="K", help="default: 0 1 2 3 4")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--fresh", action="store_true", help="run what is complete, too")
    parser.add_argument("--plot-only", action="store_true", help="from the results that are there")
    parser.add_argument("--smoke", action="store_true", help="every stage in seconds")
    parser.add_argument("--out", type=Path, help="all output goes below this folder")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # a job's own process
    flags = parser.parse_args()
    if flags.jobs < 1:
        parser.error(f"argument --jobs: must be at least 1, got {flags.jobs}")
    flags.tasks = flags.tasks or (["cartpole", "pendulum"] if flags.smoke else tasks)
    flags.seeds = flags.seeds or ([0] if flags.smoke else [0, 1, 2, 3, 4])
    smoke_out = SCRIPT.parent / "runs" / "smoke"
    flags.out = (flags.out or (smoke_out if flags.smoke else SCRIPT.parent)).resolve()
    return flags


def train(flags: argparse.Namespace, folder: Path) -> bool:
    """Make the runs that are not complete, and keep them in `folder`; whether all went well."""
    jobs = [
        make_job(task, method, seed, flags)
        for seed in dict.fromkeys(flags.seeds)  # first, so that each method has a curve early
        for task in flags.tasks
        for method in results.BASELINES[task]
        if method in flags.methods
    ]
    if not flags.fresh:
        planned = len(jobs)
        jobs = [j for j in jobs if j.config not in (r["config"] for r in known_runs(j, folder))]
        if len(jobs) < planned:
            print(f"{planned - len(jobs)} of {planned} runs are in {folder} already")
    outcomes = []
    for outcome in run_jobs(jobs, flags.jobs):
        keep(outcome.job, folder)
        outcomes.append(outcome)
    print("\n" + summary(jobs, outcomes) + "\n")
    return all(outcome.good for outcome in outcomes)


def compare(folder: Path, figure: Path) -> None:
    """Draw and tabulate what there is."""
    compared = results.comparison(OURS, folder)
    if not results.any_baseline(compared):
        print("Nothing has been measured yet.")
        return
    figures.sample_efficiency_figure(compared, figure)
    print(results.sample_efficiency_table(compared))
    print(f"\nFigure: {figure}")


def main() -> int:
    flags = parse_flags()
    assets = flags.out / "assets"
    theirs = assets / "results" / "sample_efficiency"
    if not flags.plot_only and importlib.util.find_spec("stable_baselines3") is None:
        cli.fail("it takes Stable-Baselines3: pip install 'stable-baselines3>=2.9,<3'", status=1)
    if flags.run:
        task, method, seed = flags.run
        run_one(make_job(task, method, int(seed), flags))
        return 0
    try:
        good = flags.plot_only or train(flags, theirs)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on with the runs that are not complete.")
        return 130
    compare(theirs, assets / "07_sample_efficiency.png")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
