"""Pure functions on one image, float32 RGB `[H, W, 3]` in [0, 1]; each returns another such image.

They do what the functions of these names do in Pillow and torchvision, without rounding to 8 bits
unless they say so. Factors may be traced. All can be jitted and vmapped.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Shares of red, green and blue in a grey, of ITU-R BT.601, as Pillow's mode "L" has them.
_LUMA = (0.299, 0.587, 0.114)
_LEVELS = 256
Factor = jax.typing.ArrayLike


def grayscale(image: jax.Array) -> jax.Array:
    """Return the image without its colours: three equal channels."""
    return jnp.broadcast_to(_luma(image), image.shape)


def adjust_brightness(image: jax.Array, factor: Factor) -> jax.Array:
    """Blend from black (factor 0) to the image (1) and beyond."""
    return jnp.clip(image * factor, 0, 1)


def adjust_contrast(image: jax.Array, factor: Factor) -> jax.Array:
    """Blend from the image's mean grey (factor 0) to the image (1) and beyond."""
    return _blend(_luma(image).mean(), image, factor)


def adjust_saturation(image: jax.Array, factor: Factor) -> jax.Array:
    """Blend from the grey image (factor 0) to the image (1) and beyond."""
    return _blend(_luma(image), image, factor)


def adjust_sharpness(image: jax.Array, factor: Factor) -> jax.Array:
    """Blend from a blurred image (factor 0) to the image (1) and beyond; the border stays.

    The blur is Pillow's `ImageFilter.SMOOTH`: 5 parts of a pixel and 1 part of each neighbour.
    """
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width, _ = image.shape
    total = sum(padded[i : i + height, j : j + width] for i in range(3) for j in range(3))
    smooth = (total + 4 * image) / 13
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inside = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return _blend(jnp.where(inside, smooth, image), image, factor)


def adjust_hue(image: jax.Array, turn: Factor) -> jax.Array:
    """Turn the hue of HSV by `turn`, a share of the colour circle, in [-0.5, 0.5]."""
    # Each channel as a function of the hue, value and chroma, without going through its six cases.
    value, lowest = image.max(-1), image.min(-1)
    chroma = value - lowest
    divisor = jnp.where(chroma > 0, chroma, 1)
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    # Not `value == red`: XLA may compute the two apart, and round them differently.
    sixths = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / divisor,
        jnp.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    place = jnp.stack([sixths + offset for offset in (5.0, 3.0, 1.0)], -1) + 6 * turn
    place = place - 6 * jnp.floor(place / 6)
    ramp = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
    turned = value[..., None] - chroma[..., None] * ramp
    return jnp.where(jnp.asarray(turn) == 0, image, turned)


def invert(image: jax.Array) -> jax.Array:
    """Return the negative."""
    return 1 - image


def solarize(image: jax.Array, threshold: Factor) -> jax.Array:
    """Invert every value that is at least `threshold`, in [0, 1]."""
    return jnp.where(image >= threshold, 1 - image, image)


def posterize(image: jax.Array, bits: Factor) -> jax.Array:
    """Keep the upper `bits`, 0 to 8, of each value's 8 bits; below 8 values are rounded first."""
    step = jnp.exp2(8.0 - jnp.asarray(bits, jnp.float32))
    levels = jnp.floor(_levels(image) / step) * step / 255
    return jnp.where(jnp.asarray(bits) >= 8, image, levels)


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretch each channel so that its darkest value becomes 0 and its brightest 1.

    A channel of one value stays as it is.
    """
    lowest, highest = image.min((0, 1)), image.max((0, 1))
    span = highest - lowest
    stretched = (image - lowest) / jnp.where(span > 0, span, 1)
    return jnp.where(span > 0, stretched, image)


def equalize(image: jax.Array) -> jax.Array:
    """Spread each channel's values evenly over the range, by Pillow's rule, in 8 bits."""
    levels = _levels(image).astype(jnp.int32)
    return jax.vmap(_equalized, in_axes=-1, out_axes=-1)(levels) / 255


def gaussian_blur(image: jax.Array, sigma: Factor, radius: int) -> jax.Array:
    """Blur by a Gaussian of `sigma` pixels, cut off at `radius` pixels; edges are mirrored.

    A sigma of 0 leaves the image as it is. The mirrored edge is `scipy.ndimage`'s mode `mirror`.
    """
    sigma = jnp.asarray(sigma, jnp.float32)
    places = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * jnp.square(places / jnp.maximum(sigma, 1e-6)))
    weights = weights / weights.sum()
    for axis in (0, 1):
        size = image.shape[axis]
        widths = [(0, 0)] * 3
        widths[axis] = (radius, radius)
        padded = jnp.pad(image, widths, mode="reflect")
        parts = (
            weights[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i in range(2 * radius + 1)
        )
        image = sum(parts, jnp.zeros_like(image))
    return image


def _equalized(channel: jax.Array) -> jax.Array:
    """Map a channel's levels, int `[H, W]`, through Pillow's table."""
    histogram = jnp.zeros(_LEVELS, jnp.int32).at[channel.reshape(-1)].add(1)
    last = jnp.max(jnp.where(histogram > 0, jnp.arange(_LEVELS), 0))
    step = (histogram.sum() - histogram[last]) // (_LEVELS - 1)
    before = jnp.cumsum(histogram) - histogram
    table = jnp.clip((step // 2 + before) // jnp.maximum(step, 1), 0, _LEVELS - 1)
    table = jnp.where(step > 0, table, jnp.arange(_LEVELS))
    return table[channel].astype(jnp.float32)


def _levels(image: jax.Array) -> jax.Array:
    """Return the values as the whole numbers 0 to 255 that they are in 8 bits."""
    return jnp.round(image * 255)


def _luma(image: jax.Array) -> jax.Array:
    """Return the grey of each pixel, `[H, W, 1]`."""
    red, green, blue = (image[..., i : i + 1] * share for i, share in enumerate(_LUMA))
    return red + green + blue


def _blend(start: jax.Array, image: jax.Array, factor: Factor) -> jax.Array:
    return jnp.clip(start + (image - start) * factor, 0, 1)
