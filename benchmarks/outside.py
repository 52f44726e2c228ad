"""What an epoch takes beyond its compiled programs, and where the main thread's time goes.

Run by epochs.py, in a process of its own; the argument is JSON of a training's options. The
training is the product's own. What is watched is watched from here: methods are wrapped by ones
that read a clock, and the programs' arguments of one epoch are held, to be run once more in a tight
loop.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import jax
import numpy as np

import vgg_jax.training.epoch as epoch_module
import vgg_jax.training.loop as loop_module
import vgg_jax.workflows.feed as feed_module
from vgg_jax.heap import keep_freed_memory
from vgg_jax.progress import EpochMetrics, Progress
from vgg_jax.training.checkpoint_store import CheckpointStore
from vgg_jax.training.position import Position
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.steps import Steps, Totals, TrainState
from vgg_jax.training.validation import closing_at_end
from vgg_jax.workflows.train import train

# The programs' arguments are held in epoch 2, the first where all is as in every later one. While
# epoch 3 goes on, the writing of a checkpoint falls into it again, as into those that are measured:
# epochs that took a second are all written.
RECORDED, SETTLED, LAST = 2, 3, 6
REPLAYS = 2  # before what is measured, and after it
PROGRAMS = ("features", "augmented_features", "mixed_features", "_pool", "train", "evaluate")
BATCH = "fetching batches"
CALLS = "calling programs"
WAITING = "waiting for training steps"
VALIDATION = "waiting for validation batches"
SAVING = "copying and checking what is saved"
WRITING = "waiting until the checkpoint before is written"
AUDIT = "checksums of the frozen part"  # once before the first epoch, once after the last


class Clock:
    """Divides the main thread's seconds among labels; an inner one's count for it alone."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self._inner: list[float] = []

    @contextmanager
    def __call__(self, label: str) -> Generator[None]:
        """Give the seconds spent within to a label."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[label] += spent - self._inner.pop()
            if self._inner:
                self._inner[-1] += spent

    def watch(self, owner: Any, name: str, label: str) -> None:
        """Give the seconds spent in a function of a module or a class to a label."""
        plain = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            with self(label):
                return plain(*arguments, **options)

        setattr(owner, name, watched)

    def iterate(self, batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """Return `batches` with the seconds that its iterator takes given to `BATCH`."""

        def watched(*arguments: Any) -> Iterator[Any]:
            with closing(closing_at_end(batches(*arguments))) as inner:  # pyright: ignore
                while True:
                    with self(BATCH):
                        found = next(inner, None)
                    if found is None:
                        return
                    yield found

        return watched


class Programs:
    """Holds what the compiled programs are called with in an epoch, and calls them again."""

    def __init__(self, clock: Clock) -> None:
        """Watch every call from now on."""
        self.recording = False
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._plain = {name: getattr(Steps, name) for name in PROGRAMS}
        self._latest: tuple[Any, ...] = ()  # what `train` gave last: state and totals
        for name in PROGRAMS:
            clock.watch(Steps, name, CALLS)
            self._hold(name)

    def _hold(self, name: str) -> None:
        watched = getattr(Steps, name)

        def holding(*arguments: Any) -> Any:
            if self.recording:
                self.calls.append((name, arguments))
            result = watched(*arguments)
            if name == "train":
                self._latest = result
            return result

        setattr(Steps, name, holding)

    def replay(self) -> dict[str, float]:
        """Run the epoch's programs on its inputs, with nothing between; returns seconds of each."""
        state, totals = jax.tree.map(_copied, self._latest)
        seconds: dict[str, float] = collections.defaultdict(float)
        for name, calls in itertools.groupby(self.calls, key=lambda call: call[0]):
            outputs: Any = ()
            start = time.perf_counter()
            for _, arguments in calls:
                steps, *rest = arguments
                if name == "train":  # the state that it was called with was donated
                    state, totals = outputs = self._plain[name](steps, state, totals, *rest[2:])
                elif name == "evaluate":
                    outputs = self._plain[name](steps, state.trained, *rest[1:])
                else:
                    outputs = self._plain[name](steps, *rest)
            jax.block_until_ready(outputs)
            seconds[name] += time.perf_counter() - start
        return dict(seconds)

    def compilations(self) -> dict[str, int]:
        """Return how many times each program that was called was compiled."""
        counts = {name: plain._cache_size() for name, plain in self._plain.items()}
        return {name: count for name, count in counts.items() if count}


