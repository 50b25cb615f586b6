"""The machine that a run has: its signals, its threads, its memory."""

import contextlib
import ctypes
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import torch


class Signals:
    """Turns Ctrl-C, SIGTERM and SIGHUP into a `number`, for a run to look at when it can be saved.

    A second signal interrupts at once, unless it comes within a second (shells and `timeout` may
    send two in a row). Only the main thread hears signals; those that are ignored stay so.
    """

    number = 0

    def __enter__(self) -> Self:
        self.previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            asked = [n for n in signal.Signals if n.name in ("SIGINT", "SIGTERM", "SIGHUP")]
            heard = [n for n in asked if signal.getsignal(n) != signal.SIG_IGN]
            self.previous = {n: signal.signal(n, self.hear) for n in heard}
        return self

    def hear(self, number: int, _: Any) -> None:
        if not self.number:
            self.number, self.since = number, time.monotonic()
        elif time.monotonic() - self.since > 1:
            self.__exit__()
            signal.raise_signal(number)

    def stop(self) -> None:
        """Raise what the signal stands for."""
        by_hand = self.number == signal.SIGINT
        raise KeyboardInterrupt if by_hand else SystemExit(128 + self.number)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name; `auto` is CUDA where there is a GPU, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextlib.contextmanager
def fast_cpu(threads: int = 1) -> Iterator[None]:
    """`tune_cpu` within this block; afterwards threads and denormal numbers are as before."""
    before, flushed = torch.get_num_threads(), (torch.tensor([1e-40]) * 1).item() == 0
    tune_cpu(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(flushed)


def tune_cpu(threads: int = 1) -> None:
    """Make small tensors fast on a CPU, in this process.

    One thread: a second one gains less than a second run beside this one would
    (`python -m lab.benchmark`). Denormal numbers, slow to compute with, are flushed to zero. Freed
    memory is kept for the next update instead of being handed back page by page (glibc only).
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(ctypes.c_int(-3), ctypes.c_int(32 * 2**20))  # M_MMAP_THRESHOLD, bytes
        libc.mallopt(ctypes.c_int(-1), ctypes.c_int(2**30))  # M_TRIM_THRESHOLD, bytes


def memory() -> float:
    """Bytes of this machine; infinite where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf
