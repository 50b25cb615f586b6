"""Run all numbered scripts, or some of them, with one or several seeds.

    python train_all.py                                      everything in order, seed 0
    python train_all.py --only 02 05                         two of the scripts
    python train_all.py --seeds 0 1 2 3 4 --jobs 2           five seeds, two runs at a time
    python train_all.py --seeds 0 1 2 3 4 --dask HOST:8786   the same jobs on a Dask cluster

What is complete is skipped and what was begun goes on from its checkpoint, so the same command
again finishes what a crash or Ctrl-C left; --fresh begins anew. Each job is a process of its own
that writes to runs/<script>/seed<k>/output.txt. When one fails the others go on; the exit status
is then 1. At the end the agent of each task's median seed goes to assets/agents/<task>.pt, and
04_visualize.py runs last, on what was learned. Dask workers must see this folder under the same
path; a job whose worker dies is run again by Dask and resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from dreamer import cli, results
from dreamer.checkpoint import write_atomic

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

HERE = Path(__file__).resolve().parent
LAST = "04"  # looks at what the others have learned


@dataclass(frozen=True)
class Job:
    """One run of one script."""

    script: str
    seed: int
    argv: list[str]
    folder: str  # runs/<script>/seed<k>
    agents: str  # where the task's trained agent goes
    config: dict[str, Any]  # that the run will have
    timeout: float | None  # minutes
    threads: int | None  # None: as the script likes it
    fresh: bool


@dataclass(frozen=True)
class Outcome:
    script: str
    seed: int
    status: str  # "done", "complete", or what went wrong
    minutes: float  # of training, resumed parts included; of the job where there is no result
    ret: float | None = None  # mean return of the final evaluation
    reason: str = ""  # the last line that a failed run wrote

    @property
    def good(self) -> bool:
        return self.status in ("done", "complete")


# ---------------------------------------------------------------- one job


def result_of(folder: str | Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The `result.json` of a complete run with this config, else None."""
    path = Path(folder) / "result.json"
    result = json.loads(path.read_text()) if path.exists() else None
    return result if result and result.get("config") == config else None


def run_job(job: Job) -> Outcome:
    """Run a script to its end, unless it is complete. Never raises for what goes wrong in it."""
    started = time.monotonic()
    try:
        status, reason = attempt(job, started)
    except OSError as error:
        status, reason = "failed", str(error)
    result = result_of(job.folder, job.config) if status in ("done", "complete") else None
    if result:
        return Outcome(job.script, job.seed, status, result["minutes"], result.get("return"))
    minutes = (time.monotonic() - started) / 60
    return Outcome(job.script, job.seed, status, minutes, None, reason)


def attempt(job: Job, started: float) -> tuple[str, str]:
    """(status, reason) of a job.

    The run's process holds a lock on its output file for as long as it lives. A process that
    outlived the worker that started it is thus waited for, and never has a twin.
    """
    path = Path(job.folder) / "output.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = None if job.timeout is None else job.timeout * 60
    env = {**os.environ, "TQDM_MININTERVAL": "30"}
    if job.threads:
        env["OMP_NUM_THREADS"] = str(job.threads)
    with open(path, "ab") as output:
        while not lock(output):
            if seconds is not None and time.monotonic() - started > seconds:
                return "timed out", f"another process still writes {path}"
            time.sleep(0.5)
        if not job.fresh and result_of(job.folder, job.config):
            return "complete", ""
        print(f"{job.script} seed {job.seed}: running, output in {path}", flush=True)
        process = subprocess.Popen(
            [sys.executable, str(HERE / f"{job.script}.py"), *job.argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
        )
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "timed out", f"stopped after {job.timeout:g} minutes"
    except KeyboardInterrupt:  # the run gets it too, and saves its checkpoint
        process.wait(60)
        raise
    if code == 0:
        return "done", ""
    return f"killed by signal {-code}" if code < 0 else f"exit status {code}", last_line(path)


def lock(file) -> bool:
    """Whether the file's lock was free, and is now ours and our children's."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def last_line(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 10_000))
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace").strip())
    return lines[-1]


# ---------------------------------------------------------------- all jobs


def make_job(path: Path, seed: int, flags: argparse.Namespace) -> Job:
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
    threads = 1 if flags.jobs > 1 or flags.dask else None
    config = dataclasses.asdict(args.config)
    folders = str(args.run_dir), str(args.agents)
    return Job(path.stem, seed, argv, *folders, config, flags.timeout, threads, flags.fresh)


def run_jobs(jobs: list[Job], flags: argparse.Namespace) -> Iterator[Outcome]:
    """Outcomes as they come: from joblib's processes here, or from a Dask cluster."""
    if not flags.dask:
        parallel = Parallel(flags.jobs, batch_size=1, return_as="generator_unordered")
        yield from parallel(delayed(run_job)(job) for job in jobs)
        return
    from distributed import Client, as_completed

    with Client(flags.dask) as client:
        of = {client.submit(run_job, job, pure=False): job for job in jobs}
        for future in as_completed(of, raise_errors=False):
            if future.status == "finished":
                yield future.result()
            else:
                job = of[future]
                yield Outcome(job.script, job.seed, "lost", 0.0, None, repr(future.exception()))


def keep_agents(jobs: list[Job]) -> None:
    """Copy each task's agent, of the seed whose return is the median of all complete runs with
    the same config, to assets/agents. Of an even number, the lower of the two in the middle."""
    stem_of = {job.script: job for job in jobs}
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


def summary(outcomes: list[Outcome]) -> str:
    """A table of all jobs, and what the failed ones said last."""
    lines = [f"{'script':26} {'seed':>4} {'status':20} {'return':>8} {'minutes':>8}"]
    for o in outcomes:
        ret = "-" if o.ret is None else f"{o.ret:.1f}"
        lines.append(f"{o.script:26} {o.seed:>4} {o.status:20} {ret:>8} {o.minutes:>8.1f}")
    lines += [f"{o.script} seed {o.seed}: {o.reason}" for o in outcomes if not o.good]
    return "\n".join(lines)


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
    paths = {path.name[:2]: path for path in sorted(HERE.glob("[0-9][0-9]_*.py"))}
    flags = parse_flags(sorted(paths, key=lambda number: (number == LAST, number)))

    jobs = []
    for number in sorted(set(flags.only), key=lambda number: (number == LAST, number)):
        seeded = paths[number].stem in results.SCRIPTS.values()
        seeds = dict.fromkeys(flags.seeds) if seeded else flags.seeds[:1]
        jobs += [make_job(paths[number], seed, flags) for seed in seeds]
    learning = [job for job in jobs if not job.script.startswith(LAST)]

    outcomes = []
    try:
        for outcome in run_jobs(learning, flags):
            print(f"{outcome.script} seed {outcome.seed}: {outcome.status}", flush=True)
            outcomes.append(outcome)
        keep_agents(learning)
        outcomes += [run_job(job) for job in jobs if job not in learning]
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from the checkpoints.")
        return 130
    order = {(job.script, job.seed): i for i, job in enumerate(jobs)}
    outcomes.sort(key=lambda o: order[o.script, o.seed])
    print("\n" + summary(outcomes))
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
