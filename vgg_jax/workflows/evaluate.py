"""Evaluation of a run on a split of its own data or of others with the same classes."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.data.examples import DataSet, Split
from vgg_jax.data.sources import open_data
from vgg_jax.demo.pictures import demo_folder
from vgg_jax.errors import DataError
from vgg_jax.progress import Progress
from vgg_jax.training.checkpoints import Which
from vgg_jax.training.loop import evaluate_batches
from vgg_jax.training.losses import example_losses, probabilities
from vgg_jax.training.metrics import Evaluation, evaluation
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.steps import Batch, data_mesh
from vgg_jax.workflows.feed import absolute_data, plain_batches
from vgg_jax.workflows.load import load_classifier


def evaluate(
    run: str | Path,
    *,
    data: str | None = None,
    split: Split = "test",
    checkpoint: Which = "best",
    weights: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate the classifier of a run; every example counts once.

    Args:
        run: The run's folder.
        data: As for training; by default the run's own. Other data in a folder of class folders
            without splits count whole.
        split: train, validation or test.
        checkpoint: `best` or `latest`.
        weights: Where the backbone is, if it is no longer where the run found it.
        progress: Receives what happens; silent by default.

    Raises:
        DataError: If there is no such split, or its classes are not the run's.
        RunError: If the folder is no run, has no checkpoint, or was damaged.
        WeightsError: If the backbone is gone or is another one.
    """
    progress = progress or Progress()
    folder = RunFolder(Path(run))
    record, config = folder.read_record(), folder.read_config()
    if data is None and record.converted_from:
        raise DataError(
            f"{run} was converted from {record.converted_from} and has no data of its own; name"
            " some with --data."
        )
    other = data is not None and absolute_data(data) != config.data
    dataset = open_data(
        data or config.data,
        demo_folder=demo_folder,
        seed=config.seed,
        needed=(split,),
        unsplit_as=split if other else None,
    )
    for note in dataset.notes:
        progress.note(note)
    numbers = _class_numbers(dataset, record.class_names)
    classifier = load_classifier(run, checkpoint=checkpoint, weights=weights)
    examples = dataset.splits[split]
    progress.work_started(f"Evaluating on {split}", len(examples))

    def evaluate_batch(batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits, labels = classifier.logits(batch["images"]), numbers[batch["labels"]]
        return example_losses(config.loss, logits, labels), probabilities(config.loss, logits)

    mesh = data_mesh()
    losses, shares, labels = evaluate_batches(
        evaluate_batch, plain_batches(config, examples, mesh.size), mesh, progress.work_done
    )
    progress.close()
    return evaluation(losses, shares, np.asarray(numbers)[labels], record.class_names)


def _class_numbers(dataset: DataSet, class_names: tuple[str, ...]) -> jax.Array:
    """Return the run's number of each class of a data set, by name.

    Raises:
        DataError: If the classes are not the same.
    """
    missing = sorted(set(class_names) - set(dataset.class_names))
    extra = sorted(set(dataset.class_names) - set(class_names))
    if missing or extra:
        differences = [
            f"{what}: {', '.join(names)}"
            for what, names in (("missing", missing), ("extra", extra))
            if names
        ]
        raise DataError(
            f"The classes of {dataset.name} are not those that the run was trained on;"
            f" {'; '.join(differences)}. Classes are matched by the names of their folders."
        )
    return jnp.asarray([class_names.index(name) for name in dataset.class_names])
