"""What the comparisons, 07 and 08, share: their flags, and runs that are made once.

A run is a task, a variant (a model-free method, or the agent without an idea) and a seed. All that
its result depends on is `settings(task, variant, seed, smoke)`, as plain JSON values. It is made in
a process of its own, unless a result with these settings is in its folder or in assets/results.
"""

import argparse
import itertools
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import cli
from lab.jobs import Job, result_of, run_jobs, summary

from dreamer.checkpoint import write_json

Key = tuple[str, str, int]  # task, variant, seed
Runs = dict[Key, dict[str, Any]]  # what is kept of each run
Pairs = list[tuple[str, str]]  # task, variant
OfKey = Callable[[str, str, int, bool], dict[str, Any]]  # of task, variant, seed, smoke


def parse_flags(script: str, text: str, what: str, planned: Pairs, smoke: Pairs) -> Namespace:
    """The command line of a comparison, given its `__file__` and `__doc__`.

    what: the flag that chooses among the variants. planned, smoke: all runs there are, without and
    with --smoke. The flags get `script`, `what`, `planned`, and a `folder` for all that is written.
    """
    path, few = Path(script).resolve(), "--smoke" in sys.argv
    planned = smoke if few else planned
    tasks, variants = (list(dict.fromkeys(names)) for names in zip(*planned, strict=True))
    seeds, runs = ([0], "runs/smoke") if few else ([0, 1, 2, 3, 4], "runs")
    look = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=text, formatter_class=look, allow_abbrev=False)
    add = parser.add_argument
    add("--tasks", nargs="+", choices=tasks, default=tasks)
    add(f"--{what}", nargs="+", choices=variants, default=variants, dest="variants")
    add("--seeds", nargs="+", type=int, default=seeds, metavar="K")
    add("--jobs", type=int, default=1, help="runs at a time, one thread each")
    add("--fresh", action="store_true", help="run what is complete, too")
    add("--plot-only", action="store_true", help="run nothing")
    add("--publish", action="store_true", help="run nothing; write to assets/")
    add("--smoke", action="store_true", help="every stage in seconds")
    add("--out", type=cli.full_path, default=path.parent / runs, help="the folder to write to")
    add("--here", action="store_true", help=argparse.SUPPRESS)  # what a run's own process does
    flags = parser.parse_args()
    if flags.jobs < 1:
        parser.error(f"argument --jobs: must be at least 1, got {flags.jobs}")
    if flags.publish and flags.smoke:
        parser.error("argument --publish: takes whole runs, not --smoke")
    flags.script, flags.what, flags.planned = path, what, planned
    flags.folder = flags.out / path.stem
    return flags


def make_jobs(flags: Namespace, settings: OfKey) -> dict[Key, Job]:
    """All planned runs of the first seed, then of the second, so that an unfinished measurement
    shows a little of everything."""
    jobs = {}
    for seed, (task, variant) in itertools.product(dict.fromkeys(flags.seeds), flags.planned):
        name = f"{task}/{variant.replace(' ', '-')}"
        command = [str(flags.script), "--here", "--out", str(flags.folder.parent)]
        command += ["--tasks", task, f"--{flags.what}", variant, "--seeds", str(seed)]
        jobs[task, variant, seed] = Job(
            name=name,
            seed=seed,
            command=command + ["--smoke"] * flags.smoke,
            folder=str(flags.folder / name / f"seed{seed}"),
            config=settings(task, variant, seed, flags.smoke),
            threads=1,
            fresh=flags.fresh,
        )
    return jobs


def run(flags: Namespace, settings: OfKey, make: OfKey, committed: Runs) -> tuple[Runs, Runs, bool]:
    """Make the runs that the flags choose, but for those that are complete.

    make: one run; what is kept of it, and a `return` to be shown. committed: those in
    assets/results. Returns the committed ones with the settings of today, the complete ones of this
    folder, and whether all went well. Ends the program in a run's own process.
    """
    jobs = make_jobs(flags, settings)
    chosen = [key for key in jobs if key[0] in flags.tasks and key[1] in flags.variants]
    if flags.here:
        for key in chosen:
            result = {"config": jobs[key].config, **make(*key, flags.smoke)}
            write_json(Path(jobs[key].folder) / "result.json", result)
        sys.exit()
    planned = {key: run for key, run in committed.items() if key[:2] in flags.planned}
    known = {
        key: run for key, run in planned.items() if run["config"] == settings(*key, flags.smoke)
    }
    good = True
    if not (flags.plot_only or flags.publish):
        missing = [jobs[key] for key in chosen if flags.fresh or key not in known]
        print(f"{len(missing)} of {len(chosen)} runs are not in assets/results yet")
        outcomes = list(run_jobs(missing, flags.jobs))
        print("\n" + summary(missing, outcomes) + "\n")
        good = all(outcome.good for outcome in outcomes)
    found = {key: result for key, job in jobs.items() if (result := result_of(job))}
    new = {key: {k: v for k, v in run.items() if k != "return"} for key, run in found.items()}
    return known, new, good


def publish(flags: Namespace, results: Path) -> None:
    """Bring the folder's JSON files to `results`, and its figures to assets/."""
    results.mkdir(parents=True, exist_ok=True)
    for path in flags.folder.glob("*.json"):
        shutil.copyfile(path, results / path.name)
    for path in flags.folder.glob("*.png"):
        shutil.copyfile(path, cli.ASSETS / path.name)
    print(f"Published to {cli.short(results)} and {cli.short(cli.ASSETS)}")
