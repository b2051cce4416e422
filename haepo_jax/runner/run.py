"""One run from its settings to its summary: builds, compiles or restores, and hands over to the loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.state import Start, TrainState
from haepo_jax.runner.checkpoints import Checkpoint, CheckpointError, Saver, prng_implementation
from haepo_jax.runner.config import RunConfig
from haepo_jax.runner.devices import describe_device, device_errors, versions
from haepo_jax.runner.evaluation import final_size
from haepo_jax.runner.loading import start_of
from haepo_jax.runner.loop import LoopState, Training
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
    start: Start | None = None,
) -> tuple[dict[str, Any], TrainState]:
    """Trains as configured; what is written is up to the observers and the saver.

    Args:
      config: the settings.
      directory: of the run, named in what is shown; None: it has none.
      observers: see `Observer`.
      algorithm: that the settings describe; None: is built from them.
      saver: writes checkpoints; None: there are none.
      resumed: whether this resumes a run.
      checkpoint: to resume from, verified; None: from the beginning.
      begin: called when there is something to save from here on.
      stop: asked after every compiled call for the number of a signal that wants the run to end.
      processes: that have a share in the run; saver and checkpoint are the first one's.
      start: a policy to start from; None: the one that `config.init_from` names, if any.

    Returns:
      The summary, and the final train state; of several seeds with a leading axis.

    Raises:
      ConfigError: where the environment or algorithm cannot be built.
      RunError: where the device runs out of memory, or a checkpoint cannot be written or read.
      Interrupted: where `stop` gave a signal, after a last checkpoint.
      OSError: where an observer cannot write.
    """
    begun = time.perf_counter()
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
            "prng": prng_implementation(),
        }
        earlier, position = processes.of_first(lambda: _read_position(checkpoint))
        start_from = processes.of_first(
            lambda: None if checkpoint is not None else start or start_of(config, algorithm)
        )
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

        def warn(text: str) -> None:
            for observer in observers:
                observer.on_warning(text)

        if earlier is not None and any(earlier.get(key) != about[key] for key in ("versions", "device")):
            warn("the run so far was made on another device or by other versions: it will not continue bit for bit")
        if earlier is not None and (text := _extended(earlier, position, config, algorithm)):
            warn(text)
        if saver is not None:
            saver.prepare()
        processes.meet()
        with device_errors("take fewer seeds or environments"):
            program = Program(
                algorithm,
                seeds=config.seed_numbers,
                final=final_size(config.final_eval_episodes, algorithm),
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
            "seeds": config.seed_numbers,
            **results,
            "wall_seconds": wall_before + time.perf_counter() - begun,
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


def _read_position(checkpoint: Checkpoint | None) -> tuple[dict[str, Any] | None, LoopState]:
    """What a checkpoint says of the run up to it, and where that run stood."""
    if checkpoint is None:
        return None, LoopState()
    progress = checkpoint.progress()
    try:
        return progress, LoopState(**progress["position"])
    except (KeyError, TypeError):
        raise CheckpointError(f"{checkpoint.path}: it was written by another version") from None


def _extended(earlier: dict[str, Any], position: LoopState, config: RunConfig, algorithm: Algorithm) -> str | None:
    """What to say where a larger total_steps takes a schedule back; None where it takes none back."""
    before = earlier.get("settings", {}).get("total_steps", config.total_steps)
    if before == config.total_steps:
        return None
    done = position.steps / config.num_seeds
    rates = [
        float(algorithm.scheduled(jnp.float32(min(1.0, done / t))).learning_rate) for t in (before, config.total_steps)
    ]
    if rates[0] == rates[1]:
        return None
    return (
        f"total_steps grows from {before:,} to {config.total_steps:,}, and schedules follow the share of total_steps that "
        f"is done: the learning rate goes from {rates[0]:.3g} back to {rates[1]:.3g}"
    )
