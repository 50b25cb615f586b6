"""Files that survive a crash: atomic writes, sealed checkpoints, agents, the log of a run.

A checkpoint is plain data (tensors, numbers, strings, lists, dictionaries): one line of text that
says what it is and carries a checksum, then the data as `torch.save` writes it.

    dreamer-from-scratch checkpoint, format 9, sha256 3f7a...

The checksum is verified before anything is read, and reading executes nothing that a file says.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dreamer.agent import DreamerAgent
from dreamer.config import Config
from dreamer.machine import pick_device
from dreamer.replay_buffer import Layout

if sys.platform != "win32":
    import fcntl

AGENTS = Path(__file__).parents[1] / "assets" / "agents"  # those of the results, in a clone
REPOSITORY = "https://github.com/DrunkJin/dreamer-from-scratch"
FORMAT = 9  # of checkpoints; raised when their content changes
TITLE = "dreamer-from-scratch checkpoint, format "
REMEDY = "put a good copy in its place, or delete it and train again"
OTHER_PROGRAM = "use the version of the program that wrote it, or delete it and train again"


class CheckpointError(ValueError):
    """A checkpoint, or the log beside it, cannot be used; the message says why and what to do."""


# ---------------------------------------------------------------- atomic writes


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an OSError."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"not written: {error.strerror}", str(path)) from error


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Write to a temporary file beside `path`, then rename: `path` is never half a file, and an
    old one stays until the new one is safe on the disk. Makes the folder. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the new name must reach the disk too, where it can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented as people read it."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text))


# ---------------------------------------------------------------- checkpoints


def seal(data: bytes | memoryview, version: bytes) -> bytes:
    """The first line of a checkpoint; its checksum covers the line's own words and the data."""
    title = TITLE.encode() + version + b", sha256 "
    digest = hashlib.sha256(title)
    digest.update(data)
    return title + digest.hexdigest().encode()


def save_checkpoint(path: Path | str, value: dict[str, Any]) -> None:
    """Write plain data as a checkpoint, atomically. Raises OSError naming `path`."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    data = buffer.getbuffer()

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.writelines([seal(data, str(FORMAT).encode()), b"\n", data])

    write_atomic(Path(path).expanduser(), write)


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, tensors on the CPU.

    Raises CheckpointError for a file that is damaged, of another format, or not a checkpoint, and
    OSError for one that cannot be read.
    """
    path = Path(path).expanduser()
    first, _, data = path.read_bytes().partition(b"\n")
    version = first.removeprefix(TITLE.encode()).partition(b",")[0]
    if seal(data, version) != first:
        raise CheckpointError(f"{path} is damaged or is no checkpoint: {REMEDY}")
    if version != str(FORMAT).encode():
        raise CheckpointError(
            f"{path} is of format {version.decode()}, this program reads {FORMAT}: {OTHER_PROGRAM}"
        )
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


@contextlib.contextmanager
def fitting(path: Path | str) -> Iterator[None]:
    """Turn what fails in this block into a `CheckpointError`: the file's content does not fit."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} does not fit this program ({error!r:.200}): {OTHER_PROGRAM}"
        ) from error


# ---------------------------------------------------------------- agents


def agent_part(agent: DreamerAgent) -> dict[str, Any]:
    """What a checkpoint says of the agent itself."""
    return {
        "layout": dataclasses.asdict(agent.layout),
        "config": dataclasses.asdict(agent.config),
        "env_spec": agent.env_spec,
        "agent": agent.state_dict(),
    }


def save_agent(agent: DreamerAgent, path: Path | str) -> None:
    """Write the agent without its training: enough to act, and to make its environment again."""
    save_checkpoint(path, agent_part(agent))


def load_agent(path: Path | str, device: str = "auto") -> DreamerAgent:
    """Read an agent to act with, from `save_agent`'s file or from a checkpoint of `train`, or one
    of the repository's by its name, "cartpole".

    Raises CheckpointError when the file is damaged or does not fit this program, and ValueError
    where no agent has that name.
    """
    path = Path(path).expanduser().absolute()
    if not (path.suffix or path.exists()) and path.parent == Path.cwd():  # a bare word
        name, path = path.name, AGENTS / f"{path.name}.pt"
        if not path.exists():
            raise ValueError(f"no agent {name} in {AGENTS}: a clone of {REPOSITORY} has some there")
    saved = load_checkpoint(path)
    with fitting(path):
        layout, config = Layout(**saved["layout"]), Config(**saved["config"])
        agent = DreamerAgent(layout, config, pick_device(device))
        agent.load_state_dict(saved["agent"])
        agent.env_spec = saved["env_spec"]
    return agent


# ---------------------------------------------------------------- one run in one folder


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Within this block, or until the process ends, no other run writes into the folder, which is
    made; where system or disk lack `flock`, two runs in one folder are not found out.

    Raises ValueError where another run has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        if sys.platform != "win32":
            os.register_at_fork(after_in_child=file.close)  # an orphaned simulator holds nothing
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = "wait for its end, or choose another folder"
                raise ValueError(f"another run is writing into {folder}: {other}") from None
            except OSError:
                pass  # a disk without locks
        yield


class Log:
    """`log.jsonl`: one JSON object a line, with `kind` (episode, report, eval) and `step`.

    size: bytes of an existing log to go on from, as `flush` returned them; what comes after them is
    cut off, as those rows will be made again. Raises CheckpointError where the log is shorter.
    """

    def __init__(self, path: Path, size: int = 0):
        found = path.stat().st_size if path.exists() else 0
        if found < size:
            raise CheckpointError(
                f"{path} has {found} bytes, but {size} when its checkpoint was made: {REMEDY}"
            )
        self.path, self.size = path, size
        self.unwritten = b""  # rows that the system would not take, the disk being full
        self.listeners: list[Callable[[dict[str, Any]], None]] = []  # called with every row
        self.file = open(path, "ab", buffering=0)
        self.file.truncate(size)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add a row, and hand it to all listeners. Where the system refuses it, it is kept and
        tried again later."""
        row = {"kind": kind, "step": step, **values}
        for listen in self.listeners:
            with contextlib.suppress(OSError):  # curves are not worth a run
                listen(row)
        self.unwritten += json.dumps(row).encode() + b"\n"
        with contextlib.suppress(OSError):  # `flush`, called before every checkpoint, reports it
            self._write_rows()

    def flush(self) -> int:
        """Bring all rows to the disk; returns the file's size in bytes. Raises OSError."""
        with naming(self.path):
            self._write_rows()
            os.fsync(self.file.fileno())
        return self.size

    def _write_rows(self) -> None:
        """Append the unwritten rows: all of them or, in the end, none."""
        rest = self.unwritten
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError:
            self.file.truncate(self.size)
            raise
        self.size += len(self.unwritten)
        self.unwritten = b""

    def close(self) -> None:
        self.file.close()


def read_log(path: Path, kind: str) -> list[dict[str, Any]]:
    """All rows of one kind."""
    with open(path) as file:
        return [row for row in map(json.loads, file) if row["kind"] == kind]
