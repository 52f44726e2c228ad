"""Random interleavings of saving, dying, damage and going on, on a training of nine steps.

    python tests/interleavings.py [--count 2000] [--seed 0]

Each interleaving is one training, interrupted again and again until it is complete, and then
compared with an undisturbed one, byte for byte. A life ends in one of these ways, at a file
operation or a step drawn at random:

- death: from there on no file operation under the run's folder takes place, in no thread;
- a full disk, or an input/output error: one operation fails, once;
- a signal;

and between two lives files of the checkpoints, the small files and the lock may be spoilt: a bit
flipped, cut short, deleted. The disk's faults are injected by an audit hook of the interpreter,
beneath Orbax and vgg-jax alike.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import errno
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from test_steps import inputs_of, make_batch, prepare
from training_runs import After, same_run

from vgg_jax.cli.console import tell_failed_writes_once
from vgg_jax.errors import RunError, TrainingInterrupted
from vgg_jax.progress import Progress
from vgg_jax.training.checkpoints import Checkpoints
from vgg_jax.training.epoch import Feed, Limits
from vgg_jax.training.inputs import Inputs
from vgg_jax.training.interruption import Interruption
from vgg_jax.training.loop import fit
from vgg_jax.training.position import Position
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.state_arrays import fill_leaves
from vgg_jax.training.steps import data_mesh, replicate

EPOCHS, STEPS, ROWS = 3, 3, 4
OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
LONGEST_LIFE_SECONDS = 60.0


class Death(BaseException):
    """What ends a life in the middle of a file operation."""


class Disk:
    """Lets an operation under a folder fail: all from a certain one on, or only that."""

    def __init__(self) -> None:
        self.folder = ""
        self.left = -1  # operations until the fault
        self.fault: BaseException | None = None
        self.dead = False
        sys.addaudithook(self._hook)

    def arm(self, folder: Path, left: int, fault: BaseException) -> None:
        self.folder, self.left, self.fault, self.dead = f"{folder}{os.sep}", left, fault, False

    def disarm(self) -> bool:
        """Let everything work again; returns whether the process was dead."""
        dead, self.folder, self.dead = self.dead, "", False
        return dead

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder or event not in OPERATIONS:
            return
        path = arguments[0]
        if not isinstance(path, (str, os.PathLike)) or not str(path).startswith(self.folder):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if self.dead:
            raise Death(event)
        self.left -= 1
        if self.left == -1 and self.fault is not None:
            self.dead = isinstance(self.fault, Death)
            raise self.fault


class Tiny:
    """A training of nine steps whose pieces are compiled once, for all lives."""

    def __init__(self) -> None:
        self.steps, state, frozen = prepare()
        self.mesh = data_mesh()
        self.first = jax.tree.map(np.array, state)
        self.frozen = replicate(self.mesh, frozen)
        self.batches = [self._batch(seed) for seed in range(EPOCHS * STEPS + 1)]
        labels = np.asarray(self.batches[-1].targets)
        self.feed = Feed(self._train, lambda: iter(self.batches[-1:]), labels, STEPS * ROWS, ROWS)

    def _batch(self, seed: int) -> Inputs:
        return inputs_of(self.steps, self.frozen, make_batch(seed=seed))

    def _train(self, epoch: int, start: int, step: int) -> Any:
        first = (epoch - 1) * STEPS
        return iter(self.batches[first + start // ROWS : first + STEPS])

    def live(
        self,
        run: RunFolder,
        interruption: Interruption,
        warnings: list[str],
        checkpoint_seconds: float = 1e-9,
    ) -> int:
        """Go on with the training until its end; returns the step that it went on from."""
        progress = Progress()
        with run.locked(lambda text: None):
            restored = run.checkpoints.restore_to_go_on(warnings.append)
            position, state = Position(), self.first
            if restored is not None:
                position = restored.position
                optimizer = fill_leaves(self.first.optimizer, restored.optimizer)
                state = self.first._replace(
                    trained={n: jnp.asarray(value) for n, value in restored.trained.items()},
                    optimizer=optimizer,
                    step=jnp.asarray(position.step, jnp.uint32),
                )
            self.went_on_from = position.step
            run.write_metrics(position.history)
            limits = Limits(
                EPOCHS, checkpoint_seconds=checkpoint_seconds, interruption=interruption
            )
            with run.training():
                fit(
                    self.steps,
                    replicate(self.mesh, state),
                    self.frozen,
                    self.feed,
                    run,
                    mesh=self.mesh,
                    limits=limits,
                    learning_rate=1e-3,
                    start=position,
                    progress=progress,
                )
        return position.step


@dataclasses.dataclass
class Outcome:
    """What became of one interleaving."""

    lives: int
    ends: collections.Counter[str]
    damaged: int
    set_aside: int
    best_lost: bool


def complete_checkpoints(run: Path) -> dict[Path, int]:
    """Return the complete checkpoints with their steps."""
    found = {path: STEPS * int(path.name[6:]) for path in run.glob("checkpoints/epoch_*[0-9]")}
    inner = run.glob("checkpoints/unfinished/step_*[0-9]")
    return found | {path: int(path.name[5:]) for path in inner}


def spoil(path: Path, rng: random.Random) -> str:
    """Flip a bit of a file, cut it short, or delete it."""
    data = path.read_bytes()
    how = rng.choice(("flipped", "cut", "deleted"))
    if how == "deleted" or not data:
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    else:
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
    return how


def bury(run: RunFolder) -> None:
    """Give back what the kernel takes from a process that ends, and leave its lock where it is."""
    lock = run.lock
    lock._released.set()
    if lock._heart is not None:
        lock._heart.join()
    if lock._file is not None:
        os.close(lock._file)
    for store in (run.checkpoints._epochs, run.checkpoints._unfinished):
        if store._thread is not None:
            store._thread.shutdown()


def interleave(tiny: Tiny, disk: Disk, folder: Path, whole: Path, rng: random.Random) -> Outcome:
    """Train until the end through all that may happen, and compare the result."""
    path = folder / "run"
    path.mkdir()
    ends: collections.Counter[str] = collections.Counter()
    sound: dict[Path, int] = {}
    spoilt: set[tuple[Path, int]] = set()
    warnings: list[str] = []
    damaged = lives = 0
    while True:
        lives += 1
        run = RunFolder(path)
        fault = rng.choice(("death", "death", "full", "error", "signal", "none"))
        if lives > 8:
            fault = "none"
        kinds = {
            "death": Death(),
            "full": OSError(errno.ENOSPC, "No space left on device"),
            "error": OSError(errno.EIO, "Input/output error"),
        }
        interruption = Interruption()
        if fault in kinds:
            disk.arm(path, rng.randrange(250), kinds[fault])
        elif fault == "signal":
            interruption = After(rng.randrange(EPOCHS * (STEPS + 1)))
        begun = time.monotonic()
        tiny.went_on_from = -1
        end = "complete"
        try:
            # After each step; some of the epochs in quick succession, or but the first and the end.
            tiny.live(run, interruption, warnings, rng.choice((1e-9, 0.02, 600.0)))
        except Death:
            end = "death"
        except (RunError, OSError):
            if fault not in ("full", "error"):
                raise
            end = fault
        except TrainingInterrupted:
            end = "signal"
        finally:
            died = disk.disarm()
            bury(run)
        if died:
            end = "death"  # whatever came of it
        assert time.monotonic() - begun < LONGEST_LIFE_SECONDS, "a life took too long"
        ends[end] += 1
        if tiny.went_on_from >= 0:
            least = max(sound.values(), default=0)
            assert tiny.went_on_from >= least, (
                f"lost: life {lives} from {tiny.went_on_from}, not {least} of {sound}; {ends};"
                f" {warnings}; {sorted(complete_checkpoints(path))}"
            )
        if end == "complete":
            break
        checkpoints = complete_checkpoints(path)
        for one in [*checkpoints]:
            if rng.random() < 0.15:
                files = [file for file in one.rglob("*") if file.is_file()]
                spoil(rng.choice(files), rng)
                spoilt.add((one, one.stat().st_ino))
                damaged += 1
        for name in ("metrics.jsonl", "state.json", "lock"):
            if (path / name).is_file() and rng.random() < 0.1:
                spoil(path / name, rng)
                damaged += 1
        sound = {
            one: step for one, step in checkpoints.items() if (one, one.stat().st_ino) not in spoilt
        }
    best_lost = any("the best so far, is lost" in warning for warning in warnings)
    assert spoilt or not best_lost, warnings
    compare(path, whole, best_lost=best_lost)
    aside = len(Checkpoints(path / "checkpoints").damaged())
    assert aside == sum("moved to" in warning for warning in warnings), warnings
    return Outcome(lives, ends, damaged, aside, best_lost)


def compare(path: Path, whole: Path, *, best_lost: bool) -> None:
    """Compare two complete runs; without the best checkpoint if that was spoilt.

    Nor is its optimizer's state compared, which nobody needs, so that going on does not look at it.
    """
    same_run(
        path, whole, ("latest",) if best_lost else ("latest", "best"), optimizer_of=("latest",)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Random interleavings of a training's faults.")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tell_failed_writes_once()
    tiny, disk = Tiny(), Disk()
    ends: collections.Counter[str] = collections.Counter()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        whole.mkdir()
        tiny.live(RunFolder(whole), Interruption(), [])
        for number in range(arguments.seed, arguments.seed + arguments.count):
            folder = Path(scratch) / "one"
            folder.mkdir()
            try:
                outcomes.append(interleave(tiny, disk, folder, whole, random.Random(number)))
            except BaseException as error:
                error.add_note(f"in interleaving {number}")
                raise
            shutil.rmtree(folder)
            ends += outcomes[-1].ends
    print(f"{len(outcomes)} interleavings, {sum(o.lives for o in outcomes)} lives")
    for end, count in ends.most_common():
        print(f"  ended by {end}: {count}")
    print(f"  files spoilt: {sum(o.damaged for o in outcomes)}")
    print(f"  checkpoints set aside: {sum(o.set_aside for o in outcomes)}")
    print(f"  best checkpoint lost to damage: {sum(o.best_lost for o in outcomes)}")


if __name__ == "__main__":
    main()