def _copied(array: jax.Array) -> jax.Array:
    return jax.device_put(np.array(array), array.sharding)


class Watch(Progress):
    """Takes the times between the ends of epochs, and replays outside of what is measured."""

    def __init__(self) -> None:
        """Watch everything from now on."""
        self.clock = Clock()
        self.programs = Programs(self.clock)
        self.replays: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self.main_thread: dict[str, float] = {}
        self._run: RunFolder | None = None
        self._start = 0.0
        self.clock.watch(jax, "block_until_ready", WAITING)
        self.clock.watch(Totals, "fetch", WAITING)
        self.clock.watch(epoch_module, "evaluate_batches", VALIDATION)
        self.clock.watch(RunFolder, "save_epoch", SAVING)
        self.clock.watch(CheckpointStore, "wait", WRITING)
        self.clock.watch(loop_module, "frozen_checksums", AUDIT)
        make_feed, save_epoch = feed_module.make_feed, RunFolder.save_epoch

        def watched_feed(*arguments: Any, **options: Any) -> Any:
            feed = make_feed(*arguments, **options)
            train, validation = map(self.clock.iterate, (feed.train, feed.validation))
            return dataclasses.replace(feed, train=train, validation=validation)

        def save(run: RunFolder, position: Position, state: TrainState) -> None:
            self._run = run
            save_epoch(run, position, state)

        feed_module.make_feed = watched_feed
        RunFolder.save_epoch = save  # pyright: ignore[reportAttributeAccessIssue]

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """Hold the arguments of one epoch."""
        self.programs.recording = epoch == RECORDED

    def epoch_done(self, metrics: EpochMetrics, best: bool) -> None:
        """Measure from the end of one epoch to the end of another, what is saved included."""
        now = time.perf_counter()
        self.programs.recording = False
        if metrics.epoch > SETTLED:
            self.seconds.append(metrics.seconds)
        if metrics.epoch == LAST:
            wall, epochs = now - self._start, LAST - SETTLED
            found = {label: seconds / epochs for label, seconds in self.clock.seconds.items()}
            rest = wall / epochs - sum(found.values())
            self.main_thread = {**found, "the rest": rest}
        if metrics.epoch in (RECORDED, LAST) and self._run is not None:
            self._run.checkpoints.wait()  # or its writing would fall into the replays
            self.replays += [self.programs.replay() for _ in range(REPLAYS)]
        if metrics.epoch == SETTLED:
            self.clock.seconds.clear()
            self._start = time.perf_counter()

    def figures(self) -> dict[str, Any]:
        """Return the share that is outside the programs, and what it was found from."""
        wall = sum(self.main_thread.values())
        programs = {
            name: statistics.median(replay[name] for replay in self.replays)
            for name in self.replays[0]
        }
        counts = collections.Counter(name for name, _ in self.programs.calls)
        return {
            "epoch_wall_seconds": round(wall, 3),
            "epoch_seconds": [round(seconds, 3) for seconds in self.seconds],
            "outside_share": round(1 - sum(programs.values()) / wall, 4),
            "programs": {
                name: {"calls": counts[name], "seconds": round(seconds, 3)}
                for name, seconds in programs.items()
            },
            "compilations": self.programs.compilations(),
            "main_thread": {
                label: round(seconds, 4)
                for label, seconds in sorted(self.main_thread.items(), key=lambda item: -item[1])
            },
            "audit_seconds": round(self.clock.seconds[AUDIT], 3),
        }


def main() -> None:
    """Train as the first argument says, and print the figures as JSON."""
    keep_freed_memory()  # as the command does
    watch = Watch()
    train(**json.loads(sys.argv[1]), epochs=LAST, progress=watch)
    print(json.dumps(watch.figures()))
