"""The programs of a training, compiled but not run: what they compute, and the memory they take."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vgg_jax.training.inputs import Inputs
from vgg_jax.training.steps import Steps, Totals, replicate
from vgg_jax.workflows.session import Session


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program, as it works on one batch.

    Attributes:
        multiply_adds: Half of its floating-point operations.
        bytes_accessed: Bytes that it reads and writes.
        memory_bytes: Memory that it takes on each device, its arguments included, a chunk's where
            it takes chunks.
    """

    multiply_adds: int
    bytes_accessed: int
    memory_bytes: int


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs that a batch of training or validation goes through.

    Attributes:
        prefix: From pictures to features; augments them, if the training does.
        train: From features to the next state.
        evaluate: From features to losses and probabilities.
        features: Those of one picture, as `prefix` gives them.
        pooled: The same, as `train` and `evaluate` take them.
    """

    prefix: Program
    train: Program
    evaluate: Program
    features: jax.ShapeDtypeStruct
    pooled: jax.ShapeDtypeStruct

    @property
    def memory_bytes(self) -> int:
        """Memory that a training takes on each device."""
        # While a batch is trained on, the next one goes through the prefix.
        suffix = max(self.train.memory_bytes, self.evaluate.memory_bytes)
        return self.prefix.memory_bytes + suffix


class _Lowered(NamedTuple):
    """Programs that are not compiled yet; the rest is as in `Programs`."""

    prefix: jax.stages.Lowered
    train: jax.stages.Lowered
    evaluate: jax.stages.Lowered
    features: jax.ShapeDtypeStruct
    pooled: jax.ShapeDtypeStruct


def compile_programs(session: Session, rows: int) -> Programs:
    """Compile what a session runs on batches of so many rows, from their shapes alone.

    Steps that are then taken on such batches find these programs, and compile nothing. What they
    do in loops is counted as if it were done once; see `counted`.
    """
    lowered = _lower(session, session.steps, rows)
    return Programs(
        prefix=_compiled(lowered.prefix),
        train=_compiled(lowered.train),
        evaluate=_compiled(lowered.evaluate),
        features=lowered.features,
        pooled=lowered.pooled,
    )


def with_chunks(
    programs: Programs, session: Session, rows: int, chunk_sizes: tuple[int, int]
) -> Programs:
    """Compile those that take chunks of training and validation, of so many batches, too.

    Returns:
        The programs, with the memory of these; the rest is still that of a batch.
    """
    mesh, pooled, state = session.mesh, programs.pooled, session.state

    def chunked(of_batch: Program, size: int, program: Any, *given: Any) -> Program:
        if size == 1:
            return of_batch

        def array(shape: tuple[int, ...], dtype: Any, *spread: str) -> Any:
            sharding = NamedSharding(mesh, PartitionSpec(*spread))
            return jax.ShapeDtypeStruct((size, rows, *shape), dtype, sharding=sharding)

        features = array(pooled.shape, pooled.dtype)
        labels, valid = array((), np.int32, "data"), array((), np.bool_, "data")
        inputs = Inputs(features, labels, valid)
        found = _compiled(program.lower(session.steps, *given, inputs))
        return dataclasses.replace(of_batch, memory_bytes=found.memory_bytes)

    steps, totals = session.steps, replicate(mesh, Totals.start())
    train = chunked(programs.train, chunk_sizes[0], steps.train, state, totals)
    evaluate = chunked(programs.evaluate, chunk_sizes[1], steps.evaluate, state.trained)
    return dataclasses.replace(programs, train=train, evaluate=evaluate)


def counted(programs: Programs, session: Session, rows: int) -> Programs:
    """Return the programs with the multiply-adds of the network, as if it were plainly convolved.

    What the prefix moves is counted in one that is plainly convolved, too, and takes whole batches.
    """
    if not session.steps.on_one_cpu:
        return programs
    steps = dataclasses.replace(session.steps, on_one_cpu=False, precision="float32")
    plain = _lower(session, steps, rows)
    whole = _compiled(plain.prefix)
    return dataclasses.replace(
        programs,
        prefix=dataclasses.replace(
            programs.prefix,
            multiply_adds=whole.multiply_adds,
            bytes_accessed=whole.bytes_accessed,
        ),
        train=dataclasses.replace(programs.train, multiply_adds=_multiply_adds(plain.train)),
        evaluate=dataclasses.replace(
            programs.evaluate, multiply_adds=_multiply_adds(plain.evaluate)
        ),
    )


def _lower(session: Session, steps: Steps, rows: int) -> _Lowered:
    mesh, frozen = session.mesh, session.frozen
    by_row = NamedSharding(mesh, PartitionSpec("data"))

    # On one device XLA calls what it gives replicated. A program for rows that are spread would be
    # another one to the compilation cache, and the training would compile its own.
    given = by_row if mesh.size > 1 else NamedSharding(mesh, PartitionSpec())

    def array(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding = by_row) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

    side = session.config.image_size
    images, content = array((side, side, 3), np.uint8), array((3,), np.uint32)
    labels, valid = array((), np.int32), array((), np.bool_)
    number = jax.ShapeDtypeStruct((), np.uint32)
    targets = labels
    if session.chain.mixes:
        batch = {"images": images, "labels": labels, "valid": valid, "content": content}
        prefix = steps.mixed_features.lower(steps, frozen, batch, number, number)
        features, targets = prefix.out_info
        targets = array(targets.shape[1:], targets.dtype, given)
    elif session.chain.on_device:
        prefix = steps.augmented_features.lower(steps, frozen, images, content, number)
        features = prefix.out_info
    else:
        prefix = steps.features.lower(steps, frozen, images)
        features = prefix.out_info
    pooled = jax.eval_shape(steps.pool, features)
    pooled = array(pooled.shape[1:], pooled.dtype, given)
    totals = replicate(mesh, Totals.start())
    return _Lowered(
        prefix,
        steps.train.lower(steps, session.state, totals, Inputs(pooled, targets, valid)),
        steps.evaluate.lower(steps, session.state.trained, Inputs(pooled, labels, valid)),
        _row(features),
        _row(pooled),
    )


def _compiled(lowered: jax.stages.Lowered) -> Program:
    compiled = lowered.compile()
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    return Program(
        multiply_adds=_multiply_adds(lowered),
        bytes_accessed=round(cost["bytes accessed"]),
        memory_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
    )


def _multiply_adds(lowered: jax.stages.Lowered) -> int:
    # Counted in what XLA was given: it may make calls of a library out of convolutions, as on GPUs,
    # and cannot look into these.
    cost: Any = lowered.cost_analysis()
    return round(cost["flops"] / 2)


def _row(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape[1:], array.dtype)
