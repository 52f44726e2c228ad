"""`vgg-jax plan`."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from vgg_jax.cli.console import (
    console_progress,
    importing,
    interruptible,
    print_json,
    print_line,
    print_table,
    tell_failed_writes_once,
    user_errors,
)
from vgg_jax.cli.training_options import ConfigOption, TrainingOptions, takes_training_options
from vgg_jax.config import TrainConfig, merge_options
from vgg_jax.heap import keep_freed_memory
from vgg_jax.progress import format_bytes, format_seconds

if TYPE_CHECKING:
    from vgg_jax.workflows.plan import Plan


@takes_training_options
def plan(
    options: TrainingOptions,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what a training with these options would take: time, memory, the largest safe batch."""
    with user_errors():
        checked = TrainConfig.from_values(merge_options(options, config))
        keep_freed_memory()
        with importing():
            from vgg_jax.workflows.plan import plan

        interruptible()
        tell_failed_writes_once()
        progress = console_progress()
        try:
            result = plan(checked, progress)
        finally:
            progress.close()
        if as_json:
            print_json(result.as_dict())
        else:
            _report(result)


def _report(plan: Plan) -> None:
    counts = ", ".join(f"{count} {split}" for split, count in plan.examples.items())
    print_line(
        f"{plan.data}: {plan.num_classes} classes; {counts}. Batches of {plan.batch_size} on"
        f" {plan.devices}.\n"
    )
    parts = {"frozen": plan.prefix, "trained": plan.train, "trained, in validation": plan.evaluate}
    print_table(
        ["of one batch", "parameters", "multiply-adds", "bytes moved", "time"],
        [
            [
                name,
                f"{part.parameters:,}",
                f"{part.program.multiply_adds:,}",
                format_bytes(part.program.bytes_accessed),
                format_seconds(part.seconds),
            ]
            for name, part in parts.items()
        ],
    )
    parameters = plan.prefix.parameters + plan.train.parameters
    features = plan.features
    shape = " x ".join(map(str, features.shape))
    stored = sum(features.stored) + features.stored_validation
    keeping = "kept" + (f", {stored:,} from earlier trainings" if stored else "")
    if features.why_not:
        keeping = f"not kept: {features.why_not}"
    print_line(
        f"""
Parameters: {parameters:,}, of which {plan.train.parameters / parameters:.1%} are trained.
Memory: {format_bytes(plan.memory_bytes)} of {format_bytes(plan.available_bytes)} that are free.\
 Largest safe batch: {plan.largest_batch_size or "none"}.
Features: {shape} a picture, {format_bytes(features.bytes)} in all; {keeping}.
Decoding: {1 / plan.decode_seconds:,.0f} pictures a second.
Compiling: {format_seconds(plan.compile_seconds)}, once; the training will find it done.
"""
    )
    kept, computed = plan.epochs.kept, plan.epochs.computed
    columns = [computed] if kept is None else [kept, computed]
    total = ["all", *(format_seconds(sum(column)) for column in columns)]
    header = ["epoch", "features kept", "computed anew"] if kept else ["epoch", "computed anew"]
    told = [[_told(seconds, plan.resolution_seconds) for seconds in each] for each in columns]
    print_table(header, [*_rows(told), total])


def _told(seconds: float, resolution: float) -> str:
    is_told = seconds >= resolution
    return format_seconds(seconds) if is_told else f"under {format_seconds(resolution)}"


def _rows(columns: list[list[str]]) -> list[list[str]]:
    """Return a row for each stretch of epochs of which the same is told."""
    rows: list[list[str]] = []
    last = 0
    for times, alike in groupby(zip(*columns, strict=True)):
        first, last = last + 1, last + len(list(alike))
        rows.append([f"{first}" if first == last else f"{first} to {last}", *times])
    return rows
