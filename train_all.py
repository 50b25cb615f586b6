"""Run the scripts 01 to 06 and 09, or some of them, with one or several seeds.

    python train_all.py                                      everything in order, seed 0
    python train_all.py --only 02 05                         two of the scripts
    python train_all.py --seeds 0 1 2 3 4 --jobs 2           five seeds, two runs at a time
    python train_all.py --seeds 0 1 2 3 4 --jobs 2 --publish ... and update assets/

What is complete is skipped and what was begun goes on from its checkpoint, so the same command
again finishes what a crash or Ctrl-C left; --fresh begins anew. Each job is a process of its own
that writes to runs/<script>/seed<k>/, what it prints to output.txt there. When one fails the others
go on; the exit status is then 1.

--publish is the one thing that writes assets/: the runs' numbers, the agent of each task's median
seed, the figures, and 04's pictures of these agents. The comparisons, 07 and 08, take hours and are
run by themselves.
"""

import argparse
import dataclasses
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import cli, results
from lab.jobs import Job, run_jobs, summary

from dreamer.checkpoint import write_atomic

LAST = "04"  # looks at what the others have learned
KEPT = {"01": "world_model_demo.json", "04": "visualize.json"}  # results that are no learning curve


@dataclass(frozen=True, kw_only=True)
class ScriptJob(Job):
    """One run of one script."""

    env_id: str  # "" and 0 where the script makes no learning curve
    threshold: float


def make_job(path: Path, name: str, seed: int, flags: argparse.Namespace) -> ScriptJob:
    """A script's job, with the folder, below runs/`name`, and config that it itself will find."""
    task = name[len(path.stem) + 1 :]  # of a script that has several
    argv = ["--seed", str(seed), *(["--task", task] if task else [])]
    argv += [] if flags.fresh else ["--resume"]
    argv += ["--smoke"] if flags.smoke else []
    argv += ["--out", str(flags.out)] if flags.out else []
    argv += ["--steps", str(flags.steps)] if flags.steps is not None else []
    argv += ["--shipped"] if flags.publish and path.name.startswith(LAST) else []
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    args = cli.parse(path, None, module.CONFIG, argv, getattr(module, "Args", cli.Args))
    env_id, threshold = getattr(module, "ENV", ""), getattr(module, "THRESHOLD", 0)
    if task:
        env_id, threshold = module.TASKS[task]
    return ScriptJob(
        name=name,
        seed=seed,
        command=[str(path), *argv],
        folder=str(args.run_dir),
        config=dataclasses.asdict(args.config),
        timeout=flags.timeout,
        threads=1 if flags.jobs > 1 else None,
        fresh=flags.fresh or path.name.startswith(LAST),
        env_id=env_id,
        threshold=threshold,
    )


# ---------------------------------------------------------------- what goes to assets/


def publish_task(task: str, job: ScriptJob, complete: list, assets: Path) -> None:
    """Numbers, agent and figure of a task, of its `complete_runs`."""
    if not complete:
        return
    entries = [result["entry"] for result, _ in complete]
    path = assets / "results" / f"{task}.json"
    data = results.merge(path, job.env_id, job.threshold, entries)
    figure = assets / f"{job.name[:2]}_{task}_training.png"
    results.draw(job.env_id, data["runs"], job.threshold, data["random_return"], figure)
    seed = median_seed(data["runs"])
    folder = Path(job.folder).parent / f"seed{seed}"
    kept = "kept, as it did not run here"
    if folder in [path for _, path in complete]:
        copy(folder / "agent.pt", assets / "agents" / f"{task}.pt")
        for path in folder.glob(f"{job.name[:2]}_*"):
            if path.stem != figure.stem:
                copy(path, assets / path.name)
        kept = "copied"
    print(f"{task}: {len(data['runs'])} seeds; agent of the median seed, {seed}, {kept}")


