"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

from vgg_jax.cli.console import LineProgress
from vgg_jax.progress import EpochMetrics

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


def test_a_terminal_shows_a_bar():
    """In a pseudo-terminal, as a user has one."""
    code = """
from vgg_jax.cli.console import console_progress
from test_console import METRICS
import time
progress = console_progress()
progress.epoch_started(1, 3, 10)
for step in range(1, 11):
    progress.step_done(step, 80.0, 1.0, 0.5)
    time.sleep(0.02)
progress.epoch_done(METRICS, True)
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
    while select.select([master], [], [], 30)[0]:
        try:
            shown += os.read(master, 4096)
        except OSError:  # the terminal is gone with the process
            break
    os.close(master)
    assert process.wait(timeout=30) == 0
    text = shown.decode()
    for part in ("epoch 1/3", "10/10", "80.0 images/s", "validation loss 1.5000"):
        assert part in text, text
