"""A run and its directory: lock, signals, what to resume from, loggers, checkpoints, and a full disk reported in one line.

What `python -m haepo_jax.train` and `haepo_jax.train(...)` share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.state import TrainState
from haepo_jax.runner.checkpoints import Checkpoint, Checkpoints, Saver
from haepo_jax.runner.config import CustomConfig, RunConfig
from haepo_jax.runner.errors import Diverged, Interrupted, disk_errors
from haepo_jax.runner.loading import TrainedPolicy, start_of
from haepo_jax.runner.loggers import check_loggers, loggers_of
from haepo_jax.runner.loop import run
from haepo_jax.runner.observers import Observer
from haepo_jax.runner.program import build, mesh_of
from haepo_jax.runner.progress import Progress
from haepo_jax.runner.resume import allowed, existing_run, flat, resume_command
from haepo_jax.runner.run_dir import RunDir, create_run_dir, unused_directory
from haepo_jax.runner.signals import StopSignals


def train_and_report(config: RunConfig) -> None:
    """Trains as a command line does. Raises Diverged where every seed diverged; otherwise as `run_in_directory` does."""
    directory, summary, state = run_in_directory(config)
    if len(summary.get("diverged", [])) == config.num_seeds:  # a run that had ended before, too
        raise Diverged(_divergence(summary, directory))
    if state is None:
        print(ended_text(directory, summary))


def dry_run(config: RunConfig, directory: RunDir | None) -> None:
    """Raises what `train_and_report` would before it compiles anything; `directory` is the run's to resume."""
    checkpoint = None if directory is None else newest_checkpoint(config, directory)[0]
    check_loggers(config)
    algorithm = build(config)
    mesh_of(config, algorithm)
    if checkpoint is None:
        start_of(config, algorithm)


def run_in_directory(
    config: RunConfig,
    *,
    algorithm: Algorithm | None = None,
    observers: Sequence[Observer] | None = None,
    embedded: bool = False,
    start: TrainedPolicy | None = None,
) -> tuple[RunDir, dict[str, Any], TrainState | None]:
    """Trains as configured, with the files of a run; with `config.resume` resumes the one in `config.run_dir`.

    Args:
      observers: beside the loggers; None: the progress display.
      embedded: whether this is part of a user's program; see `StopSignals`.
      algorithm, start: see `haepo_jax.runner.loop.run`.

    Returns:
      The directory, the summary and the final train state; None in its place where the run had ended before.

    Raises:
      ConfigError: the directory cannot be used, or its run not resumed.
      RunError: the disk is full or the directory has vanished. Otherwise as `haepo_jax.runner.loop.run` does.
    """
    directory = existing_run(config.resume, config.run_dir)
    resumed = directory is not None
    if directory is None:
        directory = create_run_dir(config.run_dir or unused_directory(f"{config.env}-{config.algo.name}-{config.seed}"))
    config = dataclasses.replace(config, run_dir=str(directory.path))
    again = (
        f"the same call with run_dir={str(directory.path)!r} and resume=True" if embedded else resume_command(directory)
    )
    checkpoints = Checkpoints(directory.checkpoints)
    try:
        with directory.lock(), StopSignals(directory.remove_if_empty, embedded=embedded) as stop:
            checkpoint, ended = newest_checkpoint(config, directory) if resumed else (None, False)
            if ended:
                return directory, directory.read_summary(), None
            with disk_errors(directory.path, after=lambda: _last(checkpoints, f"to resume from there: {again}")):
                saver = Saver(
                    checkpoints,
                    keep=config.keep_checkpoints,
                    minutes=config.checkpoint_minutes,
                    flush_first=(directory.metrics,),
                )
                return directory, *run(
                    config,
                    directory.path,
                    [*loggers_of(config, directory), *([Progress()] if observers is None else observers)],
                    algorithm=algorithm,
                    saver=saver,
                    resumed=resumed,
                    checkpoint=checkpoint,
                    stop=stop,
                    start=start,
                )
    except Interrupted as interruption:
        raise Interrupted(interruption.signum, f"{interruption}; to resume: {again}") from None


def newest_checkpoint(config: RunConfig, directory: RunDir) -> tuple[Checkpoint | None, bool]:
    """The checkpoint to resume a run from, None: from the beginning; and whether there is nothing left to do.

    Raises:
      ConfigError: the settings differ from the run's.
      CheckpointError: there are checkpoints and none is intact.
    """
    saved = directory.read_config(custom=isinstance(config, CustomConfig))
    allowed(flat(saved), flat(config), directory)
    newest = Checkpoints(directory.checkpoints).newest()
    ended = newest is not None and saved.total_steps == config.total_steps and directory.summary.exists()
    return newest, ended


def ended_text(directory: RunDir, summary: dict[str, Any]) -> str:
    """That there is nothing left of a run to resume, and why."""
    steps = summary.get("env_steps")
    early = f" early, by a callback, at {steps:,} steps" if summary.get("ended_early") else ""
    return f"the run in {directory.path} has ended{early}; a larger total_steps would extend it"


def _last(checkpoints: Checkpoints, then: str) -> str:
    """Where the newest checkpoint is, as the end of a message; nothing if there is none."""
    found = checkpoints.all()
    return f"; the last checkpoint is {found[-1].path}, {then}" if found else ""


def _divergence(summary: dict[str, Any], directory: RunDir) -> str:
    """Which update was not finite, what may help and where the last finite state is, in one line."""
    first = summary["diverged"][0]
    every = f"every seed diverged, seed {first['seed']}" if len(summary["seeds"]) > 1 else "diverged"
    return (
        f"{every} in update {first['update']}: not finite: {' and '.join(first['not_finite'])}; a lower algo.learning_rate "
        "or rewards of a smaller scale may help, or algo.on_nan=skip to drop such updates"
        f"{_last(Checkpoints(directory.checkpoints), 'which is finite')}"
    )
