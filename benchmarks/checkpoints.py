"""What saving costs a training: how long the loop is held up, how large it is, how soon it goes on.

Run by bench.py, in processes of its own; the first argument says which part.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert import CONVERT, measure, write_weights

HERE = Path(__file__).parent
RUN = f"import sys; sys.path.insert(0, {str(HERE)!r}); import checkpoints; checkpoints.main()"


def saving(folder: Path, data: Path, batch_size: int) -> Iterator[dict[str, Any]]:
    """Train an epoch of the recipe, and of a linear head alone; then go on with the recipe."""
    weights = folder / "weights"
    if not weights.exists():
        measure(CONVERT, write_weights(folder / "notop.h5"), weights)
    for head, boundary in (("dense256", "conv5_1"), ("linear", "head")):
        run = folder / f"saving-{head}"
        found = measure(RUN, "train", data, weights, run, str(batch_size), head, boundary)
        case = json.loads(found.output.splitlines()[-1])
        yield {"who": f"{head} from {boundary}", **case, "others_cores": found.others_cores}
    found = measure(RUN, "resume", folder / "saving-dense256")
    case = json.loads(found.output.splitlines()[-1])
    yield {"who": "resume", **case, "others_cores": found.others_cores}


def train(data: str, weights: str, run: str, batch_size: str, head: str, boundary: str) -> None:
    """Train one epoch, saving every half minute and at its end, and time the saves in the loop."""
    from vgg_jax.training.run_folder import RunFolder
    from vgg_jax.workflows.train import train

    held: dict[str, list[float]] = {"save_epoch": [], "save_unfinished": []}

    def timed(name: str) -> None:
        plain = getattr(RunFolder, name)

        def method(*arguments: Any) -> None:
            start = time.perf_counter()
            plain(*arguments)
            held[name].append(time.perf_counter() - start)

        setattr(RunFolder, name, method)

    for name in held:
        timed(name)
    trained = train(
        data=data,
        weights=weights,
        run=run,
        head=head,
        train_from=boundary,
        epochs=1,
        batch_size=int(batch_size),
        checkpoint_minutes=0.5,
    )
    every = [seconds for each in held.values() for seconds in each]
    (epoch,) = (trained.path / "checkpoints").glob("epoch_*")
    size = sum(path.stat().st_size for path in epoch.rglob("*") if path.is_file())
    print(
        json.dumps(
            {
                "epoch_seconds": round(trained.history[0].seconds, 1),
                "saves": len(every),
                "held_seconds_each": round(sum(every) / len(every), 3),
                "held_share_of_epoch": round(held["save_epoch"][0] / trained.history[0].seconds, 5),
                "checkpoint_mb": round(size / 1e6, 2),
            }
        )
    )


def resume(run: str) -> None:
    """Go on with a run until its first step is saved, and say how long that took after imports."""
    from vgg_jax.errors import TrainingInterrupted
    from vgg_jax.progress import Progress
    from vgg_jax.training.interruption import Interruption
    from vgg_jax.workflows.resume import resume_training

    class FirstStep(Interruption):
        """Ends the training after its first step."""

        @property
        def signal_number(self) -> int | None:
            return 15

    start = time.perf_counter()
    marks: dict[str, float] = {}

    class Marks(Progress):
        def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
            marks["ready"] = time.perf_counter() - start

    try:
        resume_training({"run": run, "epochs": 2}, Marks(), FirstStep())
    except TrainingInterrupted:
        marks["saved"] = time.perf_counter() - start
    print(
        json.dumps(
            {
                "seconds_to_first_batch": round(marks["ready"], 2),
                "seconds_to_first_step_saved": round(marks["saved"], 2),
            }
        )
    )


def main() -> None:
    """Run the part that the arguments name."""
    {"train": train, "resume": resume}[sys.argv[1]](*sys.argv[2:])
