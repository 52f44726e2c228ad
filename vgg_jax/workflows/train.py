"""Training: from a configuration to a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vgg_jax.compilation import keep_compiled_programs
from vgg_jax.config import ResolvedConfig, TrainConfig
from vgg_jax.data.examples import DataSet
from vgg_jax.errors import ConfigError
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.progress import Progress
from vgg_jax.training.interruption import Interruption
from vgg_jax.training.position import Position
from vgg_jax.training.run_files import RunRecord
from vgg_jax.training.run_folder import RunFolder, claim_run_path, new_record
from vgg_jax.workflows.announce import announce_code
from vgg_jax.workflows.backbone import OpenedBackbone, open_backbone
from vgg_jax.workflows.feed import absolute_data, open_feed, open_training_data
from vgg_jax.workflows.load import build_functional
from vgg_jax.workflows.resume import resume_training
from vgg_jax.workflows.run import Run
from vgg_jax.workflows.session import Session, chain_of, warn_of_options


def train(
    *,
    resume: bool = False,
    override: bool = False,
    allow_local_code: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Run:
    """Train a classifier.

    Args:
        resume: Go on with the run in the folder `run`; other options then only confirm what the run
            has, but `epochs` may be another number.
        override: Let other options change on `resume`, too, although the result is then another.
        allow_local_code: Whether plugins in files that a run carries may be run on `resume`.
        progress: Receives what happens; silent by default.
        **options: The fields of `vgg_jax.config.TrainConfig`, all optional.

    Raises:
        VggJaxError: If an option, the data, the weights or the run folder cannot be used.
    """
    progress = progress or Progress()
    if override and not resume:
        raise ConfigError("override changes options of a run on resume; without it, leave it out.")
    if resume:
        return resume_training(
            options, progress, override=override, allow_local_code=allow_local_code
        )
    return run_training(TrainConfig.from_values(options), progress)


def run_training(
    config: TrainConfig, progress: Progress, interruption: Interruption | None = None
) -> Run:
    """Train a classifier from the start; errors as for `train`.

    Args:
        config: The options.
        progress: Receives what happens.
        interruption: Told of signals while the training can be saved; by default a signal does what
            it does elsewhere in the process.
    """
    keep_compiled_programs(progress)
    resolved = config.resolved()
    if resolved.run:
        RunFolder(Path(resolved.run).expanduser()).refuse_existing()
    announce_code(progress, "head", [parse_choice(resolved.head)])
    announce_code(progress, "augmentation", map(parse_choice, resolved.augment))
    chain = chain_of(resolved)
    data = open_training_data(resolved, progress)
    opened = open_backbone(resolved.weights, progress)
    functional, parameters = build_functional(opened, resolved, len(data.class_names), progress)
    resolved, record = found_out(resolved, data, opened)
    run = RunFolder(Path(config.run).expanduser() if config.run else claim_run_path(config))
    with run.locked(progress.note):
        run.create(resolved, record)
        session = Session.start(resolved, functional, parameters, chain, len(data.class_names))
        warn_of_options(resolved, progress)
        feed = open_feed(session.source, data, progress)
        session.fit(feed, run, Position(), progress, interruption)
    return Run(run.path, run.read_metrics())


def found_out(
    config: ResolvedConfig, data: DataSet, opened: OpenedBackbone
) -> tuple[ResolvedConfig, RunRecord]:
    """Return the configuration and the record of a new run, with what was found of its inputs."""
    config = dataclasses.replace(
        config, data=absolute_data(config.data), weights=opened.weights, run=None
    )
    record = new_record(
        config,
        class_names=data.class_names,
        weights=opened.weights,
        weights_digest=opened.digest,
        examples=data.counts,
        data_digests=data.digests,
    )
    return config, record
