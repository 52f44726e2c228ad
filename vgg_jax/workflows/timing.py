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
from vgg_jax.data.pipeline import Batch, epoch_order
from vgg_jax.errors import RunError, TrainingError
from vgg_jax.progress import Progress
from vgg_jax.training.features import Features, pieces_of
from vgg_jax.training.inputs import Inputs
from vgg_jax.training.kept_rows import InMemory, KeptRows
from vgg_jax.training.rows import DeviceRows
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


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds that parts of a training take.

    Attributes:
        decode: Of one picture, with all threads that read.
        prefix: Of one batch of training, from decoded pictures to features.
        placing: Of bringing a split's first features into memory, mostly of making that ready.
        train: Of one step, from features that are kept.
        validation_prefix: As `prefix`, of one batch of validation.
        evaluate: Of one batch of validation, from features that are kept.
        around: Of an epoch, beyond its batches by themselves: metrics, and how much slower they are
            while the epoch before is saved; less than 0 if they are faster in a row. Measured where
            it counts, else 0.
    """

    decode: float
    prefix: float
    placing: float
    train: float
    validation_prefix: float
    evaluate: float
    around: float


def measure(session: Session, data: DataSet, progress: Progress, *, in_memory: bool) -> Timing:
    """Take a few steps, and time their parts.

    Args:
        session: Of the training. It is of no use afterwards: the steps have taken its state.
        data: Of the training.
        progress: Warned if epochs cannot be rehearsed.
        in_memory: Whether features will be kept there, so that chunks are whole.
    """
    steps, source = session.steps, session.source
    train, batches, decode = _decoded(source, data, "train")
    mixes = session.chain.mixes
    prefix, placing, kept = _time_prefix(source, train, batches, mixes, in_memory)

    validation_prefix, validation_kept = prefix, kept
    if session.chain.on_device:  # then validation has a program of its own
        validation, batches, _ = _decoded(source, data, "validation")
        validation_prefix, _, validation_kept = _time_prefix(
            source, validation, batches, False, in_memory
        )

    batch_size = train.batch_size
    examples = [len(data.splits[split]) for split in ("train", "validation")]
    counts = [math.ceil(number / batch_size) for number in examples]
    kept, validation_kept = (
        dataclasses.replace(batches, chunk_size=steps.chunk_size(number, batch_size))
        for batches, number in zip((kept, validation_kept), examples, strict=True)
    )
    state = standing_still(session.state, session.mesh)

    def evaluations() -> Iterator[tuple[int, object]]:
        for inputs in validation_kept.endless():
            yield inputs.batch_count, steps.evaluate(state.trained, inputs)

    def train_steps() -> Iterator[tuple[int, object]]:
        nonlocal state
        totals = replicate(session.mesh, Totals.start())
        for inputs in kept.endless():
            state, totals = steps.train(state, totals, inputs)
            yield inputs.batch_count, totals

    evaluate, step = _time(evaluations()), _time(train_steps())
    batches_alone = counts[0] * step + counts[1] * evaluate
    around = 0.0
    saved = sum(value.nbytes for value in jax.tree.leaves((state.trained, state.optimizer)))
    if batches_alone < _SHORT and saved < _MOST_BYTES:
        try:
            epochs = round(_SECONDS / batches_alone)
            usual = rehearse(session, state, kept, validation_kept, *counts, epochs=epochs)
            around = usual - batches_alone
        except (RunError, TrainingError, OSError) as error:
            progress.warn(
                "Epochs could not be rehearsed, and may take twice as long as is said:"
                f" {first_line(error)}"
            )
    return Timing(decode, prefix, placing, step, validation_prefix, evaluate, around)


def _decoded(source: Source, data: DataSet, split: Split) -> tuple[Features, list[Batch], float]:
    """Return the first batches of a split's first epoch, decoded, and the seconds of a picture."""
    examples, config = data.splits[split], source.config
    batch_size = batch_size_of(config, data.splits["train"])  # of all splits
    count = _BATCHES * batch_size
    few = examples.select(epoch_order(len(examples), config.seed, 1)[:count])
    features = source.features(few, augmented=split == "train", batch_size=batch_size)
    begun = time.perf_counter()
    batches = [*features.read(np.arange(len(few)), 1)]
    return features, batches, (time.perf_counter() - begun) / len(few)


def _time_prefix(
    source: Source,
    features: Features,
    batches: list[Batch],
    mixes: bool,
    in_memory: bool,
) -> tuple[float, float, KeptBatches]:
    """Return seconds: of a batch, and of keeping the first; and batches that are kept."""
    order = np.arange(len(features.labels))
    pieces = pieces_of(order, features.batch_size)[:_KEPT]
    labels = [features.labels[piece] for piece in pieces]
    decoded = dataclasses.replace(features, read=lambda order, view: iter(batches), chunk_size=1)
    found: list[Inputs] = []

    def compute() -> Iterable[Inputs]:
        return mixed_batches(source, decoded, order, 1, 0) if mixes else decoded.batches(order, 1)

    def prefixes() -> Iterator[tuple[int, object]]:
        for inputs in forever(compute):
            found[:] = [*found, inputs][: len(pieces)]
            yield 1, inputs

    seconds = _time(prefixes())
    if mixes:  # which kept features do not go with
        return seconds, 0.0, KeptBatches(lambda count, size: islice(cycle(found), count), labels)
    jax.block_until_ready(found)
    begun = time.perf_counter()
    shape, dtype = found[0].features.shape[1:], np.dtype(found[0].features.dtype)
    kind = InMemory if in_memory else _OneByOne
    rows = kind(DeviceRows(source.mesh, len(order), shape, dtype), lambda pooled: pooled)

    def give(count: int, size: int) -> Iterator[Inputs]:
        kept = dataclasses.replace(features, keep=_Kept(rows), chunk_size=size)
        # After a smaller batch the next one would be cut elsewhere.
        is_even = all(len(piece) == features.batch_size for piece in pieces)
        in_a_row = count if is_even else len(pieces)
        for done in range(0, count, in_a_row):
            row = islice(cycle(pieces), min(in_a_row, count - done))
            yield from kept.batches(np.concatenate([*row]), 1)

    rows.put(pieces[0], found[0].features)
    jax.block_until_ready(next(give(1, features.chunk_size)))
    placing = time.perf_counter() - begun
    for piece, inputs in zip(pieces, found, strict=True):
        rows.put(piece, inputs.features)
    return seconds, placing, KeptBatches(give, labels)


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
