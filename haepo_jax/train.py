"""Trains one algorithm on one environment: `python -m haepo_jax.train env=CartPole-v1`."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haepo_jax.config import SHARD_NOTHING, ConfigError, RunConfig
from haepo_jax.config.arguments import peek, read_arguments
from haepo_jax.config.help import help_text, requested_algorithm
from haepo_jax.envs import list_envs
from haepo_jax.messages import one_line, short
from haepo_jax.training.checkpoints import CheckpointError, Checkpoints, Saver
from haepo_jax.training.entry import entry_point
from haepo_jax.training.errors import Interrupted, RunError
from haepo_jax.training.processes import Processes, join
from haepo_jax.training.resume import Plan, compose_run, existing_run, make_plan
from haepo_jax.training.run_dir import RunDir, check_run_dir, config_text, create_run_dir
from haepo_jax.training.signals import StopSignals

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from haepo_jax.training.observers import Observer

HELP = """\
Trains one algorithm on one environment; every seed trains in the same compiled program.

usage: python -m haepo_jax.train env=<environment> [key=value ...]

  python -m haepo_jax.train env=CartPole-v1
  python -m haepo_jax.train env=Pendulum-v1 num_seeds=8 total_steps=1e6 algo.learning_rate=1e-3
  python -m haepo_jax.train env=brax/ant env_kwargs.backend=spring 'algo.entropy_coef=[0.01,0]'

options:
  --help        this text; with algo=<name>, that algorithm's hyperparameters
  --cfg job     print the complete settings as YAML and stop
  --list-envs   print the environments' names and stop

several devices: shard=environments shares out each update's environments over all of them; with distributed=true over
those of every process of a job, which SLURM, Open MPI, Kubernetes or cloud TPUs tell jax of, or the environment variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

settings (key, default, meaning):
{settings}

algorithms and presets (algo=<name>):
{algorithms}

hyperparameters of algo={algo} (a pair [start,end] changes linearly over the run):
{hyperparameters}

A run leaves in its directory: config.yaml, metrics.jsonl (one row per logged update, every seed's values beside their
mean), TensorBoard events, curve.png, summary.json and checkpoints; of a token task completions.jsonl, too. Settings that
cannot be used end with exit status 2.

A run that was ended goes on with: python -m haepo_jax.train run_dir=<directory> resume=true. It keeps its settings and
ends with the same numbers as if it had never been ended. A larger total_steps extends it; what changes over a run, such
as an annealed learning_rate, follows the share of total_steps that is done, and goes back to its value at that share.
SIGTERM and Ctrl-C end a run after a checkpoint; a second one ends it at once.
"""


@entry_point
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status: 0; 1 where a run fails or diverges; 2 for settings that cannot be
    used; 128 + the number of the signal that ended it."""
    if "--help" in argv or "-h" in argv:
        print(help_text(HELP, RunConfig, requested_algorithm(argv)), end="")
        return 0
    arguments = read_arguments(argv)
    if arguments.list_envs:
        print("\n".join(list_envs()))
        return 0
    processes = _processes(arguments.overrides)
    with processes.together():
        config = processes.of_first(lambda: compose_run(arguments.overrides))
        if arguments.show_config:
            processes.of_first(lambda: print(config_text(config), end=""))
            return 0
        return processes.of_first(lambda: _dry_run(config)) if config.dry_run else train(config, argv, processes)


def _processes(overrides: Sequence[Override]) -> Processes:
    """Those that train together. They come together before anything else, because one of them decides for all."""
    distributed, resume, shard = (peek(overrides, RunConfig, key) for key in ("distributed", "resume", "shard"))
    if distributed and resume == "false" and shard == "none":
        raise ConfigError(SHARD_NOTHING)
    return join() if distributed else Processes()


def _dry_run(config: RunConfig) -> int:
    directory = _existing_run(config)
    if directory is None:
        check_run_dir(config)
    else:
        make_plan(config, directory, _warn)
    from haepo_jax.training.loading import start_of
    from haepo_jax.training.program import build, mesh_of

    algorithm = build(config)
    mesh_of(config, algorithm)
    start_of(config, algorithm)
    print("the settings are usable; dry_run=true stops here")
    return 0


def _existing_run(config: RunConfig) -> RunDir | None:
    return None if config.resume == "false" else existing_run(config.resume, config.run_dir)


def _warn(text: str) -> None:
    print(f"warning: {one_line(text)}", file=sys.stderr, flush=True)


def train(config: RunConfig, argv: Sequence[str], processes: Processes | None = None) -> int:
    """Trains as configured, with the display and the files that a run on the command line has; with `config.resume`
    goes on with the run in `config.run_dir`. Returns the exit status; raises as `haepo_jax.training.loop.run` does.

    Of several processes the first has the display and the files.
    """
    processes = processes or Processes()
    if not processes.first:
        return _train_along(processes)
    directory = _existing_run(config)
    goes_on = directory is not None
    # The directory is tried before jax is loaded, so that a mistake in it is not paid for with seconds.
    directory = directory or create_run_dir(config)
    config = dataclasses.replace(config, run_dir=str(directory.path))
    try:
        with directory.lock(), StopSignals(directory.remove_if_empty) as stop:
            if not goes_on and directory.holds_run():
                raise ConfigError(
                    f"run_dir={short(str(directory.path))} already holds a run, which another process has just started"
                )
            plan = make_plan(config, directory, _warn) if goes_on else Plan(config, None, (), False)
            if plan.ended:
                print(f"the run in {directory.path} has ended; a larger total_steps would extend it")
                processes.of_first(lambda: None)
                return 0
            processes.of_first(lambda: plan)
            with _disk_errors(directory, config.distributed):
                return _train(plan, directory, goes_on, argv, stop, processes)
    finally:
        directory.remove_if_empty()


