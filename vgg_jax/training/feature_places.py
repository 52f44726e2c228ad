"""Whether and where a training keeps its features: what was asked for, what there is room for.

Nothing is done about it here, so that a plan comes to what the training will.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable

from vgg_jax.augment.chain import Chain
from vgg_jax.cache import CACHE_VARIABLE, cache_folder
from vgg_jax.config import ResolvedConfig
from vgg_jax.errors import CacheError, ConfigError
from vgg_jax.layers import LAYERS
from vgg_jax.options import parse_size
from vgg_jax.progress import format_bytes
from vgg_jax.table_folders import FEATURES
from vgg_jax.training.room import MOST_OF_MEMORY, Memory
from vgg_jax.training.rows import DeviceRows, HostRows

_MOST_OF_DISK = 0.9  # of what is free
# Here features are 12 MB a picture at 224 x 224, for at most 13% of the network's work.
_TOO_EARLY = LAYERS[: LAYERS.index("conv2_1")]


def why_not_kept(config: ResolvedConfig, chain: Chain) -> str | None:
    """Return why features are not to be kept, whatever room there is; None if they are.

    Raises:
        ConfigError: If the options contradict each other.
    """
    names = ", ".join(config.augment)
    if chain.mixes and config.views:
        raise ConfigError(
            f"--views {config.views} does not go with augmentations that mix the pictures of a"
            f" batch ({names}): features then depend on the batch. Leave out one or the other."
        )
    if config.features == "off":
        return "--features off"
    if config.features == "auto" and config.train_from in _TOO_EARLY:
        return (
            f"what comes before {config.train_from} is computed faster than its features, which are"
            " large, are read"
        )
    if chain.mixes:
        return f"{names} mixes the pictures of each batch anew"
    if config.augment and not config.views:
        return (
            f"{names} changes the pictures anew in each epoch. --views 4 would keep 4 views of each"
            " picture, and epochs after the first 4 would cost several times less"
        )
    return None


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the features of a training are kept.

    Attributes:
        memory: What holds them in memory; None if they are not there.
        on_disk: Whether they are on disk, too.
        no_disk: Why they are not, although that was wanted; else empty.
        why_not: Why they are kept nowhere; None if they are kept.
    """

    memory: type[DeviceRows | HostRows] | None = None
    on_disk: bool = False
    no_disk: str = ""
    why_not: str | None = None


def choose_places(
    config: ResolvedConfig,
    memory: Memory,
    *,
    count: int,
    disk_bytes: int,
    memory_bytes: int,
    stored: Callable[[], int],
) -> Places:
    """Choose between disk and memory, as far as the options leave that open.

    Args:
        config: The options; with them features are to be kept.
        memory: Where there is room.
        count: Features to keep, over all splits and views.
        disk_bytes: Size of one on disk.
        memory_bytes: Size of one in memory.
        stored: Tells how many are on disk already; may raise `CacheError`.

    Raises:
        ConfigError: If there is no room for what was asked for.
    """
    place = memory.place_for(count * memory_bytes)
    no_memory = no_disk = remedy = ""
    if place is None:
        size = format_bytes(count * memory_bytes)
        no_memory = f"{size} are more than {MOST_OF_MEMORY:.0%} of the free memory"
    if config.features != "memory":
        no_disk, remedy = _why_not_on_disk(config, count, disk_bytes, stored)
    if config.features == "disk" and no_disk:
        others = "off" if no_memory else "memory or off"
        raise ConfigError(f"--features disk: {no_disk}.\n{remedy} Else use --features {others}.")
    if config.features == "memory" and no_memory:
        raise ConfigError(f"--features memory: {no_memory}. Use --features disk or off.")
    if no_disk and no_memory:
        return Places(no_disk=no_disk, why_not=f"{no_disk}, and {no_memory}")
    return Places(place, config.features != "memory" and not no_disk, no_disk)


def _why_not_on_disk(
    config: ResolvedConfig, count: int, disk_bytes: int, stored: Callable[[], int]
) -> tuple[str, str]:
    """Return the reason and what helps; both are empty if there is none."""
    size = count * disk_bytes
    if size > (parse_size(config.cache_size) or 0):
        reason = f"{format_bytes(size)} are more than --cache-size {config.cache_size}"
        return reason, "Give a larger --cache-size."
    try:
        missing = (count - stored()) * disk_bytes
    except CacheError as error:
        reason, _, remedy = str(error).partition("\n")
        return reason.rstrip("."), remedy
    root = cache_folder() / FEATURES
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    if missing <= int(_MOST_OF_DISK * shutil.disk_usage(there).free):
        return "", ""
    reason = (
        f"{format_bytes(missing)} are more than {_MOST_OF_DISK:.0%} of what is free at {root}"
        f" ({CACHE_VARIABLE} names another place)"
    )
    return reason, "Make room there, for instance by vgg-jax cache clear."
