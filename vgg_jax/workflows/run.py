"""A trained run, as Python sees it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vgg_jax.data.examples import Split
from vgg_jax.progress import EpochMetrics
from vgg_jax.training.metrics import Evaluation
from vgg_jax.workflows.evaluate import evaluate
from vgg_jax.workflows.runs import best_of


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        path: Its folder.
        history: What each epoch gave, in order.
    """

    path: Path
    history: list[EpochMetrics]

    @property
    def best(self) -> EpochMetrics:
        """The epoch of highest validation accuracy; of equals the lowest loss, then the latest.

        Of those whose checkpoint is there: it is what `evaluate` takes.
        """
        return best_of(self.history, self.path) or self.history[-1]

    def evaluate(self, data: str | None = None, split: Split = "test") -> Evaluation:
        """Evaluate the best epoch's classifier, on a split of the run's own data by default."""
        # A head in a file: this very training has run its code; another file is refused.
        return evaluate(self.path, data=data, split=split, allow_local_code=True)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "run": str(self.path),
            "epochs": [dataclasses.asdict(metrics) for metrics in self.history],
            "best": dataclasses.asdict(self.best),
        }