def _train_along(processes: Processes) -> int:
    """What every process but the first does: its share of the computation."""
    plan: Plan | None = processes.of_first(lambda: None)
    if plan is None:
        return 0
    from haepo_jax.training.run import run

    with StopSignals(lambda: None, quiet=True) as stop:
        run(plan.config, Path(), [_beginning(stop)], stop=stop, processes=processes)
    return 0


def _beginning(stop: StopSignals) -> Observer:
    """Tells the signals that from the first update on there is something to save."""
    from haepo_jax.training.observers import Observer

    class Begin(Observer):
        def on_compiled(self, seconds: float) -> None:
            stop.begin()

    return Begin()


def _train(
    plan: Plan, directory: RunDir, goes_on: bool, argv: Sequence[str], stop: StopSignals, processes: Processes
) -> int:
    from haepo_jax.training import loggers
    from haepo_jax.training.completions import CompletionLogger
    from haepo_jax.training.progress import Progress
    from haepo_jax.training.run import run

    config = plan.config
    directory.clean_up()
    command = shlex.join(["python", "-m", "haepo_jax.train", *argv])
    observers: list[Observer] = [loggers.FileLogger(directory, command), loggers.CurveLogger(directory)]
    tensorboard = loggers.TensorBoardLogger(directory) if config.tensorboard else None
    if tensorboard is not None:
        observers.append(tensorboard)
    if config.completions:
        observers.append(CompletionLogger(directory, config.completions, tensorboard))
    if config.wandb:
        observers.append(loggers.WandbLogger(directory))
    saver = Saver(
        Checkpoints(directory.checkpoints),
        keep=config.keep_checkpoints,
        steps=config.checkpoint_steps,
        minutes=config.checkpoint_minutes,
        bad=plan.damaged,
        flush_first=(directory.metrics,),
    )

    try:
        summary = run(
            config,
            directory.path,
            # First, so that whoever reads that training has begun may interrupt it.
            [_beginning(stop), *observers, Progress()],
            saver=saver,
            resumed=goes_on,
            checkpoint=plan.checkpoint,
            stop=stop,
            processes=processes,
        )
    except Interrupted as interruption:
        again = resume_command(directory, distributed=config.distributed)
        raise Interrupted(interruption.signum, f"{interruption}; to go on: {again}") from None
    if len(summary["diverged"]) == config.num_seeds:
        raise RunError(_divergence(summary, directory))
    return 0


def resume_command(directory: RunDir, *, distributed: bool = False, module: str = "haepo_jax.train") -> str:
    """The command line that goes on with a run, quoted for the shell and for Hydra's grammar."""
    path = str(directory.path)
    plain = f"run_dir={path}"
    try:
        read = peek(read_arguments([plain]).overrides, RunConfig, "run_dir")
    except ConfigError:
        read = None
    if read != path:
        escaped = path.replace("'", "\\'")
        plain = f"run_dir='{escaped}'"
    several = ["distributed=true"] if distributed else []
    return shlex.join(["python", "-m", module, plain, "resume=true", *several])


@contextlib.contextmanager
def _disk_errors(directory: RunDir, distributed: bool) -> Iterator[None]:
    """A disk that is full, or a directory that has gone, ends a run in one line."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, CheckpointError) as error:
        if not directory.path.is_dir():
            raise RunError(f"run_dir={short(str(directory.path))} has vanished while the run was going on") from None
        text = f"{error.strerror or error}" if isinstance(error, OSError) else str(error)
        place = (
            error.filename if isinstance(error, OSError) and isinstance(error.filename, str) else str(directory.path)
        )
        found = Checkpoints(directory.checkpoints).all()
        after = (
            f"; the last checkpoint is {found[-1].path}, to go on from there: {resume_command(directory, distributed=distributed)}"
            if found
            else ""
        )
        raise RunError(f"{place}: {text}{after}" if isinstance(error, OSError) else f"{text}{after}") from None


def _divergence(summary: dict[str, Any], directory: RunDir) -> str:
    """Which update was not finite, the likely cause and where the last finite state is, in one line."""
    first = summary["diverged"][0]
    several = len(summary["seeds"]) > 1
    who = (
        f"every seed diverged, seed {first['seed']} in update {first['update']}"
        if several
        else f"diverged in update {first['update']}"
    )
    invalid = sum(summary["invalid_episodes_per_seed"])
    if invalid:
        cause = f"the environment, which gave an observation or reward that is not finite in {invalid} episodes"
    else:
        rate = summary["hyperparameters"]["learning_rate"]
        cause = f"a step size that is too high (algo.learning_rate={rate}) or rewards of an extreme size"
    found = Checkpoints(directory.checkpoints).all()
    kept = f"; the last finite state is in {found[-1].path}" if found else ""
    what = " and ".join(
        [", ".join(first["not_finite"][:-1]), first["not_finite"][-1]]
        if len(first["not_finite"]) > 1
        else first["not_finite"]
    )
    return (
        f"{who}: not finite: {what}; the likely cause is {cause}: "
        f"a lower algo.learning_rate may help, or algo.on_nan=skip to drop such updates{kept}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
