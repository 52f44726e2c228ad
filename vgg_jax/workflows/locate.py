"""Finds weights: the file that a name stands for, and the folder that it was converted into."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Iterator, Sequence
from pathlib import Path

from vgg_jax.cache import cache_folder
from vgg_jax.errors import WeightsError, did_you_mean
from vgg_jax.progress import Progress
from vgg_jax.weights.download import fetch, public_files
from vgg_jax.weights.download_errors import DownloadError
from vgg_jax.weights.metadata import METADATA_FILE, read_metadata

DEMO = "demo"
WEIGHTS_FOLDER = Path("weights")


def weight_names() -> tuple[str, ...]:
    """Return the names that need no file of the user's: `demo` and those of the manifest."""
    return (DEMO, *public_files())


def locate_file(source: str | Path, progress: Progress) -> Path:
    """Return the weight file that is meant, downloaded if need be.

    Args:
        source: `demo`, a name in the manifest, or a file.
        progress: Told of a download.

    Raises:
        WeightsError: If it cannot be downloaded; it names the ways out.
    """
    name = str(source)
    if name == DEMO:
        return demo_file()
    if name in public_files():
        try:
            return fetch(public_files()[name], download_folder(), progress)
        except DownloadError as error:
            raise WeightsError(f"{error}\n{_ways_out(name)}") from error
    return Path(source).expanduser()


def download_folder() -> Path:
    """Return where downloaded weight files are kept."""
    return cache_folder() / "downloads"


def converted_folder(name_or_folder: str | Path) -> Path | None:
    """Return the folder of converted weights that is meant; None if a name is yet to be converted.

    In this order: a folder by its path, `./weights/NAME`, `NAME` in the user's cache.

    Raises:
        WeightsError: If there is none, and it is no name that can be converted.
    """
    name = str(name_or_folder)
    places = (Path(name).expanduser(), WEIGHTS_FOLDER / name, cached_weights(name))
    if name in weight_names():
        places = places[1:]  # a folder of pictures may well be called "demo"
    for folder in places:
        if (folder / METADATA_FILE).is_file():
            return folder
    if name in weight_names():
        return None
    if Path(name).is_file():
        raise WeightsError(
            f"{name} is a file; weights are used from a folder of converted ones.\n"
            f"Run `vgg-jax convert-weights {name}` first."
        )
    for folder in places:
        if folder.is_dir():
            raise WeightsError(
                f"{folder} holds no converted weights (no {METADATA_FILE}).\n{_ways_out(name)}"
            )
    known = [*weight_names(), *_names_in(WEIGHTS_FOLDER), *_names_in(cached_weights(""))]
    looked = " or ".join(dict.fromkeys(map(str, places)))  # all the same for an absolute path
    raise WeightsError(
        f"No converted weights at {looked}.{did_you_mean(name, known)}\n{_ways_out(name)}"
    )


def folders_with_digest(digest: str) -> Iterator[Path]:
    """Yield the folders of converted weights under `./weights` and in the cache with a digest."""
    for parent in (WEIGHTS_FOLDER, cached_weights("")):
        for name in sorted(_names_in(parent)):
            try:
                if read_metadata(parent / name)["digest"] == digest:
                    yield parent / name
            except WeightsError:
                continue  # no weights, or damaged ones: not those that are looked for


def cached_weights(name: str) -> Path:
    """Return where weights of that name are kept in the user's cache."""
    if name == DEMO:
        # A later version of the package may carry other weights, hence the checksum in the name.
        name = f"{DEMO}-{hashlib.sha256(demo_file().read_bytes()).hexdigest()[:12]}"
    return cache_folder() / "weights" / name


def demo_file() -> Path:
    """Return the weight file that the package carries.

    Raises:
        WeightsError: If the installation lacks it.
    """
    path = Path(str(importlib.resources.files("vgg_jax") / "demo" / "vgg16_quarter.h5"))
    if not path.is_file():
        raise WeightsError(f"This installation of vgg-jax lacks the demo's weights ({path}).")
    return path


def _ways_out(name: str) -> str:
    out = name if name in weight_names() else "NAME"
    return (
        f"Convert a local file (vgg-jax convert-weights FILE --out weights/{out}), "
        "name a folder of converted weights (--weights DIR), "
        "or start without any (--weights random:0)."
    )


def _names_in(folder: Path) -> Sequence[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
