"""From settings to a compiled program: the algorithm of a run, its devices, and its functions over all seeds."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import haepo_jax
from haepo_jax import sharding
from haepo_jax.algorithms import declared, fields
from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.state import Start, TrainState
from haepo_jax.counting import StepCount
from haepo_jax.messages import one_line, short
from haepo_jax.runner.checkpoints import Checkpoint, from_arrays, to_arrays
from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.processes import Processes


class Program:
    """An algorithm over the seeds of one run, compiled ahead of time so that compilation is timed apart.

    With several seeds every function is vmapped over them. Whatever it returns, on the host every array has seeds as
    its first axis, one seed included.

    With a mesh the environments are shared out over its devices within a compiled call. Between two of them every
    device holds the whole train state, environments in mid-episode included, so that one process can write it down.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        *,
        seed: int,
        num_seeds: int,
        final_eval_episodes: int,
        mesh: Mesh | None = None,
        start: Start | None = None,
    ) -> None:
        begin = time.perf_counter()
        self.algorithm = algorithm
        self.first_seed = seed
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
        placed: dict[str, Any] = {}
        if mesh is not None:
            placed = dict.fromkeys(("in_shardings", "out_shardings"), sharding.whole(mesh))
        pool = ThreadPoolExecutor(3)
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            self._init_from = (self._keys,) if start is None else (self._keys, start)
            axes = (0,) if start is None else (0, None)
            # XLA lets go of Python's lock while it compiles, so one function is traced while others are compiled.
            init = jax.jit(over_seeds(algorithm.init, axes), **placed).lower(*self._init_from)
            compiling = {"init": pool.submit(init.compile)}
            state, count = init.out_info, jax.eval_shape(lambda: StepCount.of(0))
            advance = jax.jit(over_seeds(algorithm.advance, (0, None)), donate_argnums=0, **placed).lower(state, count)
            _check_metrics(algorithm, advance.out_info[1], num_seeds)
            compiling["advance"] = pool.submit(advance.compile)
            if algorithm.eval_episodes:
                progress = jax.jit(over_seeds(algorithm.progress, 0), **placed).lower(state)
                compiling["progress"] = pool.submit(progress.compile)
            final = jax.jit(over_seeds(final_evaluation, 0), **placed).lower(state)
            self._place = jax.jit(lambda state: state, **placed)
        self._state = state
        compiled = {name: program.result() for name, program in compiling.items()}
        self._init, self._advance, self._progress = compiled["init"], compiled["advance"], compiled.get("progress")
        # What is needed at the end only is compiled while the training goes on.
        self._final_evaluation = pool.submit(final.compile)
        pool.shutdown(wait=False)
        self.compile_seconds = time.perf_counter() - begin

    def _over_seeds(self, function: Any, in_axes: Any) -> Any:
        return jax.vmap(function, in_axes=in_axes) if self.num_seeds > 1 else function

    def _per_seed(self, values: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        host = jax.device_get(values)
        return {name: np.asarray(v) if self.num_seeds > 1 else np.asarray(v)[None] for name, v in host.items()}

    def init(self) -> TrainState:
        """The train state before the first update."""
        state: TrainState = self._init(*self._init_from)
        return state

    def restore(self, checkpoint: Checkpoint | None, processes: Processes) -> TrainState:
        """The train state that a checkpoint, verified before, holds; it is the first process's, and None elsewhere.
        Raises CheckpointError."""

        def read() -> dict[str, np.ndarray[Any, Any]]:
            assert checkpoint is not None
            return to_arrays(checkpoint.restore(self._state))

        state: TrainState = self._place(from_arrays(processes.of_first(read), self._state))
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
        return self._per_seed(self._final_evaluation.result()(state))


def build(config: RunConfig, env: Any = None) -> Algorithm:
    """The algorithm of a run on its environment, or on one that is at hand; raises ConfigError where they do not fit."""
    try:
        env = haepo_jax.make_env(config.env, **config.env_kwargs) if env is None else env
        algorithm: Algorithm = declared.load(config.algo.name)(
            env, total_steps=config.total_steps, **config.algo.hyperparameters
        )
    except Exception as error:  # an environment answers a setting that it cannot use with whatever it likes
        detail = f" with env_kwargs {short(config.env_kwargs, 200)}" if config.env_kwargs else ""
        reason = str(error) or type(error).__name__
        raise ConfigError(one_line(f"cannot set up {config.algo.name} on {config.env}{detail}: {reason}")) from error
    return algorithm


def mesh_of(config: RunConfig, algorithm: Algorithm) -> Mesh | None:
    """The devices over which a run shares out its environments, if it does; raises ConfigError where it cannot."""
    if config.shard == "none":
        return None
    try:
        fields.check_divides("algo.num_envs", algorithm.num_envs, "the number of devices", jax.device_count())
    except fields.HyperparameterError as error:
        raise ConfigError(f"shard=environments: {error}") from None
    with sharding.over_environments() as mesh:
        return mesh


def _check_metrics(algorithm: Algorithm, metrics: dict[str, Any], num_seeds: int) -> None:
    for name, metric in metrics.items():
        if len(metric.shape) != (num_seeds > 1):
            shape = metric.shape[num_seeds > 1 :]
            raise ConfigError(
                f"the metric {name!r} of {type(algorithm).__name__} has shape {shape}: a metric is one number"
            )
