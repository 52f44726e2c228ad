"""How long the parts of a training take, measured on a few of its own batches."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from itertools import cycle, islice

import jax
import numpy as np

from vgg_jax.data.examples import DataSet, Split
from vgg_jax.data.pipeline import epoch_order
from vgg_jax.errors import RunError, TrainingError
from vgg_jax.progress import Progress
from vgg_jax.training.features import Features, pieces_of
from vgg_jax.training.inputs import Inputs
from vgg_jax.training.kept_rows import InMemory, KeptRows
from vgg_jax.training.rows import DeviceRows, HostRows
from vgg_jax.training.steps import Totals, replicate
from vgg_jax.weights.metadata import first_line
from vgg_jax.workflows.feed import Source, batch_size_of, mixed_batches
from vgg_jax.workflows.rehearsal import KeptBatches, forever, rehearse, standing_still
from vgg_jax.workflows.session import Session

_BATCHES = 4  # decoded
_KEPT = 2  # of them, those whose features are used again and again
_LEAST, _MOST, _SECONDS = 2, 500, 3.0  # how many of a kind are measured, how long about
_SHORT = 1.0  # seconds of an epoch's batches, of which what is around them is a part that counts
_MOST_BYTES = 200_000_000  # of a checkpoint of such an epoch, to rehearse it
_MOST_ROOM_BYTES = 500_000_000  # for features of a split, to try how long it takes to be made


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds that parts of a training take.

    Attributes:
        decode: Of one picture, with all threads that read.
        prefix: Of one batch of training, from decoded pictures to features.
        validation_prefix: The same of validation.
        prefix_starting: Of the first such batches, beyond what they take later: of tracing the
            programs and finding them compiled.
        train: Of one step, from features that are kept.
        evaluate: Of one batch of validation, from features that are kept.
        starting: Of the first of these, beyond what they take later: as `prefix_starting`, and of
            making ready the memory that features are kept in.
        around: Of an epoch, beyond its batches by themselves: metrics, and what it leaves cold for
            the next; less than 0 if they are faster in a row. Measured where it counts, else 0.
        around_second: The same of the second epoch, which takes longer than later ones.
    """

    decode: float
    prefix: float
    validation_prefix: float
    prefix_starting: float
    train: float
    evaluate: float
    starting: float
    around: float
    around_second: float


def measure(
    session: Session,
    data: DataSet,
    progress: Progress,
    *,
    in_memory: bool,
    place: type[DeviceRows | HostRows] | None,
) -> Timing:
    """Take a few steps, and time their parts.

    Args:
        session: Of the training. It is of no use afterwards: the steps have taken its state.
        data: Of the training.
        progress: Warned if epochs cannot be rehearsed.
        in_memory: Whether features would be kept there, so that chunks are whole.
        place: What all of them will be kept in; None if they will not be.
    """
    steps, chain = session.steps, session.chain
    train = _Few.decoded(session.source, data, "train")
    # With augmentation on the devices validation has a program of its own.
    validation = _Few.decoded(session.source, data, "validation") if chain.on_device else train
    prefix = validation_prefix = _time(train.computed(mixes=chain.mixes))
    if validation is not train:
        validation_prefix = _time(validation.computed())

    batch_size = train.features.batch_size
    examples = [len(data.splits[split]) for split in ("train", "validation")]
    counts = [math.ceil(number / batch_size) for number in examples]

    def keep() -> list[KeptBatches]:
        return [
            few.kept(
                in_memory=in_memory,
                place=place,
                room=number if place else 0,
                chunk_size=steps.chunk_size(number, batch_size),
            )
            for few, number in zip((train, validation), examples, strict=True)
        ]

    state = standing_still(session.state, session.mesh)

    def evaluations(kept: KeptBatches) -> Iterator[tuple[int, object]]:
        for inputs in kept.endless():
            yield inputs.batch_count, steps.evaluate(state.trained, inputs)

    def train_steps(kept: KeptBatches) -> Iterator[tuple[int, object]]:
        nonlocal state
        totals = replicate(session.mesh, Totals.start())
        for inputs in kept.endless():
            state, totals = steps.train(state, totals, inputs)
            yield inputs.batch_count, totals

    of_training, of_validation = keep()
    evaluate, step = _time(evaluations(of_validation)), _time(train_steps(of_training))
    del of_training, of_validation  # or there are two of them at once

    jax.clear_caches()  # what follows is traced anew, and found compiled, as by a training
    prefix_starting = _time_first(train.computed(mixes=chain.mixes), prefix)
    if validation is not train:
        prefix_starting += _time_first(validation.computed(), validation_prefix)
    begun = time.perf_counter()
    of_training, of_validation = keep()
    starting = time.perf_counter() - begun
    starting += _time_first(train_steps(of_training), step)
    starting += _time_first(evaluations(of_validation), evaluate)

    batches_alone = counts[0] * step + counts[1] * evaluate
    around = around_second = 0.0
    saved = sum(value.nbytes for value in jax.tree.leaves((state.trained, state.optimizer)))
    if batches_alone < _SHORT and saved < _MOST_BYTES:
        epochs = min(session.config.epochs, round(_SECONDS / batches_alone))
        try:
            rehearsed = rehearse(session, state, of_training, of_validation, *counts, epochs=epochs)
            around_second, around = (seconds - batches_alone for seconds in rehearsed)
        except (RunError, TrainingError, OSError) as error:
            progress.warn(
                "Epochs could not be rehearsed, and may take twice as long as is said:"
                f" {first_line(error)}"
            )
    return Timing(
        decode=train.decode_seconds,
        prefix=prefix,
        validation_prefix=validation_prefix,
        prefix_starting=prefix_starting,
        train=step,
        evaluate=evaluate,
        starting=starting,
        around=around,
        around_second=around_second,
    )


