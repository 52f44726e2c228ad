"""Measure the demo's accuracy: as it is, with bfloat16, and that of a random control.

    python benchmarks/demo_accuracy.py [--seeds 5] [--epochs N] [--learning-rate R]

Each training is a plain `vgg-jax train --head dense256`, evaluated on the test split. The control
trains the same layers on an untrained backbone of the same width. Figures: README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from vgg_jax import train


def main() -> None:
    """Train in each way with each seed; print accuracies as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--learning-rate", type=float)
    args = parser.parse_args()
    asked = {"epochs": args.epochs, "learning_rate": args.learning_rate}
    options: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("demo", "demo-features-bfloat16", "demo-precision-bfloat16", "random"):
            accuracies, seconds = [], []
            for seed in range(args.seeds):
                given = dict(options)
                if name == "demo-features-bfloat16":
                    given["features_dtype"] = "bfloat16"
                if name == "demo-precision-bfloat16":
                    given["precision"] = "bfloat16"
                if name == "random":
                    given["weights"] = f"random:{seed}:0.25"
                start = time.perf_counter()
                run = train(seed=seed, run=str(Path(folder, f"{name}-{seed}")), **given)
                accuracies.append(round(run.evaluate().accuracy, 4))
                seconds.append(time.perf_counter() - start)
            result = {
                "case": name,
                "mean_test_accuracy": round(statistics.mean(accuracies), 4),
                "test_accuracy_by_seed": accuracies,
                "seconds_per_training": round(statistics.median(seconds), 1),
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
