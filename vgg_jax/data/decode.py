"""From the bytes of a picture file to uint8 RGB of the network's size, with Pillow and NumPy only.

A picture either becomes upright 8-bit RGB or raises `DataError` with its name: none is replaced,
repaired or skipped. Transparency is dropped and colour profiles are ignored, as Keras, torchvision,
timm and fastai do (all call Pillow's `convert("RGB")`), so that a model sees what it saw there.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vgg_jax.errors import DataError

Interpolation = Literal["bilinear", "nearest"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("bilinear", "nearest")

# Pillow loads its readers on first use, which is not safe in threads.
Image.init()
# What a file is, its content tells. Without a list Pillow would try EPS too, starting Ghostscript.
_FORMATS = [
    name
    for name in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")
    if name in Image.OPEN  # AVIF since Pillow 11.3
]

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LOCK = threading.Lock()
_IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # an entry of warnings.filters


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decode one picture, turned upright as its EXIF tag says; of an animation, the first frame.

    Args:
        data: The whole file: JPEG (MPO too), PNG, GIF, BMP, WebP, TIFF, PPM or AVIF.
        name: The path, or whatever the user knows the picture by; for messages.

    Returns:
        uint8 RGB `[H, W, 3]`, writable. 16-bit grey keeps its high byte, as 16-bit colour does in
        Pillow; float grey is taken as [0, 1], or as [0, 255] if it goes beyond 1.

    Raises:
        DataError: If the file is empty, truncated, damaged, no picture, or unpacks to a huge one.
    """
    if not data:
        raise DataError(f"{name}: the file is empty (0 bytes). Replace or remove it.")
    image = _turn_upright(_load(data, name))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = _grey_to_8_bits(image, name)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("RGBa", "La"):  # colours multiplied by alpha
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    return np.array(image.convert("RGB"))


def resize_image(
    image: np.ndarray, size_px: int, interpolation: Interpolation = "bilinear"
) -> np.ndarray:
    """Stretch a uint8 `[H, W, 3]` to `[size_px, size_px, 3]`.

    `bilinear` is Pillow's, which averages over all the pixels that shrink into one; `nearest` takes
    one of them, as Keras' `flow_from_directory` does unless told otherwise.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"interpolation is {interpolation!r}, but must be one of {INTERPOLATIONS}."
        )
    if image.shape[:2] == (size_px, size_px):
        return image
    resampling = Image.Resampling[interpolation.upper()]
    return np.array(Image.fromarray(image).resize((size_px, size_px), resampling))


def _load(data: bytes, name: str) -> Image.Image:
    """Open and unpack a picture, or raise `DataError` for whatever Pillow raises."""
    _ignore_pillow_warnings()
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_size(image.size, name)
        image.load()
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name}: cannot be read as a picture ({len(data):,} bytes, beginning with "
            f"{data[:8]!r}). Replace or remove it; these can be read: {', '.join(_FORMATS)}."
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: too large for a real picture ({error}). Remove it.") from error
    except Exception as error:  # Pillow's errors for damaged files are not of one family of types
        reason = str(error) or type(error).__name__
        state = "truncated" if "truncated" in reason.lower() else "damaged"
        raise DataError(
            f"{name}: the picture is {state} ({reason}; {len(data):,} bytes). Replace or remove it."
        ) from error
    return image


def _ignore_pillow_warnings() -> None:
    """Keep Pillow's remarks on odd but readable files to itself."""
    # Not with catch_warnings: it swaps the whole process's filters, and readers are threads.
    with _LOCK:
        if _IGNORE_PILLOW not in warnings.filters:
            warnings.filterwarnings("ignore", module=r"PIL\.")


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise DataError(f"{name}: the picture is {width} x {height} pixels. Replace or remove it.")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise DataError(
            f"{name}: {width} x {height} pixels are more than the {limit:,} that are read "
            "(small files that unpack to huge pictures can fill the memory). Make it smaller."
        )


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error):
        return image  # the pixels are whole, only the note about them is damaged: shown as stored
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _grey_to_8_bits(image: Image.Image, name: str) -> np.ndarray:
    """Scale grey of 16 bits or floats to uint8 `[H, W]`, where Pillow's `convert` would clip it."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode != "F" and low >= 0 and high <= 0xFFFF:
        return (values >> 8).astype(np.uint8)
    if image.mode == "F" and np.isfinite(values).all() and low >= 0 and high <= 255:
        return np.rint(values * 255 if high <= 1 else values).astype(np.uint8)
    raise DataError(
        f"{name}: its grey values go from {low} to {high}, but only 8 or 16 bits, or floats in "
        "[0, 1] or [0, 255], can be read. Save it with 8 bits."
    )
