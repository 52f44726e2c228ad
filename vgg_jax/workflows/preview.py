"""Pictures of what augmentations do, through the code that a training uses."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from vgg_jax.augment.chain import Chain, build_chain
from vgg_jax.compilation import keep_compiled_programs
from vgg_jax.config import Fill, Interpolation
from vgg_jax.data.examples import Examples
from vgg_jax.data.pipeline import Batch, batches
from vgg_jax.data.sources import open_data
from vgg_jax.demo.pictures import demo_folder
from vgg_jax.errors import ConfigError, DataError
from vgg_jax.plugin_choices import PluginChoice
from vgg_jax.progress import Progress
from vgg_jax.training.steps import example_keys, mixing_key
from vgg_jax.workflows.announce import announce_code

_GAP, _HEADING = 4, 14  # pixels
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def preview_picture(
    picture: Path, choices: Sequence[PluginChoice], *, views: int = 8, seed: int = 0
) -> np.ndarray:
    """Return a picture and versions of it, at 224 x 224.

    Args:
        picture: An image file.
        choices: The augmentations.
        views: How many versions.
        seed: Of what is drawn.

    Returns:
        uint8 `[1, 1 + views, 224, 224, 3]`, the original first.

    Raises:
        VggJaxError: If the picture cannot be read, or an augmentation cannot be used or mixes
            pictures with each other.
    """
    chain = build_chain(choices)
    if chain.mixes:
        names = ", ".join(choice.ref for choice in choices)
        flags = " ".join(f"--augment {shlex.quote(str(choice))}" for choice in choices)
        raise ConfigError(
            f"{names} mixes pictures with each other, and {picture} is one picture: all versions"
            f" would look like it. Show several, with vgg-jax augment-preview --data FOLDER {flags}"
            " --out FILE.png."
        )
    try:
        data = picture.read_bytes()
    except OSError as error:
        raise DataError(f"{picture} cannot be read: {error.strerror}.") from error
    examples = Examples(
        [str(picture)], np.zeros(1, np.int32), lambda position: data, lambda: [len(data)]
    )
    return _views(chain, examples, [0], 1, views, seed, 224, "bilinear")


def preview_data(
    data: str,
    choices: Sequence[PluginChoice],
    *,
    views: int = 8,
    pictures: int = 4,
    seed: int = 0,
    image_size: int = 224,
    interpolation: Interpolation = "bilinear",
    fill: Fill = "nearest",
    fill_value: float = 0.0,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return training pictures, of different classes where there are some, and versions of them.

    Version k of a picture is the one that a training with this seed sees in epoch k. What mixes
    pictures does so among those that are returned.

    Args:
        data: As for training.
        choices: The augmentations.
        views: How many versions of each.
        pictures: How many pictures.
        seed: Of the training.
        image_size: Side in pixels of the square that pictures are stretched to.
        interpolation: How.
        fill: What lies beyond the edges.
        fill_value: The grey of `fill="constant"`, in [0, 1].
        progress: Receives what happens; silent by default.

    Returns:
        uint8 `[pictures, 1 + views, S, S, 3]`, the originals first.

    Raises:
        VggJaxError: If the data or an augmentation cannot be used.
    """
    if not choices:
        raise ConfigError("There is nothing to show: name an augmentation with --augment.")
    announce_code(progress or Progress(), "augmentation", choices)
    chain = build_chain(choices, fill=fill, fill_value=fill_value)
    dataset = open_data(data, demo_folder=demo_folder, seed=seed, needed=("train",))
    examples = dataset.splits["train"]
    firsts = [int(np.argmax(examples.labels == label)) for label in np.unique(examples.labels)]
    others = [i for i in range(len(examples)) if i not in firsts]
    positions = [*firsts, *others][:pictures]
    classes = len(dataset.class_names)
    return _views(chain, examples, positions, classes, views, seed, image_size, interpolation)


def write_grid(images: np.ndarray, path: Path) -> None:
    """Write versions of pictures as one PNG, the originals under their own heading.

    Args:
        images: uint8 `[pictures, versions, S, S, 3]`. Several pictures are the rows of the grid; a
            single one's versions fill a square.
        path: File to write.

    Raises:
        ConfigError: If it cannot be written, or its suffix is another than `.png`.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--out is {str(path)!r}, but must end in .png.")
    rows, columns, side = images.shape[:3]
    tiles = list(images.reshape(-1, side, side, 3))
    names = ["original" if i % columns == 0 else str(i % columns) for i in range(len(tiles))]
    if rows == 1:
        columns = math.ceil(math.sqrt(len(tiles)))
        rows = math.ceil(len(tiles) / columns)
    step_x, step_y = side + _GAP, side + _GAP + _HEADING
    grid = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), _WHITE)
    draw = ImageDraw.Draw(grid)
    for i, (tile, name) in enumerate(zip(tiles, names, strict=True)):
        left, top = _GAP + i % columns * step_x, _GAP + i // columns * step_y
        draw.text((left, top - 1), name, fill=_BLACK)
        grid.paste(Image.fromarray(tile), (left, top + _HEADING))
    try:
        grid.save(path, format="PNG")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error


def _views(
    chain: Chain,
    examples: Examples,
    positions: Sequence[int],
    classes: int,
    views: int,
    seed: int,
    image_size: int,
    interpolation: Interpolation,
) -> np.ndarray:
    keep_compiled_programs()

    def read(number: int) -> Batch:
        host = chain.host if number else ()
        return next(
            batches(
                examples,
                batch_size=len(positions),
                image_size=image_size,
                interpolation=interpolation,
                order=np.asarray(positions),
                host=host,
                host_seed=(seed, number),
            )
        )

    @jax.jit
    def augmented(images: jax.Array, content: jax.Array, number: jax.Array) -> jax.Array:
        images = chain.apply(example_keys(seed, number, content), images)
        if chain.mixes:
            targets = jax.nn.one_hot(jnp.asarray(labels), classes)
            valid = jnp.ones(len(targets), bool)
            images, _ = chain.mix(mixing_key(seed, number), images, targets, valid)
        return jnp.round(images * 255).astype(jnp.uint8)

    original = read(0)
    labels = original.labels
    found = [original.images]
    for number in range(1, views + 1):
        batch = read(number) if chain.host else original
        shown = augmented(batch.images, batch.content, jnp.asarray(number, jnp.uint32))
        found.append(np.asarray(shown))
    return np.stack(found, axis=1)
