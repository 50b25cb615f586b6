"""Files that survive a crash: atomic writes, sealed checkpoints, the log.

A checkpoint is plain data (tensors, numbers, strings, lists, dictionaries): one line of text that
says what it is and carries a checksum, then the data as `torch.save` writes it.

    dreamer-from-scratch checkpoint, format 8, sha256 3f7a...

The checksum is verified before anything is read, and reading executes nothing that a file says.
"""

import hashlib
import io
import json
import math
import os
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

if sys.platform != "win32":
    import fcntl

FORMAT = 8  # of checkpoints; raised when their content changes
TITLE = "dreamer-from-scratch checkpoint, format {}, sha256 "
REMEDY = "put a good copy in its place, or delete it and train again"
NOTHING = hashlib.sha256().hexdigest()


class CheckpointError(ValueError):
    """A checkpoint, or the log beside it, cannot be used; the message says why and what to do."""


# ---------------------------------------------------------------- atomic writes


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Write to a temporary file beside `path`, then rename: `path` is never half a file, and an
    old one stays until the new one is safe on the disk. Raises OSError naming `path`, and
    ValueError where it is a folder or is in none."""
    if path.is_dir() or path.parent.is_file():
        what = "is a folder" if path.is_dir() else f"cannot be, as {path.parent} is a file"
        raise ValueError(f"{path} {what}: name a file in a folder")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if os.name == "posix":  # the new name itself must reach the disk too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise OSError(error.errno, f"not written: {error.strerror}", str(path)) from error


def write_json(path: Path, value: Any) -> None:
    """Atomic; indented as people read it."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text))


# ---------------------------------------------------------------- checkpoints


def seal(data: bytes | memoryview, version: int = FORMAT) -> bytes:
    """The first line of a checkpoint; its checksum covers the line's own words and the data."""
    title = TITLE.format(version).encode()
    digest = hashlib.sha256(title)
    digest.update(data)
    return title + digest.hexdigest().encode() + b"\n"


def save_checkpoint(path: Path | str, value: dict[str, Any]) -> None:
    """Write plain data as a checkpoint, atomically. Raises OSError naming `path`."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    data = buffer.getbuffer()

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(seal(data))
            file.write(data)

    write_atomic(Path(path).expanduser(), write)


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """What `save_checkpoint` wrote, tensors on the CPU.

    Raises CheckpointError for a file that is damaged, of another format, or no checkpoint, and
    OSError for one that cannot be read.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: name a file in it, such as agent.pt")
    first, newline, data = path.read_bytes().partition(b"\n")
    title = re.escape(TITLE).replace(re.escape("{}"), r"(\d{1,9})").encode()
    found = re.fullmatch(title + rb"[0-9a-f]{64}", first)
    if not found or seal(data, int(found[1])) != first + newline:
        raise CheckpointError(f"{path} is damaged or is no checkpoint: {REMEDY}")
    if int(found[1]) != FORMAT:
        raise CheckpointError(
            f"{path} is of format {int(found[1])}, but this program reads format {FORMAT}: use the "
            "version of the program that wrote it, or delete it and train again"
        )
    try:
        files = zipfile.ZipFile(io.BytesIO(data)).infolist()
        if sum(x.file_size for x in files) > len(data):  # `torch.save` compresses nothing
            raise ValueError("it unpacks to more than it is")
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch makes of data that `save_checkpoint` did not write
        raise CheckpointError(f"{path} holds something else than plain data: {REMEDY}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds something else than a checkpoint: {REMEDY}")
    return value


