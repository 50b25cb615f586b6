"""Long work as jobs: commands in processes of their own, several at a time, complete ones skipped.

A job has a folder. Its command writes `result.json` there at its very end, with at least `config`
(what it was run with) and `minutes`; what it prints goes to `output.txt`. A job whose result has
the config that is wanted is complete and is skipped, so that the same command again does only what
a crash or Ctrl-C left undone. When a job fails the others go on.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command, run for one seed."""

    name: str  # the same for all seeds
    seed: int
    command: list[str]  # the words after `python`: a script and its flags
    folder: str  # of its output.txt and result.json
    config: dict[str, Any]  # that its result must have; plain JSON values
    timeout: float | None = None  # minutes
    threads: int | None = None  # None: as the command likes it
    fresh: bool = False  # run it even if it is complete

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    job: Job
    status: str  # "done", "complete", or what went wrong
    minutes: float  # of training, resumed parts included; of the job where there is no result
    ret: float | None = None  # the result's `return`, if it has one
    reason: str = ""  # the last line that a failed job wrote

    @property
    def good(self) -> bool:
        return self.status in ("done", "complete")


# ---------------------------------------------------------------- one job


def result_of(job: Job) -> dict[str, Any] | None:
    """The `result.json` of a complete run with this job's config, else None."""
    path = Path(job.folder) / "result.json"
    result = json.loads(path.read_text()) if path.exists() else None
    return result if result and result.get("config") == job.config else None


def run_job(job: Job) -> Outcome:
    """Run a job to its end, unless it is complete. Never raises for what goes wrong in it."""
    started = time.monotonic()
    try:
        status, reason = attempt(job, started)
    except OSError as error:
        status, reason = "failed", str(error)
    result = result_of(job) if status in ("done", "complete") else None
    if result:
        return Outcome(job, status, result["minutes"], result.get("return"))
    minutes = (time.monotonic() - started) / 60
    return Outcome(job, status, minutes, None, reason)


def attempt(job: Job, started: float) -> tuple[str, str]:
    """(status, reason) of a job.

    The job's process holds a lock on its output file for as long as it lives. A process that
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
        if not job.fresh and result_of(job):
            return "complete", ""
        print(f"{job}: running, output in {path}", flush=True)
        process = subprocess.Popen(
            [sys.executable, *job.command],
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
    except KeyboardInterrupt:  # the job gets it too, and saves its checkpoint if it has one
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


# ---------------------------------------------------------------- many jobs


def run_jobs(jobs: list[Job], at_once: int = 1, dask: str | None = None) -> Iterator[Outcome]:
    """Run all jobs, begun in this order; says how each ended, and gives the outcomes as they come.

    at_once: processes at a time. dask: the address of a cluster's scheduler, which then takes the
    jobs instead (and runs the job of a worker that died again); its workers must see this folder
    under the same path.
    """
    outcomes = run_on_dask(jobs, dask) if dask else run_here(jobs, at_once)
    for outcome in outcomes:
        print(f"{outcome.job}: {outcome.status}", flush=True)
        yield outcome


def run_here(jobs: list[Job], at_once: int) -> Iterator[Outcome]:
    parallel = Parallel(at_once, batch_size=1, return_as="generator_unordered")
    return parallel(delayed(run_job)(job) for job in jobs)


def run_on_dask(jobs: list[Job], address: str) -> Iterator[Outcome]:
    import cloudpickle
    from distributed import Client, as_completed

    # Workers are started anywhere: they need not be able to import this package.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with Client(address) as client:
        of = {client.submit(run_job, job, pure=False): job for job in jobs}
        for future in as_completed(of, raise_errors=False):
            if future.status == "finished":
                yield future.result()
            else:
                yield Outcome(of[future], "lost", 0.0, None, repr(future.exception()))


def summary(jobs: list[Job], outcomes: list[Outcome]) -> str:
    """A table of all outcomes in the order of the jobs, and what the failed ones said last."""
    order = [(job.name, job.seed) for job in jobs]
    outcomes = sorted(outcomes, key=lambda o: order.index((o.job.name, o.job.seed)))
    width = max([len("job"), *(len(job.name) for job in jobs)])
    lines = [f"{'job':{width}} {'seed':>4} {'status':20} {'return':>8} {'minutes':>8}"]
    for o in outcomes:
        ret = "-" if o.ret is None else f"{o.ret:.1f}"
        begin = f"{o.job.name:{width}} {o.job.seed:>4}"
        lines.append(f"{begin} {o.status:20} {ret:>8} {o.minutes:>8.1f}")
    lines += [f"{o.job}: {o.reason}" for o in outcomes if not o.good]
    return "\n".join(lines)
