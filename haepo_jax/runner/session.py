"""A run and its directory: lock, signals, what to resume from, loggers, checkpoints, and a full disk reported in one line.

What `python -m haepo_jax.train` and `haepo_jax.train(...)` share. jax is loaded when the directory has been tried, so that
a mistake in it is not paid for with seconds.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haepo_jax.messages import one_line, short
from haepo_jax.runner.checkpoints import Checkpoints, Saver
from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.errors import Interrupted, RunError, disk_errors
from haepo_jax.runner.processes import ALONE, Processes
from haepo_jax.runner.resume import Plan, make_plan, resume_command, run_to_resume
from haepo_jax.runner.run_dir import RunDir, create_run_dir
from haepo_jax.runner.signals import StopSignals

if TYPE_CHECKING:
    from haepo_jax.algorithms.base import Algorithm
    from haepo_jax.algorithms.state import InitialPolicy, TrainState
    from haepo_jax.runner.observers import Observer


def train_and_report(config: RunConfig, argv: Sequence[str], processes: Processes = ALONE) -> int:
    """Trains as a command line does and returns the exit status; `argv` are the arguments of `haepo_jax.train`.

    Of several processes the first has the display and the files. Raises RunError where every seed diverged; otherwise as
    `run_in_directory` does.
    """
    if not processes.first:
        plan: Plan | None = processes.of_first(lambda: None)
        if plan is not None:
            from haepo_jax.runner.run import run

            with StopSignals(lambda: None, quiet=True) as stop:
                run(plan.config, Path(), [], stop=stop, processes=processes)
        return 0
    command = shlex.join(["python", "-m", "haepo_jax.train", *argv])
    directory, summary, state = run_in_directory(config, command, processes=processes)
    if state is None:
        print(ended_text(directory, summary))
    elif len(summary["diverged"]) == config.num_seeds:
        raise RunError(_divergence(summary, directory))
    return 0


def run_in_directory(
    config: RunConfig,
    command: str,
    *,
    algorithm: Algorithm | None = None,
    observers: Sequence[Observer] | None = None,
    embedded: bool = False,
    processes: Processes = ALONE,
    start: InitialPolicy | None = None,
) -> tuple[RunDir, dict[str, Any], TrainState | None]:
    """Trains as configured, with the files of a run; with `config.resume` resumes the one in `config.run_dir`.

    Args:
      config: the settings.
      command: for the summary.
      observers: beside the loggers; None: the progress display.
      embedded: whether this is part of a user's program; see `StopSignals`.
      algorithm, processes, start: see `haepo_jax.runner.run.run`; of the processes this is the first.

    Returns:
      The directory, the summary and the final train state; None in its place where the run had ended before.

    Raises:
      ConfigError: where the directory cannot be used, or its run not resumed.
      RunError: where the disk is full or the directory has vanished. Otherwise as `haepo_jax.runner.run.run` does.
    """
    directory = run_to_resume(config)
    resumed = directory is not None
    directory = directory or create_run_dir(config)
    config = dataclasses.replace(config, run_dir=str(directory.path))
    again = (
        f"the same call with run_dir={str(directory.path)!r} and resume=True"
        if embedded
        else resume_command(directory, distributed=config.distributed)
    )
    try:
        with directory.lock(), StopSignals(directory.remove_if_empty, embedded=embedded) as stop:
            if not resumed and directory.holds_run():
                raise ConfigError(
                    f"run_dir={short(str(directory.path))} already holds a run, which another process has just started"
                )
            plan = make_plan(config, directory, warn) if resumed else Plan(config)
            processes.of_first(lambda: None if plan.ended else plan)
            if plan.ended:
                return directory, directory.read_summary(), None
            sentence = "; the last checkpoint is {}, to resume from there: " + again
            with disk_errors(directory.path, after=lambda: _of_last_checkpoint(directory, sentence)):
                from haepo_jax.runner.loggers import loggers_of
                from haepo_jax.runner.progress import Progress
                from haepo_jax.runner.run import run

                directory.clean_up()
                saver = Saver(
                    Checkpoints(directory.checkpoints),
                    keep=config.keep_checkpoints,
                    steps=config.checkpoint_steps,
                    minutes=config.checkpoint_minutes,
                    bad=plan.damaged,
                    flush_first=(directory.metrics,),
                )
                summary, state = run(
                    config,
                    directory.path,
                    [*loggers_of(config, directory, command), *([Progress()] if observers is None else observers)],
                    algorithm=algorithm,
                    saver=saver,
                    resumed=resumed,
                    checkpoint=plan.checkpoint,
                    stop=stop,
                    processes=processes,
                    start=start,
                )
                return directory, summary, state
    except Interrupted as interruption:
        raise Interrupted(interruption.signum, f"{interruption}; to resume: {again}") from None
    finally:
        directory.remove_if_empty()


def ended_text(directory: RunDir, summary: dict[str, Any]) -> str:
    """That there is nothing left of a run to resume, and why."""
    steps = summary.get("env_steps")
    early = f" early, by a callback, at {steps:,} steps" if summary.get("ended_early") else ""
    return f"the run in {directory.path} has ended{early}; a larger total_steps would extend it"


def warn(text: str) -> None:
    """One line for the user, beside the display."""
    print(f"warning: {one_line(text)}", file=sys.stderr, flush=True)


def _of_last_checkpoint(directory: RunDir, sentence: str) -> str:
    """A sentence with the newest checkpoint's path; nothing where there is none."""
    found = Checkpoints(directory.checkpoints).all()
    return sentence.replace("{}", str(found[-1].path), 1) if found else ""


def _divergence(summary: dict[str, Any], directory: RunDir) -> str:
    """Which update was not finite, the likely cause and where the last finite state is, in one line."""
    first = summary["diverged"][0]
    every = f"every seed diverged, seed {first['seed']}" if len(summary["seeds"]) > 1 else "diverged"
    invalid = sum(summary["invalid_episodes_per_seed"])
    if invalid:
        cause = f"the environment, which gave an observation or reward that is not finite in {invalid} episodes"
    else:
        rate = summary["hyperparameters"]["learning_rate"]
        cause = f"a step size that is too high (algo.learning_rate={rate}) or rewards of an extreme size"
    kept = _of_last_checkpoint(directory, "; the last finite state is in {}")
    *others, last = first["not_finite"]
    what = f"{', '.join(others)} and {last}" if others else last
    return (
        f"{every} in update {first['update']}: not finite: {what}; the likely cause is {cause}: "
        f"a lower algo.learning_rate may help, or algo.on_nan=skip to drop such updates{kept}"
    )