def complete_runs(job: ScriptJob) -> list[tuple[dict[str, Any], Path]]:
    """(result, folder) of each seed whose run was made with the job's config. Ends the program
    where one of them lacks its agent."""
    paths = sorted(Path(job.folder).parent.glob("seed*/result.json"))
    found = [(cli.read_json(path, "config", "entry"), path.parent) for path in paths]
    found = [run for run in found if results.same_but_seed(run[0]["config"], job.config)]
    for agent in [folder / "agent.pt" for _, folder in found]:
        if not agent.exists():
            cli.fail(f"{agent} is missing: nothing is published; make that run again", status=1)
    return found


def median_seed(runs: list[dict[str, Any]]) -> int:
    """By mean final return; of an even number, the lower of the middle two."""
    order = sorted((sum(run["final_returns"]), run["seed"]) for run in runs)
    return order[(len(order) - 1) // 2][1]


def publish_pictures(job: ScriptJob, assets: Path) -> None:
    """Pictures and numbers of a script that makes no learning curve."""
    number, folder = job.name[:2], Path(job.folder)
    for path in sorted(folder.glob(f"{number}_*")):
        copy(path, assets / path.name)
    copy(folder / "result.json", assets / "results" / KEPT[number])


def copy(source: Path, target: Path) -> None:
    write_atomic(target, lambda temporary: shutil.copyfile(source, temporary))


# ---------------------------------------------------------------- the command line


def parse_flags(numbers: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=numbers, default=numbers, metavar="NN")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="K")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--timeout", type=float, help="minutes after which a job is stopped")
    parser.add_argument("--fresh", action="store_true", help="skip nothing, resume nothing")
    parser.add_argument("--smoke", action="store_true", help="every stage in seconds")
    parser.add_argument("--out", type=cli.full_path, help="the folder to write to, instead of runs")
    parser.add_argument("--steps", type=float, help="environment steps of each script")
    parser.add_argument("--publish", action="store_true", help="bring what is complete to assets/")
    parser.add_argument("--assets", type=cli.full_path, default=cli.ASSETS, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.jobs < 1:
        parser.error(f"argument --jobs: must be at least 1, got {flags.jobs}")
    if flags.timeout is not None and not flags.timeout > 0:
        parser.error(f"argument --timeout: must be more than 0 minutes, got {flags.timeout}")
    if flags.publish and (flags.smoke or flags.steps is not None):
        parser.error("argument --publish: takes whole runs, not --smoke or --steps")
    return flags


def main() -> int:
    paths = {path.name[:2]: path for path in sorted(cli.ROOT.glob("0[1-69]_*.py"))}
    order = sorted(paths, key=lambda number: (number == LAST, number))
    flags = parse_flags(order)

    jobs = []
    for number in [number for number in order if number in flags.only]:
        path = paths[number]
        names = [name for name in results.SCRIPTS.values() if name.startswith(path.stem)]
        seeds = dict.fromkeys(flags.seeds) if names else flags.seeds[:1]
        names = names or [path.stem]
        jobs += [make_job(path, name, seed, flags) for seed in seeds for name in names]
    learning = [job for job in jobs if not job.name.startswith(LAST)]
    drawing = [job for job in jobs if job.name.startswith(LAST)]

    outcomes = list(run_jobs(learning, flags.jobs))
    if flags.publish:
        of_script = {job.name: job for job in learning}
        tasks = {task: of_script[s] for task, s in results.SCRIPTS.items() if s in of_script}
        complete = {task: complete_runs(job) for task, job in tasks.items()}
        for task, job in tasks.items():
            publish_task(task, job, complete[task], flags.assets)
    outcomes += run_jobs(drawing)
    if flags.publish:
        for outcome in outcomes:
            if outcome.good and outcome.job.name[:2] in KEPT:
                publish_pictures(outcome.job, flags.assets)
    print("\n" + summary(jobs, outcomes))
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    cli.run(main)
