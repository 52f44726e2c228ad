"""One process at a time writes into a run, and a lock that a crash leaves behind is no obstacle."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vgg_jax.errors import RunError
from vgg_jax.training import run_lock
from vgg_jax.training.run_lock import LOCK_FILE, Holder, RunLock

HOLD = """
import sys, time
from pathlib import Path
from vgg_jax.training import run_lock
run_lock.SECONDS_BETWEEN_BEATS = 0.1
exec(sys.argv[2])
lock = run_lock.RunLock(Path(sys.argv[1]))
lock.acquire(print)
print("held", flush=True)
time.sleep(60)
"""
NO_KERNEL_LOCK = """
import errno, fcntl
def flock(file, how):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch):
    monkeypatch.setattr(run_lock, "SECONDS_BETWEEN_BEATS", 0.1)


@pytest.fixture
def without_kernel_locks(monkeypatch):
    """Be on a file system of a network that has no locks."""

    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds the lock of the run in `tmp_path`."""
    started = []

    def start(preamble="") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), preamble], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def taken(path: Path) -> list[str]:
    """Take the lock and let go of it; returns what was noted."""
    notes: list[str] = []
    lock = RunLock(path)
    lock.acquire(notes.append)
    lock.check()
    lock.release()
    assert not (path / LOCK_FILE).exists()
    return notes


def test_a_free_lock_is_taken_in_silence(tmp_path):
    assert taken(tmp_path) == []
    assert taken(tmp_path) == []


def test_the_second_process_is_refused_and_told_who_holds_the_lock(hold, tmp_path):
    process = hold()
    with pytest.raises(RunError, match=rf"being trained by process {process.pid} on .*SIGTERM"):
        RunLock(tmp_path).acquire(pytest.fail)
    holder = RunLock(tmp_path).holder()
    assert holder is not None
    assert holder.pid == process.pid


def test_a_second_lock_in_the_same_process_is_refused(tmp_path):
    first = RunLock(tmp_path)
    first.acquire(pytest.fail)
    with pytest.raises(RunError, match=f"process {os.getpid()} on"):
        RunLock(tmp_path).acquire(pytest.fail)
    first.release()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(hold, tmp_path):
    process = hold()
    process.kill()
    process.wait()
    assert (tmp_path / LOCK_FILE).exists()
    assert RunLock(tmp_path).holder() is None
    begun = time.monotonic()
    (note,) = taken(tmp_path)
    assert f"was left by process {process.pid}" in note
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\x00", b'{"pid": []}'])
def test_a_torn_lock_is_taken_over(content, tmp_path):
    (tmp_path / LOCK_FILE).write_bytes(content)
    assert taken(tmp_path) == []


def test_without_locks_of_the_kernel_the_beat_tells(hold, without_kernel_locks, tmp_path):
    process = hold(NO_KERNEL_LOCK)
    notes: list[str] = []
    with pytest.raises(RunError, match=f"process {process.pid} on"):
        RunLock(tmp_path).acquire(notes.append)
    assert "Waiting to see" in notes[0]
    process.kill()
    process.wait()
    assert len(taken(tmp_path)) == 2  # waits, takes over


def test_another_machine_s_lock_is_watched_although_the_kernel_knows_of_none(tmp_path):
    other = Holder("elsewhere", "another boot", 4711, "token")
    (tmp_path / LOCK_FILE).write_bytes(other.as_bytes())
    holder = RunLock(tmp_path).holder()
    assert holder == other  # written just now
    os.utime(tmp_path / LOCK_FILE, (0, 0))
    assert RunLock(tmp_path).holder() is None
    notes = taken(tmp_path)
    assert "process 4711 on elsewhere still trains" in notes[0]
    assert "process 4711 on elsewhere, which has ended" in notes[1]


def test_a_process_that_was_taken_for_dead_ends_when_it_wakes(hold, without_kernel_locks, tmp_path):
    mine = RunLock(tmp_path)
    mine.acquire(pytest.fail)
    other = Holder("elsewhere", "another boot", 4711, "token")
    (tmp_path / LOCK_FILE).write_bytes(other.as_bytes())  # what the other machine did
    with pytest.raises(RunError, match="taken over by process 4711 on elsewhere"):
        mine.check()
    mine.release()
    assert json.loads((tmp_path / LOCK_FILE).read_bytes())["token"] == "token"


def test_of_two_that_take_a_stale_lock_at_once_one_gets_it(without_kernel_locks, tmp_path):
    (tmp_path / LOCK_FILE).write_bytes(Holder("elsewhere", "boot", 4711, "token").as_bytes())
    code = HOLD.replace("time.sleep(60)", "time.sleep(3)")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), NO_KERNEL_LOCK],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert sum("held" in out for out, _ in outputs) <= 1, outputs
    assert any("is being trained by" in err for _, err in outputs), outputs


def test_a_folder_that_was_deleted_is_noticed(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lock = RunLock(run)
    lock.acquire(pytest.fail)
    (run / LOCK_FILE).unlink()
    run.rmdir()
    with pytest.raises(RunError, match="deleted or moved while it was being trained"):
        lock.check()
    lock.release()
    assert not run.exists()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / LOCK_FILE).mkdir()  # a fault that root meets too
    with pytest.raises(RunError, match=r"lock .* cannot be written"):
        RunLock(tmp_path).acquire(pytest.fail)


def test_the_beat_goes_on_whatever_the_clock_says(monkeypatch, tmp_path):
    lock = RunLock(tmp_path)
    lock.acquire(pytest.fail)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    before = Holder.from_bytes((tmp_path / LOCK_FILE).read_bytes())
    time.sleep(0.35)
    now = Holder.from_bytes((tmp_path / LOCK_FILE).read_bytes())
    lock.release()
    assert before is not None
    assert now is not None
    assert now.beat > before.beat
