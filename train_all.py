"""Run the scripts 01 to 06 and 09, or some of them, with one or several seeds.

    python train_all.py                                      everything in order, seed 0
    python train_all.py --only 02 05                         two of the scripts
    python train_all.py --seeds 0 1 2 3 4 --jobs 2           five seeds, two runs at a time
    python train_all.py --seeds 0 1 2 3 4 --jobs 2 --publish ... and update assets/

What is complete is skipped and what was begun goes on from its checkpoint, so the same command
again finishes what a crash or Ctrl-C left; --fresh begins anew. Each job is a process of its own
that writes to runs/<script>/seed<k>/, what it prints to output.txt there. When one fails the others
go on; the exit status is then 1. Several at a time, on one or more machines, take Dask
(docs/distributed.md).

--publish writes to assets/: the runs' numbers, the agent of each task's median seed, a table of
these agents, the figures, and 04's pictures of them. The comparisons, 07 and 08, take hours: run
them by themselves.
"""

import dataclasses
import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dreamer.cli
from dreamer.checkpoint import write_atomic
from lab import cli, results
from lab.engine import Job, portable, run_jobs

LAST = "04"  # looks at what the others have learned
STEMS = {path.name[:2]: path.stem for path in sorted(cli.ROOT.glob("0[1-69]_*.py"))}
NUMBERS = {"01": "world_model_demo.json", "04": "visualize.json"}  # that are no learning curve


@dataclass(frozen=True)
class Flags(cli.JobFlags):
    only: tuple[Literal[tuple(STEMS)], ...] = tuple(STEMS)
    steps: int | None = None  # environment steps of each script


def read(stem: str, words: list[str]) -> tuple[Any, cli.Args]:
    """A script's module and the flags that it reads from these words."""
    module = importlib.import_module(stem)
    kind = getattr(module, "Args", cli.Args)
    return module, cli.parse(module.__file__, None, module.CONFIG, words, kind)


def run_script(stem: str, words: list[str]) -> None:
    """What a job does, in a process of its own."""
    module, args = read(stem, words)
    module.main(args)


def make_job(stem: str, name: str, seed: int, flags: Flags) -> Job:
    """The job of a script with a seed. name: its folder in runs/, the stem and perhaps a task."""
    task = name[len(stem) + 1 :]
    words = ["--seed", str(seed), "--resume", "--out", portable(flags.base)]
    words += ["--task", task] if task else []
    words += ["--smoke"] if flags.smoke else []
    words += ["--steps", str(flags.steps)] if flags.steps else []
    words += ["--shipped"] if flags.publish and stem.startswith(LAST) else []
    config = dataclasses.asdict(read(stem, words)[1].config)
    folder, fresh = portable(flags.base / name / f"seed{seed}"), flags.fresh or stem[:2] == LAST
    return Job(f"{name}/seed{seed}", "train_all:run_script", [stem, words], folder, config, fresh)


def publish_task(task: str, job: Job) -> None:
    """Numbers, agent and figure of a task: of all its seeds that ran with the job's config."""
    found = map(results.load, sorted(job.path.parent.glob("seed*/result.json")))
    alike = [result for result in found if results.same_but_seed(result["config"], job.config)]
    if not alike:
        return
    env_id, threshold = alike[0]["env_id"], alike[0]["threshold"]
    path, entries = cli.ASSETS / "results" / f"{task}.json", [result["entry"] for result in alike]
    data = results.merge(path, env_id, threshold, entries)
    order = sorted((sum(run["final_returns"]), run["seed"]) for run in data["runs"])
    seed = order[(len(order) - 1) // 2][1]  # the median; of an even number, the lower one
    came = "kept, as it did not run here"
    if seed in [entry["seed"] for entry in entries]:
        copy_pictures(job.path.parent / f"seed{seed}")
        copy(job.path.parent / f"seed{seed}" / "agent.pt", cli.ASSETS / "agents" / f"{task}.pt")
        came = "copied"
    figure = cli.ASSETS / f"{job.name[:2]}_{task}_training.png"  # of all seeds
    results.draw(env_id, data["runs"], threshold, data["random_return"], figure)
    print(f"{task}: {len(data['runs'])} seeds; agent of the median seed, {seed}, {came}")


def copy_pictures(folder: Path) -> None:
    for path in folder.glob("0?_*"):
        copy(path, cli.ASSETS / path.name)


def copy(source: Path, target: Path) -> None:
    write_atomic(target, lambda temporary: shutil.copyfile(source, temporary))


def main(flags: Flags) -> int:
    jobs: dict[str, list[Job]] = {}  # of each task, or script without tasks
    for stem in [STEMS[number] for number in STEMS if number in flags.only]:
        tasks = {task: name for task, name in results.SCRIPTS.items() if name.startswith(stem)}
        seeds = dict.fromkeys(flags.seeds) if tasks else flags.seeds[:1]
        for task, name in (tasks or {stem: stem}).items():
            jobs[task] = [make_job(stem, name, seed, flags) for seed in seeds]
    drawing = jobs.pop(STEMS[LAST], [])
    failed = run_jobs(sum(jobs.values(), []), flags.jobs, flags.scheduler)
    for task in [task for task in jobs if flags.publish and task in results.SCRIPTS]:
        publish_task(task, jobs[task][0])
    if flags.publish:
        results.write_card()
    failed += run_jobs(drawing)
    for job in jobs.get(STEMS["01"], []) + drawing if flags.publish else []:
        if job not in failed:
            copy_pictures(job.path)
            copy(job.path / "result.json", cli.ASSETS / "results" / NUMBERS[job.name[:2]])
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main, dreamer.cli.parse(Flags, __doc__))
