"""What a training will take, found out before it starts."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, ClassVar

import jax

from vgg_jax.compilation import keep_compiled_programs
from vgg_jax.config import TrainConfig
from vgg_jax.data.examples import DataSet, Split
from vgg_jax.data.sources import open_data
from vgg_jax.demo.pictures import demo_folder
from vgg_jax.errors import CacheError, TrainingError
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.progress import Progress, format_bytes
from vgg_jax.training.keeping import View, views_of
from vgg_jax.training.memory import available_bytes, naming_a_smaller_batch
from vgg_jax.training.room import Memory
from vgg_jax.training.steps import data_mesh
from vgg_jax.weights.metadata import first_line
from vgg_jax.workflows.announce import announce_code
from vgg_jax.workflows.backbone import open_backbone
from vgg_jax.workflows.expectation import (
    ROWS_OF,
    Epochs,
    Features,
    expected_epochs,
    expected_features,
    largest_batch,
    rows_of_line,
)
from vgg_jax.workflows.feed import batch_size_of, padded_rows
from vgg_jax.workflows.load import build_functional
from vgg_jax.workflows.programs import Program, Programs, compile_programs, counted, with_chunks
from vgg_jax.workflows.session import Session, chain_of, warn_of_options
from vgg_jax.workflows.stored import time_reading
from vgg_jax.workflows.timing import measure

_SAFE = 0.85  # of what is free: pictures that are read ahead, and the like, are not counted
# On the host there are Python, JAX and its compiler, too, and memory that was freed is held in
# pieces, in which what is larger finds no place. benchmarks/README.md has the measurements.
_PROCESS_BYTES, _HELD = 700_000_000, 2


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the network, as it works on one batch.

    Attributes:
        parameters: Number of its parameters.
        program: What its program does.
        seconds: Measured.
    """

    parameters: int
    program: Program
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training will take.

    Attributes:
        data: Name of the data.
        examples: Number of examples by split.
        num_classes: Number of classes.
        batch_size: Examples in a batch.
        devices: The devices, in words.
        prefix: The frozen part, from pictures to features.
        train: The trained part, in a step of training.
        evaluate: The trained part, in validation.
        decode_seconds: Of one picture, with all threads that read.
        compile_seconds: Of these programs; a training that follows finds them in the cache.
        memory_bytes: What the training needs on each device.
        available_bytes: What is free there.
        largest_batch_size: That is safe, and no larger than the training split; 0 if none is.
        features: What is kept from one epoch to the next.
        starting_seconds: Of tracing the programs, finding them compiled, and making memory ready
            for features, before or within the first epoch's batches.
        epochs: Expected seconds of the epochs.
        resolution_seconds: Epochs that are expected to be shorter are told as shorter than this:
            single ones vary by a factor of two.
    """

    data: str
    examples: dict[str, int]
    num_classes: int
    batch_size: int
    devices: str
    prefix: Part
    train: Part
    evaluate: Part
    decode_seconds: float
    compile_seconds: float
    memory_bytes: int
    available_bytes: int
    largest_batch_size: int
    features: Features
    starting_seconds: float
    epochs: Epochs
    resolution_seconds: ClassVar[float] = 0.02

    @property
    def epoch_seconds(self) -> list[float]:
        """Expected of each epoch, with features kept if the training will keep them."""
        kept = None if self.features.why_not else self.epochs.kept
        return kept or self.epochs.computed

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return dataclasses.asdict(self) | {
            "epoch_seconds": self.epoch_seconds,
            "resolution_seconds": self.resolution_seconds,
        }


def plan(config: TrainConfig, progress: Progress) -> Plan:
    """Find out what a training will take: compile its programs, and try them on a few batches.

    No run is made, and nothing is left but compiled programs. What this process has compiled is
    taken out of its memory, though not off the disk.

    Raises:
        VggJaxError: If the options, the data or the weights cannot be used.
        TrainingError: If the memory does not suffice.
    """
    keep_compiled_programs(progress)
    resolved = config.resolved()
    available = available_bytes(data_mesh())  # before there are parameters, which programs count
    announce_code(progress, "head", [parse_choice(resolved.head)])
    announce_code(progress, "augmentation", map(parse_choice, resolved.augment))
    chain = chain_of(resolved)
    data = open_data(
        resolved.data, demo_folder=demo_folder, seed=resolved.seed, needed=("train", "validation")
    )
    opened = open_backbone(resolved.weights, progress)
    functional, parameters = build_functional(opened, resolved, len(data.class_names), progress)
    session = Session.start(resolved, functional, parameters, chain, len(data.class_names))
    warn_of_options(resolved, progress)
    trained = sum(value.size for value in session.state.trained.values())
    frozen = sum(value.size for value in session.frozen.values())

    batch_size = batch_size_of(resolved, data.splits["train"])
    progress.note(f"Compiling for batches of {batch_size}.")
    begun = time.perf_counter()
    rows = padded_rows(batch_size, session.mesh.size)
    sizes = rows_of_line(rows, session.mesh.size, in_pieces=session.steps.on_one_cpu)
    with naming_a_smaller_batch(batch_size, _smaller):
        of_batches = compile_programs(session, rows)
        chunk_sizes = (
            session.steps.chunk_size(data.counts["train"], batch_size),
            session.steps.chunk_size(data.counts["validation"], batch_size),
        )
        programs = with_chunks(of_batches, session, rows, chunk_sizes)
        compile_seconds = time.perf_counter() - begun
        programs = counted(programs, session, rows)
        by_rows = {rows: of_batches} | {
            size: compile_programs(session, size) for size in sizes if size != rows
        }
    memory = Memory(resolved, session.mesh)
    features = expected_features(session, data, programs, memory)
    needed = {size: by_rows[size].memory_bytes for size in sizes}
    room = int(_SAFE * available) - features.memory_bytes
    if jax.default_backend() == "cpu":
        room = int((room - _PROCESS_BYTES) / _HELD)
    largest = min(largest_batch(needed, room), data.counts["train"])
    if programs.memory_bytes <= room:
        largest = max(largest, batch_size)
    memory_bytes = programs.memory_bytes + features.memory_bytes
    device = jax.devices()[0].device_kind
    if memory_bytes > available:
        raise TrainingError(
            f"Batches of {batch_size} need {format_bytes(memory_bytes)}, but of the memory of"
            f" {device} only {format_bytes(available)} are free.\n{_advice(largest)}"
        )
    if largest < batch_size:
        safer = largest or max(batch_size // 2, 1)
        progress.warn(
            f"Batches of {batch_size} may not fit: a training needs more than its programs, see"
            f" docs/speed.md. Smaller ones are safer: --batch-size {safer}"
        )
    progress.note("Measuring a few batches.")
    with naming_a_smaller_batch(batch_size, _smaller):
        # Where nothing is kept that could be, it is said what that would give.
        could_be = features.can_be_kept and features.why_not is not None
        timing = measure(
            session,
            data,
            progress,
            in_memory=features.held_by is not None or could_be,
            place=ROWS_OF[features.held_by] if features.held_by else None,
        )
        features = _with_reading(features, session, data, programs, progress)
    return Plan(
        data=data.name,
        examples=data.counts,
        num_classes=len(data.class_names),
        batch_size=batch_size,
        devices=f"{session.mesh.size} x {device}",
        prefix=Part(frozen, programs.prefix, timing.prefix),
        train=Part(trained, programs.train, timing.train),
        evaluate=Part(trained, programs.evaluate, timing.evaluate),
        decode_seconds=timing.decode,
        compile_seconds=compile_seconds,
        memory_bytes=memory_bytes,
        available_bytes=available,
        largest_batch_size=largest,
        features=features,
        starting_seconds=timing.prefix_starting + timing.starting,
        epochs=expected_epochs(resolved, data, timing, features),
    )


def _with_reading(
    features: Features, session: Session, data: DataSet, programs: Programs, progress: Progress
) -> Features:
    """Return features with the time of reading those of which the most are stored."""
    stored: dict[tuple[Split, View], int] = {("validation", None): features.stored_validation}
    for view, count in zip(views_of(session.config), features.stored, strict=True):
        stored["train", view] = count
    split, view = max(stored, key=lambda each: stored[each])
    if not stored[split, view]:
        return features
    try:
        held = features.held_by is not None
        seconds = time_reading(session, data, programs, split, view, held=held)
    except CacheError as error:
        progress.warn(f"How long reading features takes is left out: {first_line(error)}")
        return features
    return dataclasses.replace(features, reading_seconds=seconds)


def _smaller(batch_size: int) -> str:
    return f"plan with --batch-size {batch_size}"


def _advice(largest: int) -> str:
    if largest:
        return f"Batches of {largest} would be safe: --batch-size {largest}"
    return "Train less of the network (--train-from), or use a smaller --image-size."
