"""Runs a training: compiles an algorithm over its seeds, advances it row by row and tells observers what happens.

Everything that numerical code needs is built before the first step; the loop itself only moves counters and clocks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, util
from pathlib import Path
from typing import Any

import jax
import numpy as np

import haepo_jax
from haepo_jax.algorithms.base import Algorithm, TrainState
from haepo_jax.config import ConfigError, RunConfig, one_line
from haepo_jax.counting import StepCount
from haepo_jax.training.entry import RunError
from haepo_jax.training.statistics import interquartile_mean, mean_of_known

SLICE_SECONDS = 1.0
"""How long one compiled call may be expected to take: between two calls progress is shown and Ctrl-C is heard."""

ACCELERATOR_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin", "libtpu")
ACCELERATOR_NODES = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0")

PACKAGES = ("jax", "jaxlib", "haepo_jax", "flax", "optax", "gymnax", "brax", "playground")


@dataclasses.dataclass(frozen=True)
class Row:
    """A logged update. Lists hold one value per seed, because seeds differ in how long their episodes are.

    Attributes:
      index: of the row, counted from 0.
      update: updates done by each seed.
      env_steps: live steps done by each seed.
      wall_seconds: since training began, compilation left out.
      env_steps_per_second: of all seeds together since the row before, evaluation included.
      metrics: each metric's value per seed; NaN where there is none, such as a return before an episode has ended.
    """

    index: int
    update: list[int]
    env_steps: list[int]
    wall_seconds: float
    env_steps_per_second: float
    metrics: dict[str, list[float]]

    def mean(self, name: str) -> float:
        """A metric's mean over the seeds that have a value; NaN where none has, or the metric is unknown."""
        return float(mean_of_known(self.metrics.get(name, [np.nan])))

    @property
    def mean_steps(self) -> int:
        """Live steps per seed, rounded down."""
        return sum(self.env_steps) // len(self.env_steps)


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What is known of a run before it starts."""

    config: RunConfig
    directory: Path
    device: str
    fallback: str | None


class Observer:
    """What watches a run: loggers, the progress display, checkpoints. Every method may be left out.

    They are called in the order in which they were given. `on_slice` comes after every compiled call and may raise to
    end the run; it is the only one that sees the train state, whose buffers are donated to the next call: copy what
    must stay.
    """

    def on_start(self, info: RunInfo) -> None:
        """Before anything is compiled."""

    def on_compiled(self, seconds: float) -> None:
        """After compilation, before the first step."""

    def on_slice(self, state: TrainState, env_steps: list[int]) -> None:
        """After every compiled call; `env_steps` per seed."""

    def on_row(self, row: Row) -> None:
        """After every logged update."""

    def on_end(self, summary: dict[str, Any]) -> None:
        """After the final evaluation."""

    def close(self) -> None:
        """Last, whether the run came to its end or not."""


class Program:
    """An algorithm over the seeds of one run, compiled ahead of time so that compilation is timed apart.

    With several seeds every function is vmapped over them. Whatever it returns, on the host every array has seeds as
    its first axis, one seed included.
    """

    def __init__(self, algorithm: Algorithm, *, seed: int, num_seeds: int, final_eval_episodes: int) -> None:
        start = time.perf_counter()
        self.algorithm = algorithm
        self.num_seeds = num_seeds
        # Seed s is the same run alone and as a lane of many, so each lane's key is made from its own number.
        self._keys = jax.random.key(seed)
        if num_seeds > 1:
            self._keys = jax.vmap(jax.random.key)(np.arange(seed, seed + num_seeds, dtype=np.uint32))

        def final_evaluation(state: TrainState) -> dict[str, Any]:
            sampled = algorithm.evaluate(state, episodes=final_eval_episodes)
            greedy = algorithm.evaluate(state, episodes=final_eval_episodes, greedy=True)
            return {"return": sampled["return"], "length": sampled["length"], "return_greedy": greedy["return"]}

        over_seeds = self._over_seeds
        init = jax.jit(over_seeds(algorithm.init, 0)).lower(self._keys)
        state, count = init.out_info, jax.eval_shape(lambda: StepCount.of(0))
        lowered = {
            "init": init,
            "advance": jax.jit(over_seeds(algorithm.advance, (0, None)), donate_argnums=0).lower(state, count),
            "final": jax.jit(over_seeds(final_evaluation, 0)).lower(state),
        }
        if algorithm.eval_episodes:
            lowered["progress"] = jax.jit(over_seeds(algorithm.progress, 0)).lower(state)
        # XLA lets go of Python's lock while it compiles.
        with ThreadPoolExecutor(len(lowered)) as pool:
            compiled = dict(zip(lowered, pool.map(lambda program: program.compile(), lowered.values()), strict=True))
        self._init, self._advance, self._final_evaluation = compiled["init"], compiled["advance"], compiled["final"]
        self._progress = compiled.get("progress")
        self.compile_seconds = time.perf_counter() - start

    def _over_seeds(self, function: Any, in_axes: Any) -> Any:
        return jax.vmap(function, in_axes=in_axes) if self.num_seeds > 1 else function

    def _per_seed(self, values: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        host = jax.device_get(values)
        return {name: np.asarray(v) if self.num_seeds > 1 else np.asarray(v)[None] for name, v in host.items()}

    def init(self) -> TrainState:
        """The train state before the first update."""
        state: TrainState = self._init(self._keys)
        return state

    def advance(self, state: TrainState, until: int) -> tuple[TrainState, dict[str, np.ndarray[Any, Any]]]:
        """Trains every seed up to `until` live steps; uses up `state`. Waits, so that it can be timed."""
        state, metrics = self._advance(state, StepCount.of(until))
        return state, self._per_seed(metrics)

    def evaluate(self, state: TrainState) -> dict[str, np.ndarray[Any, Any]]:
        """The evaluation that belongs to a row, per seed; empty where `eval_episodes` is 0."""
        if self._progress is None:
            return {}
        row = self._progress(state)
        return self._per_seed({name: value for name, value in row.items() if name.startswith("eval_")})

    def final_evaluation(self, state: TrainState) -> dict[str, np.ndarray[Any, Any]]:
        """`return`, `length` (sampled actions) and `return_greedy` of the final policy: (seeds, episodes) each."""
        return self._per_seed(self._final_evaluation(state))

    def counters(self, state: TrainState) -> tuple[list[int], list[int]]:
        """Updates and live steps done by each seed, as exact integers."""
        update = np.atleast_1d(np.asarray(state.update)).tolist()
        return update, np.atleast_1d(state.env_steps.to_int()).tolist()


def build(config: RunConfig) -> Algorithm:
    """The algorithm of a run on its environment; raises ConfigError where they do not fit."""
    try:
        env = haepo_jax.make_env(config.env, **config.env_kwargs)
        algorithm: Algorithm = getattr(haepo_jax, config.algo.class_name)(
            env, total_steps=config.total_steps, **config.algo.hyperparameters
        )
    except (TypeError, ValueError, ImportError, AttributeError, KeyError) as error:
        detail = f" with env_kwargs {config.env_kwargs}" if config.env_kwargs else ""
        raise ConfigError(one_line(f"cannot set up {config.algo.name} on {config.env}{detail}: {error}")) from error
    return algorithm


def run(config: RunConfig, directory: Path, observers: Sequence[Observer]) -> dict[str, Any]:
    """Trains as configured and returns the run's summary; what is written is up to the observers.

    Raises:
      ConfigError: where the environment or algorithm cannot be built.
      RunError: where the device runs out of memory.
    """
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        for observer in observers:
            stack.callback(observer.close)
        device, fallback = describe_device()
        algorithm = build(config)
        for observer in observers:
            observer.on_start(RunInfo(config, directory, device, fallback))
        with _device_errors():
            program = Program(
                algorithm,
                seed=config.seed,
                num_seeds=config.num_seeds,
                final_eval_episodes=config.final_eval_episodes,
            )
            for observer in observers:
                observer.on_compiled(program.compile_seconds)
            results = _train(program, observers)
        summary = {
            "env": config.env,
            "algo": config.algo.name,
            "seeds": list(range(config.seed, config.seed + config.num_seeds)),
            **results,
            "wall_seconds": time.perf_counter() - start,
            "compile_seconds": program.compile_seconds,
            "device": device,
            "device_fallback": fallback,
            "versions": {name: _version(name) for name in PACKAGES},
            "hyperparameters": config.to_dict()["algo"] | {"total_steps": config.total_steps},
        }
        for observer in observers:
            observer.on_end(summary)
    return summary


def _train(program: Program, observers: Sequence[Observer]) -> dict[str, Any]:
    """The loop over rows. Seconds are measured where the host waits for the device, so they are the device's."""
    total, points = program.algorithm.total_steps, program.algorithm.log_points
    begin = row_begin = time.perf_counter()
    train_seconds = eval_seconds = 0.0
    state = program.init()
    update, env_steps = program.counters(state)
    metrics: dict[str, np.ndarray[Any, Any]] = {}
    first_steps, row_steps, index = min(env_steps), sum(env_steps), 0
    while min(env_steps) < total:
        # The next of the evenly spaced points that not every seed has passed, so an update past several makes one row.
        point = min(env_steps) * points // total + 1
        until = -(-total * point // points)
        while min(env_steps) < until:
            slice_begin = time.perf_counter()
            end = _slice_end(min(env_steps), min(env_steps) - first_steps, train_seconds)
            state, latest = program.advance(state, min(until, end))
            before = update
            update, env_steps = program.counters(state)
            advanced = np.array(update) > np.array(before)
            metrics = {name: np.where(advanced, value, metrics.get(name, value)) for name, value in latest.items()}
            train_seconds += time.perf_counter() - slice_begin
            for observer in observers:
                observer.on_slice(state, env_steps)
        eval_begin = time.perf_counter()
        evaluation = program.evaluate(state)
        now = time.perf_counter()
        eval_seconds += now - eval_begin
        row = Row(
            index=index,
            update=update,
            env_steps=env_steps,
            wall_seconds=now - begin,
            env_steps_per_second=(sum(env_steps) - row_steps) / (now - row_begin),
            metrics={name: value.astype(np.float64).tolist() for name, value in (metrics | evaluation).items()},
        )
        row_begin, row_steps, index = now, sum(env_steps), index + 1
        for observer in observers:
            observer.on_row(row)
    run_seconds = time.perf_counter() - begin

    final_begin = time.perf_counter()
    final = {name: value.astype(np.float64) for name, value in program.final_evaluation(state).items()}
    final_seconds = time.perf_counter() - final_begin
    returns, greedy = final["return"].mean(axis=1), final["return_greedy"].mean(axis=1)
    return {
        "env_steps": sum(env_steps) // len(env_steps),
        "env_steps_per_seed": env_steps,
        "updates": max(update),
        "updates_per_seed": update,
        "final_return_mean": float(returns.mean()),
        "final_return_iqm": float(interquartile_mean(returns)),
        "final_return_per_seed": returns.tolist(),
        "final_return_greedy_mean": float(greedy.mean()),
        "final_return_greedy_per_seed": greedy.tolist(),
        "final_length_mean": float(final["length"].mean()),
        "final_eval_episodes": final["return"].shape[1],
        "run_seconds": run_seconds,
        "train_seconds": train_seconds,
        "eval_seconds": eval_seconds,
        "final_eval_seconds": final_seconds,
        "eval_share": eval_seconds / run_seconds,
        "env_steps_per_second": sum(env_steps) / run_seconds,
    }


def _slice_end(done: int, gained: int, seconds: float) -> int:
    """Where to stop the next compiled call so that it takes about SLICE_SECONDS, judged by `gained` steps in `seconds`.

    How a run is cut changes no result, so this may depend on the clock. The first call makes one update.
    """
    return done + max(1, int(gained / seconds * SLICE_SECONDS) if seconds else 1)


@contextlib.contextmanager
def _device_errors() -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        detail = one_line(str(error), 160)
        raise RunError(f"the device is out of memory: take fewer seeds or environments ({detail})") from None


def describe_device() -> tuple[str, str | None]:
    """The devices jax computes on, such as `cpu` or `8 x gpu (NVIDIA H200)`; and, where jax has fallen back to the CPU
    although there is an accelerator, a sentence that says so. Raises ConfigError where jax finds no device."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            devices = jax.devices()
    except RuntimeError as error:
        raise ConfigError(f"jax finds no device to run on: {one_line(str(error), 200)}") from None
    platform, kind = devices[0].platform, devices[0].device_kind
    text = platform if kind == platform else f"{platform} ({kind})"
    text = f"{len(devices)} x {text}" if len(devices) > 1 else text
    return text, _fallback() if platform == "cpu" and not os.environ.get("JAX_PLATFORMS") else None


def _fallback() -> str | None:
    if any(util.find_spec(plugin) for plugin in ACCELERATOR_PLUGINS):
        return "jax has an accelerator plugin but could not use it, and fell back to the CPU"
    if any(os.path.exists(node) for node in ACCELERATOR_NODES):
        return "this machine has an accelerator but jax is installed without its plugin, and fell back to the CPU"
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return haepo_jax.__version__ if package == "haepo_jax" else None
