"""Where there is room in memory for the rows of a training."""

from __future__ import annotations

import jax

from vgg_jax.config import ResolvedConfig
from vgg_jax.training.memory import available_bytes
from vgg_jax.training.rows import DeviceRows, HostRows

MOST_OF_MEMORY = 0.4  # of what is free


class Memory:
    """The part of the free memory in which rows may be kept: the devices', then the host's."""

    def __init__(self, config: ResolvedConfig, mesh: jax.sharding.Mesh) -> None:
        """Look how much is free."""
        self._mesh = mesh
        # The CPU has no memory of its own: then both are the same.
        self._apart = all(device.memory_stats() for device in mesh.devices.flat)
        self._host = int(MOST_OF_MEMORY * available_bytes())
        on_devices = int(MOST_OF_MEMORY * available_bytes(mesh))
        self._devices = on_devices if config.on_device == "auto" else 0

    def on_devices(self, place: type[DeviceRows | HostRows] | None) -> bool:
        """Tell whether what is held so takes memory of the devices."""
        return place is DeviceRows or (place is HostRows and not self._apart)

    def place_for(self, count: int) -> type[DeviceRows | HostRows] | None:
        """Return what holds so many bytes; None if there is no room."""
        if count <= self._devices:
            return DeviceRows
        return HostRows if count <= self._host else None

    def take(self, place: type[DeviceRows | HostRows], count: int) -> None:
        """Reserve so many bytes."""
        if place is DeviceRows or not self._apart:
            self._devices -= count
        if place is HostRows or not self._apart:
            self._host -= count
