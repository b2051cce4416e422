"""One run from its settings to its summary: builds, compiles or restores, and hands over to the loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.state import TrainState
from haepo_jax.runner.checkpoints import Checkpoint, CheckpointError, Saver
from haepo_jax.runner.config import RunConfig
from haepo_jax.runner.devices import describe_device, device_errors, versions
from haepo_jax.runner.loading import start_of
from haepo_jax.runner.loop import Position, Training
from haepo_jax.runner.observers import Observer, RunInfo
from haepo_jax.runner.processes import ALONE, Processes
from haepo_jax.runner.program import Program, build, mesh_of
from haepo_jax.runner.resume import settings_that_matter


def run(
    config: RunConfig,
    directory: Path | None,
    observers: Sequence[Observer],
    *,
    algorithm: Algorithm | None = None,
    saver: Saver | None = None,
    resumed: bool = False,
    checkpoint: Checkpoint | None = None,
    begin: Callable[[], None] = lambda: None,
    stop: Callable[[], int | None] = lambda: None,
    processes: Processes = ALONE,
) -> tuple[dict[str, Any], TrainState]:
    """Trains as configured; what is written is up to the observers and the saver.

    Args:
      config: the settings.
      directory: of the run, named in what is shown; None: it has none.
      observers: see `Observer`.
      algorithm: that the settings describe; None: is built from them.
      saver: writes checkpoints; None: there are none.
      resumed: whether this goes on with a run.
      checkpoint: to go on from, verified; None: from the beginning.
      begin: called when there is something to save from here on.
      stop: asked after every compiled call for the number of a signal that wants the run to end.
      processes: that have a share in the run; saver and checkpoint are the first one's.

    Returns:
      The summary, and the final train state; of several seeds with a leading axis.

    Raises:
      ConfigError: where the environment or algorithm cannot be built.
      RunError: where the device runs out of memory, or a checkpoint cannot be written or read.
      Interrupted: where `stop` gave a signal, after a last checkpoint.
      OSError: where an observer cannot write.
    """
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        for observer in observers:
            stack.callback(observer.close)
        if saver is not None:
            stack.callback(saver.close)
        device, fallback = describe_device()
        algorithm = build(config) if algorithm is None else algorithm
        mesh = mesh_of(config, algorithm)
        about = {
            "settings": settings_that_matter(config),
            "versions": versions(),
            "device": device,
        }
        earlier, position = processes.of_first(lambda: _read_position(checkpoint))
        start_from = processes.of_first(lambda: start_of(config, algorithm) if checkpoint is None else None)
        seeds = config.num_seeds
        info = RunInfo(
            config,
            algorithm,
            directory,
            device,
            fallback,
            rows=position.rows,
            logged_steps=position.logged_steps // seeds if position.rows else -1,
            resumed_from=position.steps // seeds if resumed else None,
        )
        for observer in observers:
            observer.on_start(info)
        if earlier is not None and any(earlier.get(key) != about[key] for key in ("versions", "device")):
            text = (
                "the run so far was made on another device or by other versions: it does not go on bit for bit as there"
            )
            for observer in observers:
                observer.on_warning(text)
        if saver is not None:
            saver.prepare()
        processes.meet()
        with device_errors("take fewer seeds or environments"):
            program = Program(
                algorithm,
                seed=config.seed,
                num_seeds=config.num_seeds,
                final_eval_episodes=config.final_eval_episodes,
                mesh=mesh,
                start=start_from,
            )
            state = program.init() if earlier is None else program.restore(checkpoint, processes)
            begin()  # first, so that whoever reads that training has begun may interrupt it
            for observer in observers:
                observer.on_compiled(program.compile_seconds)
            position.compile_seconds += program.compile_seconds
            if earlier is not None:
                position.resumed_from.append(position.steps // config.num_seeds)
            wall_before = position.run_seconds + position.compile_seconds - program.compile_seconds
            training = Training(program, observers, saver, stop, processes, position, state, config.env)
            if saver is not None:
                saved = None if checkpoint is None else training.mark
                saver.start(position.steps // seeds, best_return=position.best_return, saved=saved, about=about)
            processes.meet()
            results, state = training.run()
        summary = {
            "env": config.env,
            "algo": config.algo.name,
            "seeds": list(range(config.seed, config.seed + config.num_seeds)),
            **results,
            "wall_seconds": wall_before + time.perf_counter() - start,
            "compile_seconds": position.compile_seconds,
            "resumed_from": position.resumed_from,
            "device": device,
            "device_fallback": fallback,
            "versions": about["versions"],
            "hyperparameters": config.to_dict()["algo"] | {"total_steps": config.total_steps},
        }
        for observer in observers:
            observer.on_end(summary)
    return summary, state


def _read_position(checkpoint: Checkpoint | None) -> tuple[dict[str, Any] | None, Position]:
    """What a checkpoint says of the run up to it, and where that run stood."""
    if checkpoint is None:
        return None, Position()
    progress = checkpoint.progress()
    try:
        return progress, Position(**progress["position"])
    except (KeyError, TypeError):
        raise CheckpointError(f"{checkpoint.path}: it was written by another version") from None
