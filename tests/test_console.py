"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import dataclasses
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from vgg_jax.cli.console import LineProgress
from vgg_jax.progress import EpochMetrics, format_bytes, format_seconds

METRICS = EpochMetrics(1, 10, 12.5, 80.0, 1.25, 0.5, 1.5, 0.75, 1e-3)


def test_plain_lines_hold_what_an_epoch_gave(capsys):
    progress = LineProgress()
    progress.epoch_started(1, 3, 10)
    progress.step_done(1, 80.0, 1.0, 0.5)
    progress.epoch_done(METRICS, True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "epoch 1/3  12.5 s  80.0 images/s  loss 1.2500  accuracy 0.500  "
        "validation loss 1.5000  accuracy 0.750  best\n"
    )


def test_short_epochs_are_told_in_milliseconds(capsys):
    progress = LineProgress()
    progress.epoch_started(1, 3, 10)
    short = dataclasses.replace(METRICS, seconds=0.0124, images_per_second=52_345.6)
    progress.epoch_done(short, False)
    assert "epoch 1/3  12 ms  52,346 images/s  loss" in capsys.readouterr().err


def test_long_epochs_give_a_sign_of_life(capsys, monkeypatch):
    progress = LineProgress()
    progress.epoch_started(1, 3, 10)
    later = time.monotonic() + 11
    monkeypatch.setattr("time.monotonic", lambda: later)
    progress.step_done(4, 80.0, 1.0, 0.5)
    progress.step_done(5, 80.0, 1.0, 0.5)
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/3  step 4/10  80.0 images/s  loss 1.0000  accuracy 0.500"
    ]


@pytest.mark.parametrize(
    ("unit", "total", "lines"),
    [
        ("images", 90, ["Working: 90 images", "Working: 30 of 90"]),
        ("bytes", 58_889_256, ["Working: 58.9 MB", "Working: 30 bytes of 58.9 MB"]),
    ],
)
def test_plain_lines_say_how_far_work_is(capsys, monkeypatch, unit, total, lines):
    progress = LineProgress()
    progress.work_started("Working", total, unit)
    progress.work_done(10)  # too early for a line
    later = time.monotonic() + 11
    monkeypatch.setattr("time.monotonic", lambda: later)
    progress.work_done(20)
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (65_536, "65.5 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (58_889_256, "58.9 MB"),
        (2_500_000_000_000, "2500.0 GB"),
    ],
)
def test_bytes_are_said_as_people_say_them(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00123, "1.2 ms"),
        (0.00949, "9.5 ms"),
        (0.0096, "10 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (105.2, "1 min 45 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (100_000, "27 h 47 min"),
    ],
)
def test_durations_are_shown_in_the_unit_that_people_use(seconds, text):
    assert format_seconds(seconds) == text


def test_a_terminal_shows_a_bar():
    """In a pseudo-terminal, as a user has one."""
    text = _shown_on_a_terminal("""
progress.epoch_started(1, 3, 10)
for step in range(1, 11):
    progress.step_done(step, 80.0, 1.0, 0.5)
    time.sleep(0.02)
progress.epoch_done(METRICS, True)
""")
    for part in ("epoch 1/3", "10/10", "80.0 images/s", "validation loss 1.5000"):
        assert part in text, text


def test_a_terminal_shows_the_speed_of_a_download():
    """And an evaluation after it counts images again, with the first bar gone."""
    text = _shown_on_a_terminal("""
progress.work_started("Downloading", 50_000_000, unit="bytes")
for _ in range(10):
    progress.work_done(5_000_000)
    time.sleep(0.02)
progress.work_started("Evaluating", 10)
progress.work_done(10)
""")
    download, evaluation = text.split("Evaluating", 1)
    assert "50.0/50.0 MB" in download, text
    assert re.search(r"[\d.]+ [MG]B/s", download), text
    assert "10/10 images" in evaluation, text
    assert "B/s" not in evaluation, text


def _shown_on_a_terminal(calls: str) -> str:
    """Return what a pseudo-terminal shows while the code in `calls` reports to `progress`."""
    code = f"""
from vgg_jax.cli.console import console_progress
from test_console import METRICS
import time
progress = console_progress()
{calls}
progress.close()
"""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=slave,
        env={**os.environ, "PYTHONPATH": "tests", "TERM": "xterm", "COLUMNS": "140"},
    )
    os.close(slave)
    shown = b""
    while select.select([master], [], [], 120)[0]:
        try:
            shown += os.read(master, 4096)
        except OSError:  # the terminal is gone with the process
            break
    os.close(master)
    assert process.wait(timeout=120) == 0
    return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown.decode())  # without colours and the like


def test_imports_are_not_looked_through_for_garbage():
    code = """
import gc
from vgg_jax.cli.console import importing

def looked_through(generation):
    return gc.get_stats()[generation]["collections"]

before = looked_through(0)
with importing():
    import jax
assert looked_through(0) == before
assert gc.isenabled()
assert gc.get_freeze_count() > 10_000  # what is there now is never looked through
frozen = gc.get_freeze_count()
with importing():  # nothing is new, and the garbage of what was done since stays garbage
    assert gc.isenabled()
assert gc.get_freeze_count() == frozen
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_import_that_fails_leaves_the_search_for_garbage_on():
    code = """
import gc
from contextlib import suppress
from vgg_jax.cli.console import importing

with suppress(ModuleNotFoundError), importing():
    import no_such_module
assert gc.isenabled()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
