"""What is to be expected of a training, from what its parts take."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax

from vgg_jax.config import ResolvedConfig
from vgg_jax.data.examples import DataSet
from vgg_jax.model.pieces import PIECE
from vgg_jax.training.feature_places import Places, choose_places, why_not_kept
from vgg_jax.training.keeping import views_of
from vgg_jax.training.room import Memory
from vgg_jax.training.rows import DeviceRows, HostRows
from vgg_jax.workflows.feed import batch_size_of, padded_rows, splits_that_stay
from vgg_jax.workflows.programs import Programs
from vgg_jax.workflows.session import Session
from vgg_jax.workflows.stored import count_stored
from vgg_jax.workflows.timing import Timing

Whose = Literal["devices", "host"]  # memory
ROWS_OF: dict[Whose, type[DeviceRows | HostRows]] = {"devices": DeviceRows, "host": HostRows}


@dataclasses.dataclass(frozen=True)
class Features:
    """What a training keeps from one epoch to the next.

    Attributes:
        shape: Of the features of one picture at the boundary.
        bytes: Of the features of all pictures, in all views that a training can keep.
        can_be_kept: Whether they may be the same in another epoch.
        why_not: Why this training keeps none; None if it does.
        stored: How many pictures of training, view by view, have theirs on disk already.
        stored_validation: The same of validation.
        held_by: Whose memory they stay in; None where they are kept on disk alone, so that every
            epoch reads them, or nowhere.
        reading_seconds: Of bringing one picture's from the disk into memory; 0 until that is
            measured, and where too few are stored to tell.
        pictures_stay: Of which splits, without kept features, the decoded pictures stay on the
            devices.
        memory_bytes: Of the kept features, or of those pictures, on each device.
    """

    shape: tuple[int, ...]
    bytes: int
    can_be_kept: bool
    why_not: str | None
    stored: list[int]
    stored_validation: int
    held_by: Whose | None
    reading_seconds: float
    pictures_stay: list[str]
    memory_bytes: int


def expected_features(
    session: Session, data: DataSet, programs: Programs, memory: Memory
) -> Features:
    """Foresee what a training will keep.

    Raises:
        ConfigError: If its options contradict each other, or there is no room for what they ask.
    """
    config, chain = session.config, session.chain
    train, validation = data.counts["train"], data.counts["validation"]
    views = views_of(config)
    total = train * len(views) + validation
    row_bytes, pooled_bytes = _bytes_of(programs.features), _bytes_of(programs.pooled)
    stored, stored_validation = [0] * len(views), 0

    def find_stored() -> int:
        nonlocal stored_validation
        stored[:] = [count_stored(session, data, programs, "train", view) for view in views]
        stored_validation = count_stored(session, data, programs, "validation", None)
        return sum(stored) + stored_validation

    places = Places(why_not=why_not_kept(config, chain))
    if places.why_not is None:
        places = choose_places(
            config,
            memory,
            count=total,
            disk_bytes=row_bytes,
            memory_bytes=pooled_bytes,
            stored=find_stored,
        )
    stay = splits_that_stay(config, chain, data.counts, memory)
    held = sum(stay.values())
    if places.why_not is None:
        held = total * pooled_bytes if memory.on_devices(places.memory) else 0
    if not places.on_disk:
        stored, stored_validation = [0] * len(views), 0
    return Features(
        shape=programs.features.shape,
        bytes=total * row_bytes,
        can_be_kept=not chain.mixes and bool(config.views or not config.augment),
        why_not=places.why_not,
        stored=stored,
        stored_validation=stored_validation,
        held_by=next((whose for whose, place in ROWS_OF.items() if place is places.memory), None),
        reading_seconds=0.0,
        pictures_stay=[*stay],
        memory_bytes=held,
    )


def _bytes_of(array: jax.ShapeDtypeStruct) -> int:
    return array.size * array.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Epochs:
    """Seconds that each epoch of a training is expected to take, without compiling.

    Attributes:
        computed: If the features are computed in each.
        kept: If they are kept; None if they cannot be.
    """

    computed: list[float]
    kept: list[float] | None


def expected_epochs(
    config: ResolvedConfig, data: DataSet, timing: Timing, features: Features
) -> Epochs:
    """Foresee how long the epochs will take."""
    train, validation = data.splits["train"], data.splits["validation"]
    batch_size = batch_size_of(config, train)
    steps = math.ceil(len(train) / batch_size)
    evaluations = math.ceil(len(validation) / batch_size)

    def beside(computing: float, seconds: float) -> float:
        # On the CPU both are done by the same cores, elsewhere at the same time.
        on_cpu = jax.default_backend() == "cpu"
        return computing + seconds if on_cpu else max(computing, seconds)

    train_computed = steps * (timing.prefix + timing.train)
    train_decoded = beside(train_computed, len(train) * timing.decode)
    train_kept = steps * timing.train
    validation_computed = evaluations * (timing.validation_prefix + timing.evaluate)
    validation_decoded = beside(validation_computed, len(validation) * timing.decode)
    validation_kept = evaluations * timing.evaluate

    around = [timing.around, timing.around_second, *[timing.around] * config.epochs]
    first = train_decoded + validation_decoded + around[0]
    first += timing.starting + timing.prefix_starting
    stay = features.pictures_stay
    later = train_computed if "train" in stay else train_decoded
    later += validation_computed if "validation" in stay else validation_decoded
    computed = [first, *(later + around[epoch] for epoch in range(1, config.epochs))]
    if not features.can_be_kept:
        return Epochs(computed, None)
    kept: list[float] = []
    for epoch in range(config.epochs):
        is_new = epoch < len(features.stored)  # the view of this epoch
        missing = len(train) - features.stored[epoch] if is_new else 0
        missing_validation = len(validation) - features.stored_validation if epoch == 0 else 0
        there, there_validation = len(train) - missing, len(validation) - missing_validation
        seconds = _between(train_kept, train_decoded, missing / len(train))
        seconds += _between(
            validation_kept, validation_decoded, missing_validation / len(validation)
        )
        if not features.held_by:
            seconds = beside(seconds, (there + there_validation) * features.reading_seconds)
        elif is_new:  # they are brought there before the first step
            read = there + (there_validation if epoch == 0 else 0)
            seconds += read * features.reading_seconds
        seconds += around[epoch]
        if epoch == 0:
            seconds += timing.starting
            if missing or missing_validation:  # by one prefix, although there may be two
                seconds += timing.prefix_starting
        kept.append(seconds)
    return Epochs(computed, kept)


def _between(least: float, most: float, share: float) -> float:
    return least + share * (most - least)


def rows_of_line(rows: int, devices: int, *, in_pieces: bool) -> tuple[int, int]:
    """Return the rows of two batches, one of them `rows` if possible, to tell what each row adds.

    Where the prefix goes in pieces, both have at least two, and the same rest.
    """
    if in_pieces:
        first = max(rows, 2 * PIECE)
        return first, first + 2 * PIECE
    if rows <= devices:
        return rows, 2 * rows
    return rows, padded_rows(rows // 2, devices)  # fewer, since more may not compile


def largest_batch(needed: dict[int, int], room: int) -> int:
    """Return the size of the largest batch that finds room.

    Args:
        needed: Memory that batches of two sizes need; those of other sizes are taken to lie on the
            same line.
        room: Memory that there is.

    Returns:
        A multiple of 8, or at most 4; 0 if there is no room for one example.
    """
    (small, least), (large, most) = sorted(needed.items())
    count = small + (room - least) * (large - small) // max(most - least, 1)
    return max(count // 8 * 8 if count >= 8 else min(count, PIECE), 0)
