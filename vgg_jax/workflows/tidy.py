"""Runs made fit to be kept: what nothing needs is deleted, and the backbone is put in."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from vgg_jax.cache import size_of
from vgg_jax.errors import RunError
from vgg_jax.progress import Progress, format_bytes
from vgg_jax.training.run_files import BACKBONE_FOLDER, SCRATCH
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.workflows.backbone import open_backbone, open_run_backbone
from vgg_jax.workflows.runs import RUNS_FOLDER, list_runs


@dataclasses.dataclass(frozen=True)
class Superfluous:
    """Something that a run can do without.

    Attributes:
        path: The file or folder.
        why: Why nothing needs it.
        bytes: Of its files.
    """

    path: Path
    why: str
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return dataclasses.asdict(self) | {"path": str(self.path)}


def clean_runs(
    folder: Path = RUNS_FOLDER, *, delete: bool = False, progress: Progress | None = None
) -> list[Superfluous]:
    """Find what nothing needs in the runs of a folder; running ones are left alone.

    That is: runs that were ended before their first checkpoint, checkpoints that were set aside as
    damaged, and what a process left behind that was killed while it saved.

    Args:
        folder: Of runs.
        delete: Whether to delete it, too.
        progress: Told of locks that were left behind; silent by default.

    Raises:
        RunError: If there is no such folder, or something cannot be deleted.
    """
    note = (progress or Progress()).note
    found: list[Superfluous] = []
    for summary in list_runs(folder):
        if summary.state in ("running", "damaged"):
            continue
        run = RunFolder(summary.path)
        superfluous = _superfluous(run)
        if superfluous and delete:
            try:
                with run.locked(note):
                    superfluous = _superfluous(run)
                    for one in superfluous:
                        _delete(one.path)
            except RunError as error:
                note(f"{run.path} is left as it is: {error}")
                continue
        found += superfluous
    return found


def _superfluous(run: RunFolder) -> list[Superfluous]:
    if run.holds_nothing():
        return [Superfluous(run.path, "run without any checkpoint", size_of(run.path))]
    found = [(path, "damaged checkpoint") for path in run.checkpoints.damaged()]
    found += [(path, "half written checkpoint") for path in run.checkpoints.leftovers()]
    partial = run.path / f"{BACKBONE_FOLDER}{SCRATCH}"
    found += [(partial, "half written backbone")] if partial.is_dir() else []
    return [Superfluous(path, why, size_of(path)) for path, why in found]


def _delete(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RunError(f"{path} cannot be deleted: {error.strerror}.") from error


def pack_run(run: str | Path, weights: str | None = None, progress: Progress | None = None) -> Path:
    """Copy a run's backbone into it, so that its folder can be moved to another machine.

    Args:
        run: The run's folder.
        weights: Where the backbone is, if it is not to be searched for.
        progress: Told of what is done; silent by default.

    Returns:
        The folder of weights in the run.

    Raises:
        RunError: If it is no run, is being trained, or cannot be written.
        WeightsError: If the backbone is gone or is another one.
    """
    progress = progress or Progress()
    folder = RunFolder(Path(run))
    record = folder.read_record()
    target = folder.path / BACKBONE_FOLDER
    opened = open_run_backbone(folder, record, weights, progress)
    if opened.folder is None:
        raise RunError(
            f"{run} has no backbone to be put into it: its weights, {opened.weights}, are made from"
            " their seed wherever it goes."
        )
    if opened.folder.resolve() == target.resolve():
        progress.note(f"{run} already holds its backbone.")
        return target
    scratch = target.with_name(f"{BACKBONE_FOLDER}{SCRATCH}")
    with folder.locked(progress.note):
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(opened.folder, scratch)
            if open_backbone(str(scratch)).digest != record.weights_digest:
                raise RunError(f"{opened.folder} was changed while it was copied. Try again.")
            shutil.rmtree(target, ignore_errors=True)  # a damaged one, or it would have been opened
            scratch.rename(target)
        except OSError as error:
            raise folder.not_written(error) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    progress.note(f"Copied {opened.folder}, {format_bytes(size_of(target))}, into {target}.")
    return target
