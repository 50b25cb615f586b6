"""Files: atomic writes, sealed checkpoints, and a log without torn rows."""

import errno
import json
import os
import pickle
import re
import stat
from pathlib import Path

import pytest
import torch
from faults import Quota, flipped, log_rows, refusal
from hypothesis import given
from hypothesis import strategies as st

from dreamer.checkpoint import (
    FORMAT,
    CheckpointError,
    Log,
    load_checkpoint,
    read_log,
    save_checkpoint,
    seal,
    write_atomic,
    write_json,
)


def test_an_atomic_write_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=f"No space left on device: '{re.escape(str(path))}'"):
        write_atomic(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_cannot_sync_folders_is_no_reason_to_stop(tmp_path, monkeypatch):
    """As of some networks and shared folders."""
    real = os.fsync

    def fsync(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomic(tmp_path / "file", lambda path: path.write_text("x"))
    assert (tmp_path / "file").read_text() == "x"


def test_json_is_plain_and_has_no_nan(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"x": [1, 2.5]})
    assert json.loads(path.read_text()) == {"x": [1, 2.5]} and path.read_text().endswith("}\n")
    with pytest.raises(ValueError):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"x": [1, 2.5]}


def test_a_checkpoint_gives_back_what_went_in(tmp_path):
    path = tmp_path / "small.pt"
    value = {"x": torch.arange(3.0), "n": [1, 2.5, None, "a", True], "d": {"y": torch.ones(2) > 0}}
    save_checkpoint(path, value)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.pop("x"), value.pop("x"))
    assert torch.equal(loaded["d"].pop("y"), value["d"].pop("y"))
    assert loaded == value
    first = path.read_bytes().partition(b"\n")[0].decode()
    assert re.fullmatch(
        rf"dreamer-from-scratch checkpoint, format {FORMAT}, sha256 [0-9a-f]{{64}}", first
    )


def test_a_checkpoint_cut_at_every_tenth_is_refused(finished, tmp_path):
    content = (finished / "checkpoint.pt").read_bytes()
    path = tmp_path / "checkpoint.pt"
    for tenth in range(10):
        path.write_bytes(content[: len(content) * tenth // 10])
        text = refusal(path, lambda: load_checkpoint(path))
        assert re.search("damaged.*delete it and train again", text)
    path.write_bytes(content)
    assert load_checkpoint(path)["numbers"]["step"] == 60


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path_factory, finished, where, bit):
    content = (finished / "checkpoint.pt").read_bytes()
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    flipped(path, content, int(where * len(content)), bit)


@pytest.mark.parametrize("version", [FORMAT - 1, FORMAT + 1])
def test_a_checkpoint_of_another_format_is_refused(finished, tmp_path, version):
    path = tmp_path / "checkpoint.pt"
    data = (finished / "checkpoint.pt").read_bytes().partition(b"\n")[2]
    path.write_bytes(seal(data, str(version).encode()) + b"\n" + data)
    text = refusal(path, lambda: load_checkpoint(path))
    assert f"is of format {version}, this program reads {FORMAT}: use" in text


class Hostile:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_loading_executes_nothing(tmp_path):
    """Not even where the checksum is right."""
    trace, path = tmp_path / "executed", tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"agent": Hostile(trace)})
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Hostile(trace)))
    assert trace.exists()  # it is hostile indeed


def test_the_log_is_read_by_kind_and_goes_on_where_it_was_cut(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path)
    log.write("eval", 1, x=1)
    size = log.flush()
    assert size == path.stat().st_size
    log.write("report", 2, y=0.5)
    log.close()
    log = Log(path, size)  # the report is to be made again
    log.write("eval", 3)
    log.close()
    with pytest.raises(CheckpointError, match="has .* bytes, but 10000 when its checkpoint"):
        Log(path, 10_000)
    assert read_log(path, "report") == []
    assert read_log(path, "eval") == [
        {"kind": "eval", "step": 1, "x": 1},
        {"kind": "eval", "step": 3},
    ]


def test_a_log_row_is_written_whole_or_not_at_all(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.write("eval", 1, x=1)
    quota = Quota()
    quota.fill(tmp_path)
    try:
        log.write("eval", 2, x="y" * 3_000)
        log.write("eval", 3)
        with pytest.raises(OSError, match="not written: File too large"):
            log.flush()
        assert [row["step"] for row in log_rows(tmp_path)] == [1]
    finally:
        quota.free()
    log.write("eval", 4)
    assert log.flush() == (tmp_path / "log.jsonl").stat().st_size
    assert [row["step"] for row in log_rows(tmp_path)] == [1, 2, 3, 4]
