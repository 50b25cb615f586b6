"""Long work as jobs: each in a process of its own, several at a time, on one or many machines.

A job is a function that at its very end writes `result.json` into its folder, with the `config`
that it ran with. One whose result has the wanted config is complete and is skipped, so that the
same command again does only what was left undone. When one fails the others go on.

For several at a time Dask is the engine (docs/distributed.md). When a worker dies, another goes on
with its jobs from their last checkpoints, which the scheduler holds. Files come back through Dask.
"""

import contextlib
import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamer.checkpoint import write_atomic
from lab.cli import ROOT


@dataclass(frozen=True)
class Job:
    """A call in a process of its own, with the root of the repository as its working folder."""

    name: str
    function: str  # "module:function"
    arguments: Sequence[Any]  # of the function; plain JSON values
    folder: str  # of its files: from the root of the repository, wherever that is, or absolute
    config: dict[str, Any]  # that its result must have; plain JSON values
    fresh: bool = False  # run it even if it is complete, and in an empty folder

    @property
    def path(self) -> Path:
        return ROOT / self.folder

    def result(self) -> dict[str, Any] | None:
        """The result of a complete run with this job's config, else None."""
        path = self.path / "result.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        return found if found.get("config") == self.config else None

    def files(self) -> dict[str, bytes]:
        """What is in the folder: the checkpoint first, as the log beside it may have more rows but
        not fewer; result.json, the mark of a complete run, last."""
        ranks = {"checkpoint.pt": -1, "result.json": 1}
        paths = sorted(self.path.glob("[!.]*"), key=lambda path: ranks.get(path.name, 0))
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def write(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            write_atomic(self.path / name, lambda path, data=data: path.write_bytes(data))


def portable(folder: Path) -> str:
    """`Job.folder` of a folder of this machine."""
    return str(folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder)


def run_jobs(jobs: Sequence[Job], workers: int = 1, scheduler: str | None = None) -> list[Job]:
    """Run the jobs that are not complete, begun in this order: so many at a time on this machine,
    or on the workers of a Dask scheduler. Prints how each ended; returns those that failed."""
    missing, failed = [job for job in jobs if job.fresh or not job.result()], []
    for job in jobs:
        if job.fresh:
            shutil.rmtree(job.path, ignore_errors=True)
        elif job not in missing:
            print(f"{job.name}: complete")
    if missing:
        print(f"{len(missing)} of {len(jobs)} jobs to run; each writes output.txt into its folder")
    ends = ((job, run_job(job)) for job in missing)
    if scheduler or min(workers, len(missing)) > 1:
        ends = run_on_dask(missing, workers, scheduler)
    for job, error in ends:
        result = {} if error else job.result() or {}
        numbers = [f"{x} {result[x]:.1f}" for x in ("return", "minutes") if result.get(x)]
        print(", ".join([f"{job.name}: {error or 'done'}", *numbers]), flush=True)
        failed += [job] if error else []
    return failed


def run_on_dask(
    jobs: Sequence[Job], workers: int, scheduler: str | None
) -> Iterator[tuple[Job, str]]:
    """Each job as it ends, and "" or what went wrong."""
    try:
        from distributed import Client, as_completed
    except ImportError:
        install = "pip install 'dask[distributed]>=2025.1,<2027'"
        raise ValueError(f"several jobs at a time need Dask: {install}") from None
    logging.getLogger("distributed").setLevel(logging.ERROR)
    local = dict(n_workers=1, threads_per_worker=workers, dashboard_address="localhost:8787")
    # Jobs are processes: what waits for them on this machine may be threads of this process.
    with Client(scheduler, **({} if scheduler else {**local, "processes": False})) as client:
        known = client.list_datasets()
        for job in jobs:
            if job.fresh and job.folder in known:
                client.unpublish_dataset(job.folder)
            elif job.folder not in known and (files := job.files()):  # begun on this disk
                client.publish_dataset(files, name=job.folder)
        futures = {client.submit(run_on_worker, job, pure=False): job for job in jobs}
        for future in as_completed(list(futures)):
            job, error = futures.pop(future), future.exception()
            if not error:
                error, files = future.result()
                job.write(files)
            if not error:
                client.unpublish_dataset(job.folder)
            yield job, str(error or "")


def run_on_worker(job: Job) -> tuple[str, dict[str, bytes]]:
    """Run a job in a Dask worker, from its last checkpoint; "" or what went wrong, and its files.

    A new checkpoint goes to the scheduler within seconds. A job whose client is gone is stopped.
    """
    from distributed import get_client, get_worker

    client, worker, checkpoint = get_client(), get_worker(), job.path / "checkpoint.pt"
    key, published = worker.get_current_task(), 0
    if files := client.get_dataset(job.folder, default={}):
        job.write(files)
    elif job.fresh:
        shutil.rmtree(job.path, ignore_errors=True)

    def goes_on() -> bool:
        nonlocal published
        written = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        if written != published:
            client.publish_dataset(job.files(), name=job.folder, override=True)
            published = written
        return worker.state.tasks[key].state == "executing"

    return run_job(job, goes_on), job.files()


def run_job(job: Job, goes_on: Callable[[], bool] = lambda: True) -> str:
    """Run a job to its end, or until `goes_on`, asked every second, says no. Returns "" or what
    went wrong: the last line that the job has written to its output.txt."""
    path = job.path / "output.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "30"}
    command = [sys.executable, "-m", "lab.engine", job.function, json.dumps(job.arguments)]
    with open(path, "ab") as out:
        pipes = dict(stdin=subprocess.PIPE, stdout=out, stderr=out)
        process = subprocess.Popen(command, cwd=ROOT, env=env, **pipes)
    try:
        while process.poll() is None and goes_on():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
    finally:
        process.terminate()  # what still runs saves a checkpoint
        process.wait()
        process.stdin.close()
    last = " ".join(path.read_text(errors="replace").strip().splitlines()[-1:])
    code = process.returncode
    return f"exit status {code}: {last} (see {path})" if code else ""


# ---------------------------------------------------------------- the comparisons, 07 and 08

Key = tuple[str, str, int]  # task, variant (a model-free method, or an idea removed), seed
Runs = dict[Key, dict[str, Any]]  # what is kept of each run


def make_runs(
    script: str,
    flags: Any,
    variants: Sequence[str],
    settings: Callable[[str, str, int, bool], dict[str, Any]],
    planned: Sequence[tuple[str, str]],
    committed: Runs,
) -> tuple[Runs, Runs, bool]:
    """Make those runs that the flags choose, unless they are committed or complete.

    script: a module with `make(task, variant, seed, smoke, folder)`; settings: all that a result
    depends on, as plain JSON values; planned: all pairs of task and variant. Returns the committed
    runs with the settings of today, the complete ones of `flags.base`, and whether all went well.
    """
    jobs: dict[Key, Job] = {}
    for seed in flags.seeds[:1] if flags.smoke else flags.seeds:
        for key in [(*pair, seed) for pair in planned]:
            name = "{}/{}/seed{}".format(*key).replace(" ", "-")
            folder, config = portable(flags.base / script / name), settings(*key, flags.smoke)
            arguments = [*key, flags.smoke, folder]
            jobs[key] = Job(name, f"{script}:make", arguments, folder, config, flags.fresh)
    known = {
        key: run
        for key, run in committed.items()
        if key[:2] in planned and run["config"] == settings(*key, flags.smoke)
    }
    failed = []
    if not (flags.plot_only or flags.publish):
        chosen = [key for key in jobs if key[0] in flags.tasks and key[1] in variants]
        missing = [jobs[key] for key in chosen if flags.fresh or key not in known]
        print(f"{len(missing)} of {len(chosen)} runs are not in assets/results yet")
        failed = run_jobs(missing, flags.jobs, flags.scheduler)
    new = {key: result for key, job in jobs.items() if (result := job.result())}
    for result in new.values():
        result.pop("return", None)  # it is only shown
    return known, new, not failed


if __name__ == "__main__":  # a job's process
    # It ends with the one that began it, when their pipe does: another job may go on in its folder.
    threading.Thread(target=lambda: os.read(0, 1) or os._exit(1), daemon=True).start()
    module, _, function = sys.argv[1].partition(":")
    getattr(importlib.import_module(module), function)(*json.loads(sys.argv[2]))