@dataclasses.dataclass
class _Few:
    """A few examples of a split, decoded.

    Attributes:
        source: Of the training.
        features: Theirs, which are kept nowhere.
        decode_seconds: Of one picture.
        found: The first batches that came through the prefix.
    """

    source: Source
    features: Features
    decode_seconds: float
    found: list[Inputs] = dataclasses.field(default_factory=list)

    @classmethod
    def decoded(cls, source: Source, data: DataSet, split: Split) -> _Few:
        """Decode the first batches of a split's first epoch."""
        examples, config = data.splits[split], source.config
        batch_size = batch_size_of(config, data.splits["train"])  # of all splits
        count = _BATCHES * batch_size
        few = examples.select(epoch_order(len(examples), config.seed, 1)[:count])
        features = source.features(few, augmented=split == "train", batch_size=batch_size)
        begun = time.perf_counter()
        batches = [*features.read(np.arange(len(few)), 1)]
        seconds = (time.perf_counter() - begun) / len(few)
        features = dataclasses.replace(
            features, read=lambda order, view: iter(batches), chunk_size=1
        )
        return cls(source, features, seconds)

    @property
    def _order(self) -> np.ndarray:
        return np.arange(len(self.features.labels))

    def computed(self, *, mixes: bool = False) -> Iterator[tuple[int, object]]:
        """Take one batch after the other through the prefix, without end; see `_time`."""

        def compute() -> Iterable[Inputs]:
            if mixes:
                return mixed_batches(self.source, self.features, self._order, 1, 0)
            return self.features.batches(self._order, 1)

        for inputs in forever(compute):
            self.found[:] = [*self.found, inputs][:_KEPT]
            yield 1, inputs

    def kept(
        self,
        *,
        in_memory: bool,
        place: type[DeviceRows | HostRows] | None,
        room: int,
        chunk_size: int,
    ) -> KeptBatches:
        """Keep what was found, and give it again and again.

        Args:
            in_memory: Whether it is given as if it was kept in memory.
            place: What it is kept in; by default the memory of the devices.
            room: For so many pictures there is to be room, unless that is much; 0 for these alone.
            chunk_size: Batches in a chunk.
        """
        features, order = self.features, self._order[: room or None]
        pieces = pieces_of(order, features.batch_size)[:_KEPT]
        found = self.found[: len(pieces)]
        labels = [features.labels[piece] for piece in pieces]
        if self.source.chain.mixes:  # which kept features do not go with
            return KeptBatches(lambda count, size: islice(cycle(found), count), labels)
        shape, dtype = found[0].features.shape[1:], np.dtype(found[0].features.dtype)
        is_much = room * math.prod(shape) * dtype.itemsize > _MOST_ROOM_BYTES
        count = len(order) if is_much else room or len(order)
        memory = (place or DeviceRows)(self.source.mesh, count, shape, dtype)
        rows = (InMemory if in_memory else _OneByOne)(memory, lambda pooled: pooled)
        for piece, inputs in zip(pieces, found, strict=True):
            rows.put(piece, inputs.features)

        def give(count: int, size: int) -> Iterator[Inputs]:
            kept = dataclasses.replace(features, keep=_Kept(rows), chunk_size=size)
            # After a smaller batch the next one would be cut elsewhere.
            is_even = all(len(piece) == features.batch_size for piece in pieces)
            in_a_row = count if is_even else len(pieces)
            for done in range(0, count, in_a_row):
                row = islice(cycle(pieces), min(in_a_row, count - done))
                yield from kept.batches(np.concatenate([*row]), 1)

        return KeptBatches(give, labels, chunk_size)


class _OneByOne(InMemory):
    """Gives batches as `OnDisk` does, none together with others."""

    in_memory = False


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Features that are all there; see `vgg_jax.training.features.Keep`."""

    held: KeptRows

    def rows(self, features: Features, view: int) -> KeptRows:
        return self.held

    def passed(self, features: Features, view: int) -> None:
        pass


def _time(steps: Iterator[tuple[int, object]]) -> float:
    """Return the mean seconds of a batch; each step is waited for, and the first warms up.

    Args:
        steps: Takes the next step; gives of how many batches it was, and what came of it.
    """
    jax.block_until_ready(next(steps))
    begun, seconds, count = time.perf_counter(), 0.0, 0
    while count < _LEAST or (count < _MOST and seconds < _SECONDS):
        batches, done = next(steps)
        jax.block_until_ready(done)
        seconds, count = time.perf_counter() - begun, count + batches
    return seconds / count  # not the median: epochs have their slow steps, too


def _time_first(steps: Iterator[tuple[int, object]], usual: float) -> float:
    """Return the seconds of the first step, beyond those that its batches take by themselves.

    Args:
        steps: As for `_time`.
        usual: Seconds of a batch.
    """
    begun = time.perf_counter()
    batches, done = next(steps)
    jax.block_until_ready(done)
    return max(time.perf_counter() - begun - batches * usual, 0.0)
