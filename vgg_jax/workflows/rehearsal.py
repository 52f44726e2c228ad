"""Epochs on a few batches, over and over, to see what an epoch takes beyond its batches."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.progress import Progress
from vgg_jax.training.epoch import Feed
from vgg_jax.training.inputs import Inputs
from vgg_jax.training.loop import fit
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.steps import TrainState, replicate
from vgg_jax.workflows.session import Session, limits_of

_LEAST, _MOST = 8, 300  # epochs
_IN_A_PASS = 100  # or a few more; its start and end are a part of an epoch, not of a step


@dataclasses.dataclass(frozen=True)
class KeptBatches:
    """A few batches with features that are kept.

    Attributes:
        give: Gives so many batches, the same again and again, in chunks of so many.
        labels: Of each, int32 `[b]`, without padding.
        chunk_size: Batches in a chunk.
    """

    give: Callable[[int, int], Iterator[Inputs]]
    labels: list[np.ndarray]
    chunk_size: int = 1

    def batches(self, count: int) -> Iterator[Inputs]:
        """Yield so many batches."""
        return self.give(count, self.chunk_size)

    def endless(self) -> Iterator[Inputs]:
        """Yield them in passes of many, and of whole chunks."""
        chunks = math.ceil(_IN_A_PASS / self.chunk_size)
        return forever(lambda: self.batches(chunks * self.chunk_size))


def standing_still(state: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    """Return a state whose steps change no parameter, however often they are taken."""
    zeros = jax.tree.map(jnp.zeros_like, state.hyperparameters)
    return state._replace(hyperparameters=replicate(mesh, zeros))


def rehearse(
    session: Session,
    state: TrainState,
    train: KeptBatches,
    validation: KeptBatches,
    steps: int,
    evaluations: int,
    epochs: int,
) -> tuple[float, float]:
    """Train and save epochs as a training does it.

    Args:
        session: Of the training.
        state: Where the first step starts; it is taken over.
        train: Of training.
        validation: Of validation.
        steps: Batches of training in an epoch.
        evaluations: Batches of validation in an epoch.
        epochs: How many would do; not fewer than 8 are taken, nor more than 300.

    Returns:
        Seconds of the first, which takes longer than the others as a training's second does, and
        the median of the others.

    Raises:
        RunError: If what is saved, and removed at the end, cannot be written.
        TrainingError: As `fit` does.
        OSError: If there is no temporary folder.
    """
    labels = itertools.islice(itertools.cycle(validation.labels), evaluations)
    batch_size = len(train.labels[0])
    feed = Feed(
        train=lambda epoch, start, step: train.batches(steps),
        validation=lambda: validation.batches(evaluations),
        labels=np.concatenate([*labels]),
        examples=steps * batch_size,
        batch_size=batch_size,
    )
    with tempfile.TemporaryDirectory(prefix="vgg-jax-plan-") as folder:
        run = RunFolder(Path(folder))
        fit(
            *(session.steps, state, {}, feed, run),
            mesh=session.mesh,
            limits=dataclasses.replace(
                limits_of(session.config, None),
                epochs=min(max(epochs, _LEAST), _MOST),
                early_stop=None,
            ),
            learning_rate=0.0,
            progress=Progress(),
        )
        first, *others = (epoch.seconds for epoch in run.read_metrics())
        return first, statistics.median(others)


def forever(batches: Callable[[], Iterable[Inputs]]) -> Iterator[Inputs]:
    """Yield batches again and again."""
    while True:
        yield from batches()
