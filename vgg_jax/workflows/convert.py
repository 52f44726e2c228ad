"""Turns weight files into folders of converted weights, and finds such folders by name."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgg_jax.cache import cache_folder
from vgg_jax.errors import WeightsError, did_you_mean
from vgg_jax.weights.keras import read_keras_h5

DEMO = "demo"
NAMES = (DEMO, "imagenet", "imagenet-top")
WEIGHTS_FOLDER = Path("weights")
_PUBLISHED_STEMS = {
    "vgg16_weights_tf_dim_ordering_tf_kernels_notop": "imagenet",
    "vgg16_weights_tf_dim_ordering_tf_kernels": "imagenet-top",
}


@dataclass(frozen=True)
class ConvertResult:
    """What a conversion came to.

    Attributes:
        folder: The folder of converted weights.
        written: False if the same weights were there already.
        source: Name of the weight file.
        sha256: SHA-256 of the weight file.
        layers: Number of layers with weights, the top's included.
        parameters: Number of parameters, the top's included.
        width: Channels relative to the published network.
        top: Whether fc6, fc7 and fc8 are there.
        digest: One digest over all that decides the network's outputs.
    """

    folder: Path
    written: bool
    source: str
    sha256: str
    layers: int
    parameters: int
    width: float
    top: bool
    digest: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return dataclasses.asdict(self) | {"folder": str(self.folder)}


def convert_weights(source: str | Path, out: Path | None = None) -> ConvertResult:
    """Convert a weight file into an Orbax folder.

    Args:
        source: `demo` for the backbone that the package carries, or a weight file.
        out: Folder to write. Default: `weights/demo`; `weights/imagenet` or `weights/imagenet-top`
            for the two files that Keras publishes; `weights/<name of the file>` otherwise.

    Raises:
        WeightsError: If the file is not a usable VGG16 weight file, or `out` holds something else.
    """
    if source == DEMO:
        path, name = _demo_file(), DEMO
    elif source in NAMES:
        raise WeightsError(f"{source!r} cannot be downloaded yet.\n{_ways_out(str(source))}")
    else:
        path = Path(source)
        name = _PUBLISHED_STEMS.get(path.stem, path.stem)
    weights = read_keras_h5(path)

    from vgg_jax.weights.store import read_metadata, save_weights  # imports JAX and Orbax

    folder = WEIGHTS_FOLDER / name if out is None else Path(out)
    written = save_weights(weights, folder)
    return ConvertResult(
        folder=folder,
        written=written,
        source=weights.source,
        sha256=weights.sha256,
        layers=len(weights.layers) + len(weights.top),
        parameters=weights.parameters,
        width=weights.width,
        top=bool(weights.top),
        digest=read_metadata(folder)["digest"],
    )


def find_weights(name_or_folder: str | Path) -> Path:
    """Return the folder of converted weights that is meant.

    In this order: a folder by its path, `./weights/NAME`, `NAME` in the user's cache. `demo` is
    converted into the cache when it is first asked for.

    Raises:
        WeightsError: If there is none; it names the ways out.
    """
    from vgg_jax.weights.store import METADATA_FILE

    name = str(name_or_folder)
    cache = cache_folder() / "weights"
    places = (Path(name).expanduser(), WEIGHTS_FOLDER / name, cache / name)
    if name in NAMES:
        places = places[1:]  # a folder of pictures may well be called "demo"
    for folder in places:
        if (folder / METADATA_FILE).is_file():
            return folder
    if name == DEMO:
        return _cached_demo(cache)
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
    hint = did_you_mean(name, [*NAMES, *_names_in(WEIGHTS_FOLDER), *_names_in(cache)])
    looked = " or ".join(str(folder) for folder in places)
    raise WeightsError(f"No converted weights at {looked}.{hint}\n{_ways_out(name)}")


def _ways_out(name: str) -> str:
    out = name if name in NAMES else "NAME"
    return (
        f"Convert a local file (vgg-jax convert-weights FILE.h5 --out weights/{out}), "
        "name a folder of converted weights (--weights DIR), "
        "or start without any (--weights random:0). Downloading comes with a later version."
    )


def _names_in(folder: Path) -> Sequence[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _demo_file() -> Path:
    path = Path(str(importlib.resources.files("vgg_jax") / "demo" / "vgg16_quarter.h5"))
    if not path.is_file():
        raise WeightsError(f"This installation of vgg-jax lacks the demo's weights ({path}).")
    return path


def _cached_demo(cache: Path) -> Path:
    """Convert the demo's weights into the cache unless they are there."""
    path = _demo_file()
    # A later version of the package may carry other weights, hence the checksum in the name.
    folder = cache / f"{DEMO}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        convert_weights(DEMO, folder)
    return folder
