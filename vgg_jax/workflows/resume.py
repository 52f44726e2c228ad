"""Going on with a training where it was saved last."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vgg_jax.compilation import keep_compiled_programs
from vgg_jax.config import ResolvedConfig
from vgg_jax.data.examples import DataSet
from vgg_jax.errors import ConfigError, DataError, TrainingError
from vgg_jax.plugin_choices import parse_choice
from vgg_jax.progress import Progress
from vgg_jax.training.checkpoints import Restored
from vgg_jax.training.interruption import Interruption
from vgg_jax.training.position import Position
from vgg_jax.training.run_files import RunRecord, RunState
from vgg_jax.training.run_folder import RunFolder
from vgg_jax.training.run_plugins import as_used, as_written
from vgg_jax.workflows.announce import announce_code
from vgg_jax.workflows.backbone import open_run_backbone
from vgg_jax.workflows.feed import absolute_data, open_training_data
from vgg_jax.workflows.load import build_functional
from vgg_jax.workflows.run import Run
from vgg_jax.workflows.session import Session, chain_of

# These change no number, or only how far the training goes; weights are compared by digest.
_MAY_CHANGE = {"epochs", "run", "weights", "checkpoint_minutes", "reader_threads", "on_nan"}
# What is saved does not fit others of these; the seed decides which pictures were held back.
_MUST_STAY = {"head", "train_from", "optimizer", "seed"}


def resume_training(
    options: Mapping[str, Any],
    progress: Progress,
    interruption: Interruption | None = None,
    *,
    override: bool = False,
    allow_local_code: bool = False,
) -> Run:
    """Go on with a run after its last saved step.

    Args:
        options: Fields of `TrainConfig`; `run` is needed, the others only confirm what the run has.
        progress: Receives what happens.
        interruption: As for `run_training`.
        override: Whether options may differ from the run's that change the result.
        allow_local_code: Whether plugins in files that the run carries may be run.

    Raises:
        ConfigError: If an option differs from the run's and would change the result.
        VggJaxError: If the run, its data or its weights cannot be used.
    """
    if not options.get("run"):
        raise ConfigError("--resume needs --run, the folder of the run to go on with.")
    keep_compiled_programs(progress)
    run = RunFolder(Path(options["run"]).expanduser())
    record = run.read_record()
    config = run.read_config(training=True, allow_local_code=allow_local_code, progress=progress)
    if record.converted_from:
        raise ConfigError(
            f"{run.path} was converted from {record.converted_from}, not trained here, so there is"
            f" no training to go on with. Train on its backbone: --weights {run.own_backbone}."
        )
    changes = _changes(run, record, config, options)
    _refuse(config, changes, override=override)
    announce_code(progress, "augmentation", map(parse_choice, changes.get("augment", ())))
    with run.locked(progress.note):
        restored = run.checkpoints.restore_to_go_on(progress.warn)
        position = restored.position if restored else Position()
        run.write_metrics(position.history)
        before, config = config, dataclasses.replace(config, **changes)
        if len(position.history) >= config.epochs:
            _finish(run, position, before, changes, progress)
            return Run(run.path, list(position.history))
        data = open_training_data(config, progress)
        _check_data(record, config, data, other=override and bool(options.get("data")))
        opened = open_run_backbone(run, record, options.get("weights"), progress)
        functional, parameters = build_functional(opened, config, len(record.class_names))
        session = Session.start(config, functional, parameters, chain_of(config))
        if restored is not None:
            session.restore(restored, parameters)
        if changes.keys() - _MAY_CHANGE or data.counts != record.examples:
            record = _with_override(record, position, before, changes, data)
            if "augment" in changes:
                record = dataclasses.replace(record, plugins=run.exchange_plugins(record, config))
                changes["augment"] = as_written(config).augment
        if not run.own_backbone:
            record = dataclasses.replace(record, weights=opened.weights)  # where they are by now
        run.write_record(record)
        run.change_config(**changes)
        progress.note(_where(run, restored))
        session.fit(data, run, position, progress, interruption)
        return Run(run.path, run.read_metrics())


def _changes(
    run: RunFolder, record: RunRecord, config: ResolvedConfig, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options that were given and differ from the run's."""
    given = {name: value for name, value in options.items() if value is not None}
    if "data" in given:
        given["data"] = absolute_data(given["data"])
    wanted = ResolvedConfig.from_values({**config.as_toml_values(), **given})
    wanted = as_used(as_written(wanted), run.path, record.plugins, training=True)
    changes = {
        name: getattr(wanted, name)
        for name in sorted(given.keys() - {"run", "weights"})
        if getattr(wanted, name) != getattr(config, name)
    }
    if "augment" in changes:
        changes["augment"] = tuple(given["augment"])  # whose files the run has no copies of
    return changes


