"""Files: atomic writes, sealed checkpoints, one run in a folder, a log without torn rows."""

import errno
import json
import os
import pickle
import re
import signal
import stat
import subprocess
import sys

import pytest
from faults import full_disk, log_rows, refusal, start

from dreamer.checkpoint import FORMAT, Log, load_checkpoint, lock, save_checkpoint, seal, write_json


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "new" / "folder" / "value.json"
    for value in ({"x": 1}, {"x": [1, 2.5]}):
        write_json(path, value)
        assert json.loads(path.read_text()) == value and list(path.parent.iterdir()) == [path]

    with full_disk(), pytest.raises(OSError, match=f"not written: File too large: '{path}'"):
        write_json(path, "long" * 1_000)
    with pytest.raises(ValueError):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == value and list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_disk_without_locks_that_cannot_sync_folders_is_no_reason_to_stop(tmp_path, monkeypatch):
    """As of some networks and shared folders."""
    real = os.fsync

    def fsync(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(file)

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr("fcntl.flock", flock)
    with lock(tmp_path):
        write_json(tmp_path / "file", 1)
    assert (tmp_path / "file").read_text() == "1\n"


def test_a_checkpoint_with_a_wrong_byte_or_an_early_end_is_refused(tmp_path):
    path = tmp_path / "small.pt"
    save_checkpoint(path, {"x": 1})
    content, title = path.read_bytes(), b"dreamer-from-scratch checkpoint, format %d, sha256 "
    assert re.match(title % FORMAT + b"[0-9a-f]{64}\n", content)
    wrong = [content[:i] for i in range(0, len(content), 31)] + [b"PK" + content]
    for i in [*range(content.index(b"\n") + 1), *range(0, len(content), 7)]:
        wrong.append(content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :])
    for damaged in wrong:
        path.write_bytes(damaged)
        text = refusal(path, lambda: load_checkpoint(path))
        assert re.search("damaged or is no checkpoint.*delete it and train again", text)
    path.write_bytes(content)
    assert load_checkpoint(path) == {"x": 1}


@pytest.mark.parametrize("version", [FORMAT - 1, FORMAT + 1])
def test_a_checkpoint_of_another_format_is_refused(tmp_path, version):
    path, data = tmp_path / "checkpoint.pt", b"whatever that format holds"
    path.write_bytes(seal(data, str(version).encode()) + b"\n" + data)
    text = refusal(path, lambda: load_checkpoint(path))
    assert f"is of format {version}, this program reads {FORMAT}: use" in text


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_loading_executes_nothing(tmp_path, monkeypatch):
    """Not even where the checksum is right."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("checkpoint.pt", {"agent": Hostile()})
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint("checkpoint.pt")
    assert not os.path.exists("executed")
    pickle.loads(pickle.dumps(Hostile()))
    assert os.path.exists("executed")  # it is hostile indeed


HOLDER = """
import os, sys, time
from pathlib import Path
from dreamer.checkpoint import lock

with lock(Path(sys.argv[1])):
    if os.fork():
        print("held", flush=True)
    time.sleep(60)  # one of the two is a simulator that outlives the run
"""


@pytest.mark.faults
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    own_session = {"stdout": subprocess.PIPE, "start_new_session": True}  # to end the orphan too
    with start("-c", HOLDER, tmp_path, **own_session) as child:
        try:
            assert child.stdout.readline() == "held\n"
            message = f"another run is writing into {tmp_path}: wait"
            with pytest.raises(ValueError, match=message), lock(tmp_path):
                pass
            child.kill()
            child.wait()
            os.killpg(child.pid, 0)  # the orphan lives
            with lock(tmp_path):
                pass
        finally:
            os.killpg(child.pid, signal.SIGKILL)


def test_a_log_row_is_written_whole_or_not_at_all(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.write("eval", 1, x=1)
    with full_disk():
        log.write("eval", 2, x="y" * 3_000)
        log.write("eval", 3)
        with pytest.raises(OSError, match="not written: File too large"):
            log.flush()
        assert [row["step"] for row in log_rows(tmp_path)] == [1]
    log.write("eval", 4)
    assert log.flush() == (tmp_path / "log.jsonl").stat().st_size
    assert [row["step"] for row in log_rows(tmp_path)] == [1, 2, 3, 4]
