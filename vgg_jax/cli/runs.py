"""`vgg-jax runs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vgg_jax.cli.console import (
    WeightsOption,
    console_progress,
    format_age,
    importing,
    print_json,
    print_line,
    print_table,
    say,
    user_errors,
)
from vgg_jax.progress import EpochMetrics, format_bytes, format_seconds

if TYPE_CHECKING:
    from vgg_jax.workflows.runs import RunSummary


class _ListByDefault(TyperGroup):
    """Takes `runs DIR` for `runs list DIR`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


runs = typer.Typer(cls=_ListByDefault)
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder with runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@runs.callback()
def group() -> None:
    """Your runs: `vgg-jax runs [DIR]` lists them."""


@runs.command("list")
def list_runs(folder: FolderArgument = Path("runs"), as_json: JsonOption = False) -> None:
    """List the runs in DIR and in its sweeps: what became of them, and their best.

    The one that changed last comes first.

    `running` have a process at work; `interrupted` were stopped or killed; `failed` ended with an
    error.
    """
    with user_errors():
        from vgg_jax.workflows import runs as workflow

        found = workflow.list_runs(folder)
        if as_json:
            print_json({"runs": [run.as_dict() for run in found]})
            return
        if not found:
            say(f"No runs in {folder}.")
            return
        print_table(
            ["run", "state", "epoch", "best", "accuracy", "loss", "size", "age"],
            [_row(run) for run in found],
            left=2,
        )


@runs.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    as_json: JsonOption = False,
) -> None:
    """Show a run: its options, its epochs, its checkpoints, and what became of it."""
    with user_errors():
        from vgg_jax.workflows.runs import describe_run

        described = describe_run(run)
        if as_json:
            print_json(described.as_dict())
            return
        summary = described.summary
        detail = f" ({summary.detail})" if summary.detail else ""
        print_line(f"{run}: {summary.state}{detail}, {format_bytes(summary.bytes)}")
        for name, value in described.config.items():
            print_line(f"  {name} = {value!r}")
        print_line(f"  classes = {', '.join(described.record['class_names'])}")
        if described.record["examples"]:
            print_line(f"  examples = {_examples(described.record)}")
        for change in described.record["overrides"]:
            changed = ", ".join(
                f"{name} {one['before']!r} -> {one['after']!r}"
                for name, one in change["options"].items()
            )
            print_line(
                f"  overridden in epoch {change['epoch']}, after step {change['step']}:"
                f" {changed or 'other data'}"
            )
        if described.history:
            best = summary.best
            print_line("")
            print_table(
                ["epoch", "loss", "accuracy", "validation loss", "accuracy", "time", ""],
                [_epoch_row(metrics, metrics == best) for metrics in described.history],
                left=0,
            )
        print_line(f"\nCheckpoints: {', '.join(described.checkpoints) or 'none'}")
        if summary.state in ("interrupted", "failed"):
            print_line(f"Go on with it: {described.resume_command}")


@runs.command()
def clean(
    folder: FolderArgument = Path("runs"),
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete it; without this it is only listed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List what nothing needs: runs without a checkpoint, damaged and half written checkpoints.

    Runs of sweeps in DIR are looked at, too.
    """
    with user_errors():
        with importing():
            from vgg_jax.workflows.tidy import clean_runs

        found = clean_runs(folder, delete=delete, progress=console_progress())
        if as_json:
            print_json({"deleted": delete, "found": [one.as_dict() for one in found]})
            return
        for one in found:
            print_line(f"{one.path}  {one.why}, {format_bytes(one.bytes)}")
        total = format_bytes(sum(one.bytes for one in found))
        if not found:
            say("There is nothing to delete.")
        elif delete:
            say(f"Deleted: {total}.")
        else:
            say(f"{total} in all. Nothing was deleted; that is done by --delete.")


@runs.command()
def pack(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    weights: WeightsOption = None,
) -> None:
    """Copy its backbone into RUN, so that the folder can be moved to another machine."""
    with user_errors():
        with importing():
            from vgg_jax.workflows.tidy import pack_run

        print_line(str(pack_run(run, weights, console_progress())))


def _examples(record: dict[str, Any]) -> str:
    """Say how many examples each split has, and the beginning of its digest, where it has one."""
    digests = {split: f" ({digest[:12]})" for split, digest in record["data_digests"].items()}
    counts = record["examples"].items()
    return ", ".join(f"{count} {split}{digests.get(split, '')}" for split, count in counts)


def _row(run: RunSummary) -> list[str]:
    best = run.best
    wanted = "?" if run.epochs_wanted is None else run.epochs_wanted
    return [
        str(run.path),
        run.state,
        "" if run.state == "converted" else f"{run.epochs}/{wanted}",
        *(
            ["", "", ""]
            if best is None
            else [
                str(best.epoch),
                f"{best.validation_accuracy:.3f}",
                f"{best.validation_loss:.4f}",
            ]
        ),
        format_bytes(run.bytes),
        format_age(run.age_seconds),
    ]


def _epoch_row(metrics: EpochMetrics, is_best: bool) -> list[str]:
    return [
        str(metrics.epoch),
        f"{metrics.loss:.4f}",
        f"{metrics.accuracy:.3f}",
        f"{metrics.validation_loss:.4f}",
        f"{metrics.validation_accuracy:.3f}",
        format_seconds(metrics.seconds),
        "best" if is_best else "",
    ]
