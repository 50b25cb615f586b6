"""Run the scripts 01 to 06, or some of them, with one or several seeds.

    python train_all.py                                      everything in order, seed 0
    python train_all.py --only 02 05                         two of the scripts
    python train_all.py --seeds 0 1 2 3 4 --jobs 2           five seeds, two runs at a time
    python train_all.py --seeds 0 1 2 3 4 --dask HOST:8786   the same jobs on a Dask cluster

What is complete is skipped and what was begun goes on from its checkpoint, so the same command
again finishes what a crash or Ctrl-C left; --fresh begins anew. Each job is a process of its own
that writes to runs/<script>/seed<k>/output.txt. When one fails the others go on; the exit status
is then 1. At the end the agent of each task's median seed goes to assets/agents/<task>.pt, and
04_visualize.py runs last, on what was learned. Dask workers must see this folder under the same
path; a job whose worker dies is run again by Dask and resumes. The comparisons, 07 and 08, take
hours and are run by themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from dreamer.checkpoint import write_atomic
from lab import cli, results
from lab.jobs import Job, run_jobs, summary

HERE = Path(__file__).resolve().parent
LAST = "04"  # looks at what the others have learned


@dataclass(frozen=True, kw_only=True)
class ScriptJob(Job):
    """One run of one script."""

    agents: str  # where the task's trained agent goes


def make_job(path: Path, seed: int, flags: argparse.Namespace) -> ScriptJob:
    """A script's job, with the folder and config that the script itself will find."""
    argv = ["--seed", str(seed)]
    argv += [] if flags.fresh else ["--resume"]
    argv += ["--smoke"] if flags.smoke else []
    argv += ["--out", str(flags.out.resolve())] if flags.out else []
    argv += ["--steps", str(flags.steps)] if flags.steps is not None else []
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    args = cli.parse(path, None, module.CONFIG, argv)
    return ScriptJob(
        name=path.stem,
        seed=seed,
        command=[str(path), *argv],
        folder=str(args.run_dir),
        config=dataclasses.asdict(args.config),
        timeout=flags.timeout,
        threads=1 if flags.jobs > 1 or flags.dask else None,
        fresh=flags.fresh,
        agents=str(args.agents),
    )


def keep_agents(jobs: list[ScriptJob]) -> None:
    """Copy each task's agent, of the seed whose return is the median of all complete runs with
    the same config, to assets/agents. Of an even number, the lower of the two in the middle."""
    stem_of = {job.name: job for job in jobs}
    for task, stem in results.SCRIPTS.items():
        if stem not in stem_of:
            continue
        job = stem_of[stem]
        found = []
        for path in Path(job.folder).parent.glob("seed*/result.json"):
            result = json.loads(path.read_text())
            if results.same_but_seed(result["config"], job.config):
                found.append((result["return"], result["config"]["seed"], path.parent / "agent.pt"))
        if found:
            ret, seed, agent = sorted(found)[(len(found) - 1) // 2]
            target = Path(job.agents) / f"{task}.pt"
            write_atomic(target, lambda temporary, agent=agent: shutil.copyfile(agent, temporary))
            print(f"{target}: seed {seed}, return {ret:.1f}, the median of {len(found)}")


def parse_flags(numbers: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=numbers, default=numbers, metavar="NN")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="K")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--dask", metavar="ADDRESS", help="scheduler to send the jobs to")
    parser.add_argument("--timeout", type=float, help="minutes after which a job is stopped")
    parser.add_argument("--fresh", action="store_true", help="skip nothing, resume nothing")
    parser.add_argument("--smoke", action="store_true", help="every stage in seconds")
    parser.add_argument("--out", type=Path, help="all output goes below this folder")
    parser.add_argument("--steps", type=int, help="environment steps of each script")
    flags = parser.parse_args()
    if flags.jobs < 1:
        parser.error(f"argument --jobs: must be at least 1, got {flags.jobs}")
    if flags.timeout is not None and not flags.timeout > 0:
        parser.error(f"argument --timeout: must be more than 0 minutes, got {flags.timeout}")
    if flags.dask and importlib.util.find_spec("distributed") is None:
        parser.error("argument --dask: needs `pip install distributed`")
    return flags


def main() -> int:
    paths = {path.name[:2]: path for path in sorted(HERE.glob("0[1-6]_*.py"))}
    flags = parse_flags(sorted(paths, key=lambda number: (number == LAST, number)))

    jobs = []
    for number in sorted(set(flags.only), key=lambda number: (number == LAST, number)):
        seeded = paths[number].stem in results.SCRIPTS.values()
        seeds = dict.fromkeys(flags.seeds) if seeded else flags.seeds[:1]
        jobs += [make_job(paths[number], seed, flags) for seed in seeds]
    learning = [job for job in jobs if not job.name.startswith(LAST)]

    outcomes = []
    try:
        outcomes += run_jobs(learning, flags.jobs, flags.dask)
        keep_agents(learning)
        outcomes += run_jobs([job for job in jobs if job not in learning])
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from the checkpoints.")
        return 130
    print("\n" + summary(jobs, outcomes))
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
