"""Long work as jobs: commands in processes of their own, several at a time, complete ones skipped.

A job has a folder. Its command writes `result.json` there at its very end, with at least `config`
(what it was run with) and `minutes`; what it prints goes to `output.txt`. A job whose result has
the config that is wanted is complete and is skipped, so that the same command again does only what
a crash or Ctrl-C left undone. When a job fails the others go on.

Jobs hear no Ctrl-C of the terminal. They are asked to end (SIGTERM) after the first Ctrl-C, SIGTERM
or SIGHUP that comes here, and killed after a second.
"""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lab.cli import read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

GOOD = ("done", "complete")
GRACE = 60.0  # seconds that a job has to save its checkpoint and end
SIGNALS = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP")]


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
        return self.status in GOOD


class Stop:
    """What the signals that come within its `with` ask for."""

    number, kill = 0, False  # the first signal; whether a second one came

    def __enter__(self) -> Self:
        asked = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]  # as under nohup
        self.previous = {n: signal.signal(n, self.hear) for n in asked}
        return self

    def hear(self, number: int, _: Any) -> None:
        if not self.number:
            self.number, self.since = number, time.monotonic()
        elif time.monotonic() > self.since + 1:  # shells and `timeout` send the same one twice
            self.kill = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def result_of(job: Job) -> dict[str, Any] | None:
    """The result of a complete run with this job's config, else None. Names a damaged one."""
    try:
        result = read_json(Path(job.folder) / "result.json", "config", "minutes")
    except (OSError, ValueError) as error:
        return say(f"{job}: {error}")
    return result if result and result["config"] == job.config else None


def run_job(job: Job, stop: Stop | None = None) -> Outcome:
    """Run a job to its end, unless it is complete. Never raises for what goes wrong in it."""
    started = time.monotonic()
    try:
        status, reason = attempt(job, started, stop or Stop())
    except OSError as error:
        status, reason = "failed", str(error)
    result = (result_of(job) if status in GOOD else None) or {}
    minutes = result.get("minutes", (time.monotonic() - started) / 60)
    return Outcome(job, status, minutes, result.get("return"), reason)


def attempt(job: Job, started: float, stop: Stop) -> tuple[str, str]:
    """(status, reason) of a job.

    The job's process holds a lock on its output file for as long as it lives. A process that
    outlived the one that started it is thus waited for, and never has a twin.
    """
    if stop.number:
        return "not begun", ""
    path = Path(job.folder) / "output.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = started + 60 * (job.timeout or math.inf)
    threads = {"OMP_NUM_THREADS": str(job.threads)} if job.threads else {}
    with open(path, "ab") as output:
        if not lock(output):
            say(f"{job}: waiting for another process, which still writes {path}")
            while not lock(output):
                if stop.number or time.monotonic() > deadline:
                    return "waited in vain", f"another process still writes {path}"
                time.sleep(0.1)
        if not job.fresh and result_of(job):
            return "complete", ""
        say(f"{job}: running, output in {path}")
        begin = output.tell()
        process = subprocess.Popen(
            [sys.executable, *job.command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TQDM_MININTERVAL": "30", **threads},
            start_new_session=True,
        )
    while process.poll() is None and time.monotonic() < deadline and not stop.number:
        time.sleep(0.1)
    if process.poll() is None:
        if fcntl or not stop.number:  # on Windows Ctrl-C has reached it, too
            process.terminate()
        killed = time.monotonic() + GRACE
        while process.poll() is None and time.monotonic() < killed and not stop.kill:
            time.sleep(0.1)
        process.kill()
        process.wait()
        status = "stopped" if stop.number else "timed out"
        return status, f"stopped after {(time.monotonic() - started) / 60:.2g} minutes"
    if process.returncode == 0:
        return "done", ""
    code = process.returncode
    status = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    lines = path.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
    return status, "; ".join([*lines[-1:], f"see {path}"])


def lock(file) -> bool:
    """Whether the file's lock was free, and is now ours and our children's."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def say(text: str) -> None:
    print(text + "\n", end="", flush=True)  # in one piece, as several threads speak


def run_jobs(jobs: list[Job], at_once: int = 1) -> Iterator[Outcome]:
    """Run all jobs, begun in this order, so many at a time; says how each ended, and gives the
    outcomes as they come. After a signal it raises KeyboardInterrupt with its number."""
    with Stop() as stop, ThreadPoolExecutor(at_once) as pool:
        for future in as_completed([pool.submit(run_job, job, stop) for job in jobs]):
            outcome = future.result()
            if outcome.status != "not begun":
                say(f"{outcome.job}: {outcome.status}")
                yield outcome
    if stop.number:
        raise KeyboardInterrupt(stop.number)


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
    return "\n".join(lines + [f"{o.job}: {o.reason}" for o in outcomes if not o.good])
