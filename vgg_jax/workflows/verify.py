"""Checks folders of converted weights again: every checksum, and the proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vgg_jax.errors import WeightsError
from vgg_jax.progress import Progress
from vgg_jax.training.run_files import BACKBONE_FOLDER
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.weights.arrange import arrange_weights
from vgg_jax.weights.checksums import file_sha256
from vgg_jax.weights.download import public_files
from vgg_jax.weights.metadata import CONVERT_AGAIN, METADATA_FILE
from vgg_jax.weights.proof import prove
from vgg_jax.weights.reading import read_weight_file
from vgg_jax.weights.report import Proof
from vgg_jax.weights.store import Weights, load_weights
from vgg_jax.workflows.adopt import head_parameters
from vgg_jax.workflows.convert import versions
from vgg_jax.workflows.forward import forward_pass
from vgg_jax.workflows.locate import demo_file, download_folder, locate_file


@dataclass(frozen=True)
class VerifyResult:
    """What a folder of converted weights turned out to be, all its checksums being right.

    Attributes:
        folder: The folder of weights.
        arrays: Number of arrays compared with their checksums.
        digest: One digest over all that decides the network's outputs.
        source: The file that they were converted from, or None if it is not at hand.
        proof: That the stored weights do what the file says, or None without the file.
    """

    folder: Path
    arrays: int
    digest: str
    source: Path | None
    proof: Proof | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return dataclasses.asdict(self) | {
            "folder": str(self.folder),
            "source": str(self.source) if self.source else None,
            "proof": self.proof.as_dict() if self.proof else None,
        }


def verify_weights(
    folder: Path, source: str | Path | None = None, progress: Progress | None = None
) -> VerifyResult:
    """Compare all checksums, and prove the conversion again if the file is at hand.

    The checksums are of each array, of the files with the earlier proof, and of `metadata.json`.

    Args:
        folder: A folder of converted weights, or the run that a converted classifier became.
        source: The file that they were converted from, or its name in the manifest; by default
            looked for where it was then, and among the downloads.
        progress: Told of a download; silent by default.

    Raises:
        WeightsError: If the folder was changed, `source` is another file, or the proof fails.
    """
    folder = Path(folder)
    run = None
    if not (folder / METADATA_FILE).is_file() and (folder / BACKBONE_FOLDER).is_dir():
        run, folder = RunFolder(folder), folder / BACKBONE_FOLDER
    stored = load_weights(folder, with_top=True)
    _check_files(stored)
    if run is not None:
        _check_run(run, stored)
    parts = (stored.layers, stored.top, stored.head)
    given = None if source is None else locate_file(source, progress or Progress())
    path = _find_source(stored, given)
    return VerifyResult(
        folder=folder,
        arrays=2 * sum(map(len, parts)),
        digest=stored.digest,
        source=path,
        proof=_prove(stored, path) if path else None,
    )


def _check_files(stored: Weights) -> None:
    """Raise unless the files beside the arrays, such as the proof, are those written with them."""
    for name, expected in stored.metadata.get("files", {}).items():
        found = _sha256(stored.folder / name)
        if found != expected:
            what = "is missing or cannot be read" if found is None else "is not what was written"
            raise WeightsError(f"{stored.folder} was changed: its {name} {what}. {CONVERT_AGAIN}")


def _check_run(run: RunFolder, stored: Weights) -> None:
    """Raise unless the run's classifier is the one whose weights lie in it."""
    trained = run.checkpoints.restore(run.checkpoints.find("best")).trained
    run.checkpoints.close()
    expected = head_parameters(stored.head) if stored.head else {}
    same = trained.keys() == expected.keys() and all(
        np.array_equal(trained[path], array) for path, array in expected.items()
    )
    if not same or run.read_record().weights_digest != stored.digest:
        raise WeightsError(
            f"{run.path} was changed: its classifier is not the one in {stored.folder}. Convert the"
            " file again."
        )


def _find_source(stored: Weights, given: Path | None) -> Path | None:
    """Return the file that weights were converted from, told by its checksum."""
    expected = stored.metadata["source"]["sha256"]
    if given is None:
        return next((path for path in _places(stored) if _sha256(path) == expected), None)
    found = _sha256(given)
    if found is None:
        raise WeightsError(f"No weight file that can be read: {given}.")
    if found != expected:
        raise WeightsError(
            f"{stored.folder} was not converted from {given}: that file's SHA-256 is"
            f" {found[:16]}…, the recorded one {expected[:16]}…."
        )
    return given


def _places(stored: Weights) -> Iterator[Path]:
    recorded = stored.metadata["source"].get("path")
    if recorded:
        yield Path(recorded)
    yield demo_file()
    yield from (download_folder() / public.file for public in public_files().values())


def _prove(stored: Weights, path: Path) -> Proof:
    described = stored.metadata["source"]
    file = read_weight_file(
        path,
        layout=described.get("layout"),
        preprocessing=described.get("preprocessing"),
        backbone_only=not (stored.top or stored.head),
    )
    # The table is made anew from the file; what decides the outputs is the folder's.
    decisive = ("layers", "top", "head", "width", "mean", "scale")
    weights = dataclasses.replace(
        arrange_weights(file), **{name: getattr(stored, name) for name in decisive}
    )
    try:
        return prove(file, weights, forward_pass(weights), versions())
    except WeightsError as error:
        raise WeightsError(
            f"{stored.folder} does not hold what {path} does, though its checksums match; convert"
            f" the file again.\n{str(error).splitlines()[0]}"
        ) from error


def _sha256(path: Path) -> str | None:
    """Return a file's checksum; None if it is not there or not for us to read."""
    try:
        return file_sha256(path) if path.is_file() else None
    except OSError:
        return None