def _refuse(config: ResolvedConfig, changes: Mapping[str, Any], *, override: bool) -> None:
    """Refuse changes of the result, unless they are wanted and possible."""
    refused = changes.keys() & _MUST_STAY if override else changes.keys() - _MAY_CHANGE
    if not refused:
        return
    differences = "; ".join(
        f"--{name.replace('_', '-')} {changes[name]!r} differs from the run's"
        f" {getattr(config, name)!r}"
        for name in sorted(refused)
    )
    if refused & _MUST_STAY:
        raise ConfigError(
            f"{differences}: what is trained so far does not fit another. Leave it out, or train a"
            " new run."
        )
    raise ConfigError(
        f"{differences}. That would change the result. Leave it out, train a new run, or go on with"
        " it all the same: --override."
    )


def _finish(
    run: RunFolder,
    position: Position,
    before: ResolvedConfig,
    changes: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Say that a run is complete; refuse options that would have to change what is done."""
    count = len(position.history)
    if changes.keys() - (_MAY_CHANGE - {"epochs"}):
        raise ConfigError(
            f"{run.path} has completed {count} of {before.epochs} epochs; the options given change"
            " nothing in them. Name more --epochs, or leave the options out."
        )
    recorded = run.read_state()
    if recorded is not None and recorded.state == "failed":
        raise TrainingError(f"{run.path} is complete, but failed: {recorded.reason}")
    run.write_state(RunState("done"))  # in case it was killed before it could say so
    progress.note(f"{run.path} is complete: {count} epochs. More by --epochs.")


def _where(run: RunFolder, restored: Restored | None) -> str:
    if restored is None:
        return f"{run.path} has no checkpoint yet; starting with the first epoch."
    position = restored.position
    if position.examples:
        return f"Going on with {run.path} in epoch {position.epoch}, after step {position.step}."
    return f"Going on with {run.path} after epoch {position.epoch - 1}."


def _with_override(
    record: RunRecord,
    position: Position,
    before: ResolvedConfig,
    changes: Mapping[str, Any],
    data: DataSet,
) -> RunRecord:
    """Return the record with what changes from here on."""
    entry = {
        "epoch": position.epoch,
        "step": position.step,
        "options": {
            name: {"before": getattr(before, name), "after": changes[name]}
            for name in changes.keys() - _MAY_CHANGE
        },
        "examples": {"before": record.examples, "after": data.counts},
    }
    return dataclasses.replace(record, overrides=[*record.overrides, entry], examples=data.counts)


def _check_data(record: RunRecord, config: ResolvedConfig, data: DataSet, *, other: bool) -> None:
    """Refuse data that are not those of the run; with `other` only other classes."""
    if data.class_names != record.class_names:
        raise DataError(
            f"The data in {config.data} now have the classes {', '.join(data.class_names)}; the run"
            f" has {', '.join(record.class_names)}."
        )
    if data.counts != record.examples and not other:
        raise DataError(
            f"The data in {config.data} have changed: the run started with {record.examples}, now"
            f" there are {data.counts}. Put them back, train a new run, or go on with them:"
            f" --override --data {config.data}"
        )