def check(value: Any, like: Any, name: str) -> None:
    """Raises ValueError where `value` has not the form of its example `like`, part by part.

    A dictionary has all its keys, a list as many parts; None is allowed where the example is a
    tuple (None, example). A tensor has the same type and shape, or any number of rows where the
    example has none. Numbers are finite, whole ones not negative.
    """
    parts: dict[Any, Any] = {}  # of the example
    if isinstance(like, tuple):
        if value is not None:
            check(value, like[1], name)
        return
    if isinstance(like, torch.Tensor):
        what = f"tensor of finite {like.dtype} and shape {tuple(like.shape)}"
        rows = like.shape[:1] == (0,)  # 1 where their number is free
        fits = (
            type(value) is torch.Tensor
            and (value.dtype, value.layout, value.ndim) == (like.dtype, like.layout, like.ndim)
            and value.shape[rows:] == like.shape[rows:]
            and value.nbytes <= value.untyped_storage().nbytes()  # no row stands for many
            and bool(value.isfinite().all())
        )
    elif isinstance(like, dict):
        lacking = like.keys() - (value.keys() if isinstance(value, dict) else set())
        what, parts = f"dictionary with {', '.join(map(str, lacking))}", like
        fits = isinstance(value, dict) and not lacking
    elif isinstance(like, list):
        what, parts = f"list of {len(like)}", dict(enumerate(like))
        fits = isinstance(value, list) and len(value) == len(like)
    elif type(like) is int:
        what, fits = "whole number", type(value) is int and 0 <= value < 2**128
    else:
        what = type(like).__name__
        fits = type(value) is type(like) and (what != "float" or math.isfinite(value))
    if not fits:
        raise ValueError(f"{name} is no {what}")
    for key, part in parts.items():
        check(value[key], part, f"{name}.{key}")


# ---------------------------------------------------------------- one run in one folder


class Lock:
    """Held by the one run that writes into a folder, until `release` or the end of its process,
    where system and disk have `flock`; elsewhere two runs in one folder are not found out.

    Makes the folder. Raises ValueError where another run has it or a file is in its place.
    """

    def __init__(self, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ValueError(f"{folder} cannot be a run's folder: a file is in its way") from None
        self.file = open(folder / ".lock", "w")
        if sys.platform == "win32":
            return
        os.register_at_fork(after_in_child=self.release)  # an orphaned simulator holds nothing
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ValueError(
                f"another run is writing into {folder}: wait for its end, or choose another folder"
            ) from None
        except OSError:
            pass  # a disk without locks

    def release(self) -> None:
        self.file.close()


# ---------------------------------------------------------------- the log


class Log:
    """`log.jsonl`: one JSON object a line, with `kind` (episode, report, eval) and `step`.

    size: bytes of an existing log to go on from, as `flush` returned them, and sha256 of them, as
    `digest` had it; what comes after them is cut off, as those rows will be made again. Raises
    CheckpointError, and touches nothing, where the log does not begin with these bytes.
    """

    def __init__(self, path: Path, size: int = 0, sha256: str = NOTHING):
        path.parent.mkdir(parents=True, exist_ok=True)
        found = path.stat().st_size if path.exists() else 0
        remedy = "put that log in its place, or delete the checkpoint and train again"
        if found < size:
            raise CheckpointError(
                f"{path} has {found} bytes, but the checkpoint beside it was made when it had "
                f"{size}: {remedy}"
            )
        self.digest = hashlib.sha256()  # of all that is written
        if size:
            with open(path, "rb") as file:
                self.digest.update(file.read(size))
        if self.digest.hexdigest() != sha256:
            raise CheckpointError(
                f"{path} is not the log that the checkpoint beside it was made with: {remedy}"
            )
        self.path, self.size = path, size
        self.unwritten = b""  # rows that the system would not take, the disk being full
        self.listen: Callable[[dict[str, Any]], None] = lambda row: None  # told of every row
        self.file = open(path, "ab", buffering=0)
        self.file.truncate(size)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add a row, and hand it to `listen`. Where the system refuses it, it is kept and tried
        again later."""
        row = {"kind": kind, "step": step, **values}
        self.listen(row)
        self.unwritten += json.dumps(row).encode() + b"\n"
        try:
            self._write_rows()
        except OSError:
            pass  # `flush`, called before every checkpoint, reports it

    def flush(self) -> int:
        """Bring all rows to the disk; returns the file's size in bytes. Raises OSError."""
        try:
            self._write_rows()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise OSError(error.errno, f"not written: {error.strerror}", str(self.path)) from error
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
        self.digest.update(self.unwritten)
        self.unwritten = b""

    def close(self) -> None:
        self.file.close()


def read_log(path: Path, kind: str) -> list[dict[str, Any]]:
    """All rows of one kind."""
    with open(path) as file:
        return [row for row in map(json.loads, file) if row["kind"] == kind]
