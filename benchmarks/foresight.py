"""What `vgg-jax plan` foresees, held against the training that follows; run by bench.py."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert import CONVERT, keeping_programs, measure, write_weights
from epochs import VGG_JAX

_HEAD = ("--epochs", "60", "--train-from", "head", "--head", "linear")
TRAININGS = {
    "kept features": ("--epochs", "3"),
    "features computed anew": ("--epochs", "2", "--features", "off"),
    "2 views of --augment keras": ("--epochs", "3", "--views", "2", "--augment", "keras"),
    "frozen up to the head": _HEAD,
    "the same, its features stored": _HEAD,
    "once more": _HEAD,
    "and again": _HEAD,
}


def foreseen(folder: Path, data: Path, batch_size: int) -> Iterator[dict[str, Any]]:
    """Plan and train the recipe, and compare epoch by epoch.

    Each time the cache is empty, but for what a training with the same options left there.
    """
    weights = folder / "weights"
    if not weights.exists():
        measure(CONVERT, write_weights(folder / "notop.h5"), weights)
    for number, (who, options) in enumerate(TRAININGS.items()):
        common = ("--data", data, "--weights", weights, "--batch-size", str(batch_size), *options)
        cache = [*TRAININGS.values()].index(options)
        environment = keeping_programs(folder / f"foresight-cache-{cache}")
        planning = measure(VGG_JAX, "plan", "--json", *common, environment=environment)
        plan = json.loads(planning.output.splitlines()[-1])
        run = folder / f"foresight-{number}"
        training = measure(VGG_JAX, "train", *common, "--run", run, environment=environment)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        took = [json.loads(line)["seconds"] for line in lines]
        expected = plan["epoch_seconds"]
        ratios = [e / t for e, t in zip(expected, took, strict=True)][:3]
        within = _share_within(expected, took, 0.0)
        as_told = _share_within(expected, took, plan["resolution_seconds"])
        last = expected[-1]
        median = statistics.median(t for e, t in zip(expected, took, strict=True) if e == last)
        yield {
            "who": who,
            "seconds_expected": [round(seconds, 4) for seconds in expected[:3]],
            "seconds_taken": [round(seconds, 4) for seconds in took[:3]],
            "expected_over_taken": [round(ratio, 3) for ratio in ratios],
            "all_expected_over_taken": round(sum(expected) / sum(took), 3),
            "last_expected": round(last, 5),
            "median_taken": round(median, 5),
            "last_expected_over_median": round(last / median, 3),
            "share_within_25_percent": round(within, 3),
            "share_within_25_percent_as_told": round(as_told, 3),
            "seconds_planning": round(planning.seconds, 1),
            "memory_mb_expected": round(plan["memory_bytes"] / 1e6),
            "peak_mb": round(training.peak_mb),
            "others_cores": [planning.others_cores, training.others_cores],
        }


def _share_within(expected: list[float], took: list[float], least: float) -> float:
    """Return the share of epochs within 25%; those of under `least` seconds count as that long."""
    ratios = [max(e, least) / max(t, least) for e, t in zip(expected, took, strict=True)]
    return sum(0.75 <= ratio <= 1.25 for ratio in ratios) / len(ratios)
