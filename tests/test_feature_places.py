"""Where features are to be kept: what the options leave open, and what there is room for."""

from __future__ import annotations

import shutil

import pytest

from vgg_jax.config import TrainConfig
from vgg_jax.errors import CacheError, ConfigError
from vgg_jax.training.feature_places import Places, choose_places
from vgg_jax.training.room import Memory
from vgg_jax.training.rows import HostRows

COUNT, ON_DISK, IN_MEMORY = 10, 400, 100  # bytes each
MUCH, LITTLE = 1 << 30, 500
TOO_MUCH_FOR_MEMORY = "1.0 kB are more than 40% of the free memory"


def unreadable() -> int:
    raise CacheError("The folder cannot be used: Permission denied.\nSet the permissions.")


@pytest.fixture
def choose(monkeypatch):
    """Choose with some options, and with so much memory and disk."""

    def choose(features="auto", memory=MUCH, disk=MUCH, stored=lambda: 0, **options) -> Places:
        usage = shutil.disk_usage("/")._replace(free=disk)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
        place = HostRows if memory >= COUNT * IN_MEMORY else None
        monkeypatch.setattr(Memory, "__init__", lambda self: None)
        monkeypatch.setattr(Memory, "place_for", lambda self, count: place)
        return choose_places(
            TrainConfig.from_values({"features": features, **options}).resolved(),
            Memory(),  # pyright: ignore[reportCallIssue]
            count=COUNT,
            disk_bytes=ON_DISK,
            memory_bytes=IN_MEMORY,
            stored=stored,
        )

    return choose


def test_both_are_used_where_both_have_room(choose):
    assert choose() == choose("disk") == Places(HostRows, on_disk=True)
    assert choose(memory=LITTLE) == choose("disk", memory=LITTLE) == Places(on_disk=True)
    assert choose("memory") == Places(HostRows)


def test_what_is_stored_needs_no_room(choose):
    assert choose(disk=LITTLE).no_disk.startswith("4.0 kB are more than 90% of what is free at ")
    assert choose(disk=LITTLE, stored=lambda: 9).on_disk


def test_memory_stands_in_for_a_disk_that_cannot_be_had(choose):
    places = choose(cache_size="1kB")
    assert places == Places(HostRows, no_disk="4.0 kB are more than --cache-size 1kB")
    assert choose(stored=unreadable).no_disk == "The folder cannot be used: Permission denied"
    nowhere = choose(memory=LITTLE, cache_size="1kB")
    assert nowhere.memory is None
    assert not nowhere.on_disk
    assert nowhere.why_not == f"{nowhere.no_disk}, and {TOO_MUCH_FOR_MEMORY}"


def test_what_was_asked_for_is_had_or_refused(choose):
    with pytest.raises(ConfigError, match=r"--features memory: 1.0 kB .* Use --features disk or"):
        choose("memory", memory=LITTLE)


@pytest.mark.parametrize(
    ("why", "remedy"),
    [
        ({"cache_size": "1kB"}, "Give a larger --cache-size."),
        ({"stored": unreadable}, "Set the permissions."),
        ({"disk": LITTLE}, "Make room there, for instance by vgg-jax cache clear."),
    ],
)
@pytest.mark.parametrize(("memory", "others"), [(MUCH, "memory or off"), (LITTLE, "off")])
def test_what_is_advised_would_help(choose, why, remedy, memory, others):
    with pytest.raises(ConfigError) as caught:
        choose("disk", memory=memory, **why)
    advice = str(caught.value).splitlines()[1]
    assert advice == f"{remedy} Else use --features {others}."
