"""Evaluation of a run on a split of its own data or of others with the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.augment.chain import Chain, build_chain
from vgg_jax.compilation import keep_compiled_programs
from vgg_jax.config import ResolvedConfig
from vgg_jax.data.examples import DataSet, Split, learn_contents
from vgg_jax.data.pipeline import Batch
from vgg_jax.data.sources import open_data
from vgg_jax.demo.pictures import demo_folder
from vgg_jax.errors import ConfigError, DataError
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.progress import Progress
from vgg_jax.training.checkpoints import Which
from vgg_jax.training.losses import example_losses, probabilities, share_losses
from vgg_jax.training.metrics import Evaluation, evaluation
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.steps import data_mesh, example_keys, put_batch
from vgg_jax.training.validation import evaluate_batches
from vgg_jax.workflows.announce import announce_code
from vgg_jax.workflows.feed import absolute_data, read_batches
from vgg_jax.workflows.load import load_classifier
from vgg_jax.workflows.run_data import change_of, told_how_to_move

_DEFAULT_VIEWS = 8


def evaluate(
    run: str | Path,
    *,
    data: str | None = None,
    split: Split = "test",
    checkpoint: Which = "best",
    weights: str | None = None,
    augment: Sequence[str] = (),
    views: int | None = None,
    allow_local_code: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate the classifier of a run; every example counts once.

    With `augment` the probabilities of several versions of each picture are averaged. The loss is
    then that of the averages: the cross-entropy of the right class's, or for the binary losses the
    mean binary cross-entropy over the classes.

    Args:
        run: The run's folder.
        data: As for training; by default the run's own. Other data in a folder of class folders
            without splits count whole.
        split: train, validation or test.
        checkpoint: `best` or `latest`.
        weights: Where the backbone is, if it is no longer where the run found it.
        augment: Augmentation plugins, `REF[:OPTIONS]` each. Version k of a picture is the one that
            a training with the run's seed would see in epoch k.
        views: How many versions, 8 by default; needs `augment`.
        allow_local_code: Whether a head in a file that the run carries may be run.
        progress: Receives what happens; silent by default.

    Raises:
        ConfigError: If there are views but no augmentations, or augmentations that mix pictures.
        DataError: If there is no such split, or its classes are not the run's.
        RunError: If the folder is no run, has no checkpoint, or was damaged.
        WeightsError: If the backbone is gone or is another one.
    """
    progress = progress or Progress()
    keep_compiled_programs(progress)
    folder = RunFolder(Path(run))
    record = folder.read_record()
    config = folder.read_config(allow_local_code=allow_local_code, progress=progress)
    announce_code(progress, "augmentation", map(parse_choice, augment))
    chain = _chain(augment, views, config)
    if data is None and record.converted_from:
        raise DataError(
            f"{run} was converted from {record.converted_from} and has no data of its own; name"
            " some with --data."
        )
    other = data is not None and absolute_data(data) != config.data
    with nullcontext() if other else told_how_to_move(folder, record, config):
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
    classifier = load_classifier(
        run, checkpoint=checkpoint, weights=weights, allow_local_code=allow_local_code
    )
    examples = dataset.splits[split]
    if not other and record.data_digests:
        learn_contents([examples], progress)
        if change := change_of(record, dataset, split):
            progress.warn(f"The data in {config.data} are not those of the run: {change}.")
    mesh = data_mesh()
    if chain is None:
        passes, what = 1, f"Evaluating on {split}"
    else:
        passes = _DEFAULT_VIEWS if views is None else views
        what = f"Evaluating on {split}, {passes} views of each"
    progress.work_started(what, passes * len(examples))

    @jax.jit
    def augmented(images: jax.Array, content: jax.Array, view: jax.Array) -> jax.Array:
        return (chain or Chain()).apply(example_keys(config.seed, view, content), images)

    def evaluate_view(view: int) -> tuple[np.ndarray, np.ndarray]:
        number = jnp.asarray(view, jnp.uint32)

        def evaluate_batch(batch: Batch) -> tuple[jax.Array, jax.Array]:
            images = put_batch(mesh, batch.images)
            if chain is not None and chain.on_device:
                images = augmented(images, put_batch(mesh, batch.content), number)
            logits, labels = classifier.logits(images), numbers[batch.labels]
            return example_losses(config.loss, logits, labels), probabilities(config.loss, logits)

        found = read_batches(config, chain or Chain(), examples, None, view, mesh.size)
        return evaluate_batches(evaluate_batch, found, progress.work_done)

    losses, shares = evaluate_view(1)
    labels = np.asarray(numbers)[examples.labels]
    if chain is not None:
        others = [evaluate_view(view)[1] for view in range(2, passes + 1)]
        shares = np.stack([shares, *others]).mean(0, dtype=np.float64)
        losses = share_losses(config.loss, shares, labels)
    progress.close()
    return evaluation(losses, shares, labels, record.class_names)


def _chain(augment: Sequence[str], views: int | None, config: ResolvedConfig) -> Chain | None:
    if not augment:
        if views is not None:
            raise ConfigError(
                f"--views {views} needs --augment: without it every view would be the same."
            )
        return None
    if views is not None and views < 1:
        raise ConfigError(f"--views is {views}, but must be 1 or more.")
    choices = [parse_choice(text) for text in augment]
    chain = build_chain(choices, fill=config.fill, fill_value=config.fill_value)
    if chain.mixes:
        raise ConfigError(
            "An augmentation that mixes pictures cannot be evaluated with: a mixed picture has no"
            f" class of its own. Leave it out of: {', '.join(augment)}."
        )
    return chain


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
