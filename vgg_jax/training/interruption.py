"""Signals that ask a training to stop: kept until it can, the second one ends the process."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether someone asked to stop."""

    def __init__(self) -> None:
        """Start without any signal."""
        self._signal_number: int | None = None

    @property
    def signal_number(self) -> int | None:
        """The first signal since `listening`; None while there was none."""
        return self._signal_number

    @contextmanager
    def listening(self) -> Generator[None]:
        """Keep the first SIGINT or SIGTERM meanwhile; a second ends the process at once.

        A signal that the process ignores stays ignored. To be called in the main thread.
        """
        # A thread that reads their numbers: the interpreter runs no handler while the main thread
        # compiles or computes, but writes the number of the signal at once.
        read_end, write_end = socket.socketpair()
        write_end.setblocking(False)
        before_fd = signal.set_wakeup_fd(write_end.fileno(), warn_on_full_buffer=False)
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, lambda number, frame: None)
        watcher = threading.Thread(target=self._watch, args=(read_end,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before_fd)
            write_end.close()
            watcher.join()
            read_end.close()

    def _watch(self, numbers: socket.socket) -> None:
        while received := numbers.recv(1):
            if received[0] not in _SIGNALS:
                continue
            if self._signal_number is not None:
                os._exit(128 + received[0])
            self._signal_number = received[0]
