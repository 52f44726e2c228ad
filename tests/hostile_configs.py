"""Configurations of Keras models that mean harm: each function makes JSON from a sound one's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np


def deep_json(rng: np.random.Generator, config: str) -> str:
    """Nest lists deeper than Python's stack."""
    return "[" * 100_000 + "]" * 100_000


def wide_json(rng: np.random.Generator, config: str) -> str:
    """Give a model more layers than any has."""
    layer = {"class_name": "Dropout", "config": {}}
    return json.dumps({"class_name": "Sequential", "config": {"layers": [layer] * 50_000}})


def nested_json(rng: np.random.Generator, config: str) -> str:
    """Nest models in models."""
    start = '{"class_name": "Model", "config": {"layers": ['
    return start * 400 + "]}}" * 400


def odd_json(rng: np.random.Generator, config: str) -> str:
    """Put odd values in place of random ones."""
    odd = (None, 0, -1, 1e308, float("nan"), "", "x" * 1000, [], {}, [[]], True, 10**400)

    def spoil(value: Any, share: float) -> Any:
        if rng.random() < share:
            return odd[int(rng.integers(len(odd)))]
        if isinstance(value, dict):
            return {key: spoil(entry, share) for key, entry in value.items()}
        if isinstance(value, list):
            return [spoil(entry, share) for entry in value]
        return value

    return json.dumps(spoil(json.loads(config), 10 ** -rng.uniform(0.5, 3)))


def cut_json(rng: np.random.Generator, config: str) -> str:
    """End in the middle, or carry on behind the end."""
    place = int(rng.integers(len(config)))
    return [config[:place], config + "]", "NaN", '"', "9" * 5000, ""][int(rng.integers(6))]


CONFIG_MAKERS = {
    "deep configuration": deep_json,
    "wide configuration": wide_json,
    "nested configuration": nested_json,
    "odd configuration": odd_json,
    "cut configuration": cut_json,
}
