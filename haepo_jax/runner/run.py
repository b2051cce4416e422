"""One run from its settings to its summary: builds, compiles or restores, and hands over to the loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.state import InitialPolicy, TrainState
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
from haepo_jax.runner.signals import NEVER, StopSignals


def run(
    config: RunConfig,
    directory: Path | None,
    observers: Sequence[Observer],
    *,
    algorithm: Algorithm | None = None,
    saver: Saver | None = None,
    resumed: bool = False,
    checkpoint: Checkpoint | None = None,
    stop: StopSignals = NEVER,
    processes: Processes = ALONE,
    start: InitialPolicy | None = None,
) -> tuple[dict[str, Any], TrainState]:
    """Trains as configured; returns the summary and the final train state, of several seeds with a leading axis.

    What is written is up to the observers and the saver. A verified `checkpoint` is resumed from; `algorithm` and `start`
    stand in for what the settings describe. Of several processes the saver and the checkpoint are the first one's.

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
        steps = position.steps // seeds
        rows, logged = position.rows, position.logged_steps // seeds if position.rows else -1
        info = RunInfo(config, algorithm, directory, device, fallback, rows, logged, steps if resumed else None)
        for observer in observers:
            observer.on_start(info)
            for text in _changes(earlier, about, steps, config, algorithm):
                observer.on_warning(text)
        if saver is not None:
            saver.prepare()
        processes.meet()
        with device_errors("take fewer seeds or environments"):
            final = final_size(config.final_eval_episodes, algorithm)
            program = Program(algorithm, seeds=config.seed_numbers, final=final, mesh=mesh, start=start_from)
            state = program.init() if earlier is None else program.restore(checkpoint, processes)
            stop.begin()  # first, so that whoever reads that training has begun may interrupt it
            for observer in observers:
                observer.on_compiled(program.compile_seconds)
            wall_before = position.run_seconds + position.compile_seconds
            position.compile_seconds += program.compile_seconds
            if earlier is not None:
                position.resumed_from.append(steps)
            training = Training(program, observers, saver, stop, processes, position, state, config.env)
            if saver is not None:
                saved = None if checkpoint is None else training.mark
                saver.start(steps, best_return=position.best_return, saved=saved, about=about)
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


def _changes(
    earlier: dict[str, Any] | None, about: dict[str, Any], steps: int, config: RunConfig, algorithm: Algorithm
) -> list[str]:
    """What to say of a resumed run that will not be as if it had never been interrupted."""
    if earlier is None:
        return []
    texts = []
    if any(earlier.get(key) != about[key] for key in ("versions", "device")):
        texts.append("the run so far was made on another device or by other versions: it will not continue bit for bit")
    total = config.total_steps
    before = earlier.get("settings", {}).get("total_steps", total)
    scheduled = (algorithm.scheduled(jnp.float32(min(1.0, steps / t))).learning_rate for t in (before, total))
    then, now = map(float, scheduled) if before != total else (0.0, 0.0)
    if then != now:
        texts.append(
            f"total_steps grows from {before:,} to {total:,}, and schedules follow the share of total_steps that "
            f"is done: the learning rate goes from {then:.3g} back to {now:.3g}"
        )
    return texts
