"""Measure what augmentation gains, with views that are kept and anew in each epoch.

    python benchmarks/views_accuracy.py [--seeds 5] [--pictures 10] [--epochs 40]

Few drawn pictures a class, others than the demo's, on the packaged backbone: `dense256` and block 5
are trained, and tested on 60 others a class. Figures: README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from vgg_jax import train
from vgg_jax.demo.pictures import write_pictures

WAYS: dict[str, dict[str, Any]] = {
    "no augmentation": {"features": "memory"},
    **{
        f"--views {n}": {"augment": ("keras",), "views": n, "features": "memory"}
        for n in (2, 4, 10)
    },
    "anew in each epoch": {"augment": ("keras",)},
}
SEED = 7


def main() -> None:
    """Train in each way with each seed; print accuracies as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=10, help="for training, of each class")
    parser.add_argument("--epochs", type=int, default=40)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        write_pictures(data, {"train": args.pictures, "validation": 20, "test": 60}, SEED)
        for number, (name, options) in enumerate(WAYS.items()):
            accuracies: list[float] = []
            for seed in range(args.seeds):
                run = train(
                    data=str(data),
                    weights="demo",
                    image_size=96,
                    batch_size=20,
                    learning_rate=3e-4,
                    epochs=args.epochs,
                    seed=seed,
                    run=str(Path(folder, f"{number}-{seed}")),
                    **options,
                )
                accuracies.append(round(run.evaluate().accuracy, 4))
            result = {
                "case": name,
                "mean_test_accuracy": round(statistics.mean(accuracies), 4),
                "test_accuracy_by_seed": accuracies,
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
