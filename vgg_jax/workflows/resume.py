"""Going on with a training where it was saved last."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from vgg_jax.compilation import keep_compiled_programs
from vgg_jax.config import ResolvedConfig
from vgg_jax.data.examples import DataSet
from vgg_jax.errors import ConfigError, OtherOptionsError, RunError, TrainingError
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
from vgg_jax.workflows.feed import absolute_data, open_feed
from vgg_jax.workflows.load import build_functional
from vgg_jax.workflows.run import Run
from vgg_jax.workflows.run_data import reopen_data
from vgg_jax.workflows.session import Session, chain_of, warn_of_options

# These change no number, or only how far the training goes; weights are compared by digest, and so
# are the data of runs that recorded theirs.
_MAY_CHANGE = {"epochs", "run", "weights", "checkpoint_minutes", "reader_threads", "on_nan"} | {
    "features",
    "cache_size",
    "on_device",
    "verify_features",
}
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
    may_change = _MAY_CHANGE | {"data"} if record.data_digests else _MAY_CHANGE
    _refuse(config, changes, may_change, override=override)
    announce_code(progress, "augmentation", map(parse_choice, changes.get("augment", ())))
    with run.locked(progress.note):
        restored = run.checkpoints.restore_to_go_on(progress.warn)
        position = restored.position if restored else Position()
        lost = _lost(run, position)
        run.write_metrics(position.history)
        before, config = config, dataclasses.replace(config, **changes)
        if len(position.history) >= config.epochs:
            changed = set(changes)
            if "data" in changed and not override:
                reopen_data(run, record, config, progress, moved=True)
                run.change_config(data=config.data)
                changed.remove("data")
            _finish(run, position, before, changed, progress)
            return Run(run.path, list(position.history))
        data, other = reopen_data(
            run,
            record,
            config,
            progress,
            moved="data" in changes,
            take_others=override and bool(options.get("data")),
        )
        opened = open_run_backbone(run, record, options.get("weights"), progress)
        # Without a checkpoint a head starts as in a new training, from the weights' top if it can.
        starting = progress if restored is None else None
        functional, parameters = build_functional(opened, config, len(record.class_names), starting)
        session = Session.start(
            config, functional, parameters, chain_of(config), len(record.class_names)
        )
        if restored is not None:
            session.restore(restored, parameters)
        overridden = changes.keys() - (_MAY_CHANGE if other else may_change)
        if overridden or other:
            record = _with_override(
                record, position, before, config, overridden, data if other else None
            )
            if "augment" in changes:
                record = dataclasses.replace(record, plugins=run.exchange_plugins(record, config))
                changes["augment"] = as_written(config).augment
        if not run.own_backbone:
            record = dataclasses.replace(record, weights=opened.weights)  # where they are by now
        run.write_record(record)
        run.change_config(**changes)
        progress.note(_where(run, restored, lost))
        warn_of_options(config, progress)
        feed = open_feed(session.source, data, progress)
        session.fit(feed, run, position, progress, interruption)
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


def _refuse(
    config: ResolvedConfig, changes: Mapping[str, Any], may_change: Set[str], *, override: bool
) -> None:
    """Refuse changes of the result, unless they are wanted and possible."""
    refused = changes.keys() & _MUST_STAY if override else changes.keys() - may_change
    if not refused:
        return
    differences = "; ".join(
        f"--{name.replace('_', '-')} {changes[name]!r} differs from the run's"
        f" {getattr(config, name)!r}"
        for name in sorted(refused)
    )
    if refused & _MUST_STAY:
        raise OtherOptionsError(
            differences,
            ": what is trained so far does not fit another. Leave it out, or train a new run.",
        )
    raise OtherOptionsError(
        differences,
        ". That would change the result. Leave it out, train a new run, or go on with it all the"
        " same: --override.",
    )


def _finish(
    run: RunFolder,
    position: Position,
    before: ResolvedConfig,
    changed: Set[str],
    progress: Progress,
) -> None:
    """Say that a run is complete; refuse options that would have to change what is done."""
    count = len(position.history)
    if changed - (_MAY_CHANGE - {"epochs"}):
        raise ConfigError(
            f"{run.path} has completed {count} of {before.epochs} epochs; the options given change"
            " nothing in them. Name more --epochs, or leave the options out."
        )
    recorded = run.read_state()
    if recorded is not None and recorded.state == "failed":
        raise TrainingError(f"{run.path} is complete, but failed: {recorded.reason}")
    run.write_state(RunState("done"))  # in case it was killed before it could say so
    progress.note(f"{run.path} is complete: {count} epochs. More by --epochs.")


def _lost(run: RunFolder, position: Position) -> int:
    """Return how many completed epochs the run tells of that no checkpoint has."""
    with suppress(RunError):  # what is damaged is written anew
        return max(len(run.read_metrics()) - len(position.history), 0)
    return 0


def _where(run: RunFolder, restored: Restored | None, lost: int) -> str:
    repeated = f" Epochs that were not saved, and are repeated: {lost}." if lost else ""
    if restored is None:
        return f"{run.path} has no checkpoint yet; starting with the first epoch.{repeated}"
    position = restored.position
    if position.examples:
        where = f"in epoch {position.epoch}, after step {position.step}"
    else:
        where = f"after epoch {position.epoch - 1}"
    return f"Going on with {run.path} {where}.{repeated}"


def _with_override(
    record: RunRecord,
    position: Position,
    before: ResolvedConfig,
    config: ResolvedConfig,
    overridden: Set[str],
    other_data: DataSet | None,
) -> RunRecord:
    """Return the record with what changes from here on."""
    entry: dict[str, Any] = {
        "epoch": position.epoch,
        "step": position.step,
        "options": {
            name: {"before": getattr(before, name), "after": getattr(config, name)}
            for name in sorted(overridden)
        },
    }
    now: dict[str, Any] = {}
    if other_data is not None:
        now = {"examples": other_data.counts, "data_digests": other_data.digests}
        entry |= {
            name: {"before": getattr(record, name), "after": after} for name, after in now.items()
        }
    return dataclasses.replace(record, overrides=[*record.overrides, entry], **now)
