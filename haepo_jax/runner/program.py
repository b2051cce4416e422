"""From settings to a compiled program: the algorithm of a run, how much it evaluates, and its functions over all seeds."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from haepo_jax import envs, sharding
from haepo_jax.algorithms import declared, fields
from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.state import InitialPolicy, TrainState
from haepo_jax.counting import StepCount
from haepo_jax.messages import one_line, short
from haepo_jax.runner.checkpoints import Checkpoint
from haepo_jax.runner.config import ConfigError, RunConfig

FINAL_EPISODES = 128
FEW_EPISODES = 4
SAMPLED_AND_GREEDY = 2
"""Factor on the episodes of an evaluation, which are played with sampled and with greedy actions."""

PerSeed = dict[str, np.ndarray[Any, Any]]


def build(config: RunConfig, env: Any = None) -> Algorithm:
    """The algorithm of a run on its environment, or on a given one; raises ConfigError where they do not fit."""
    try:
        env = envs.make_env(config.env, **config.env_kwargs) if env is None else env
        return declared.load(config.algo.name)(env, total_steps=config.total_steps, **config.algo.hyperparameters)
    except Exception as error:  # an environment may raise anything at a setting that it cannot use
        detail = f" with env_kwargs {short(config.env_kwargs, 200)}" if config.env_kwargs else ""
        reason = str(error) or type(error).__name__
        raise ConfigError(one_line(f"cannot set up {config.algo.name} on {config.env}{detail}: {reason}")) from error


def check_registered(algorithm: Algorithm) -> None:
    """Raises ConfigError for an algorithm of a class that JAX does not know as a pytree."""
    if jax.tree_util.all_leaves([algorithm]):
        name = type(algorithm).__name__
        raise ConfigError(f"{name} is not a pytree: put @jax.tree_util.register_dataclass above the class")


def mesh_of(config: RunConfig, algorithm: Algorithm) -> Mesh | None:
    """The devices of this process over which a run shards its environments, if it does; raises ConfigError where it
    cannot."""
    if config.shard == "none":
        return None
    try:
        fields.check_divides("algo.num_envs", algorithm.num_envs, "the number of devices", jax.local_device_count())
    except fields.HyperparameterError as error:
        raise ConfigError(f"shard=environments: {error}") from None
    return sharding.environment_mesh(jax.local_devices())


@dataclasses.dataclass(frozen=True)
class EvaluationSize:
    """Episodes of each kind; `max_steps` is where they are cut, None: at the environment's horizon."""

    episodes: int
    max_steps: int | None = None


def row_size(algorithm: Algorithm) -> EvaluationSize:
    """The evaluation at a row: as many episodes, up to `eval_episodes`, as keep all rows' evaluations, with every episode
    at full length, within `total_steps`; or else a few, in which case not every row is evaluated (see `loop`)."""
    asked, total, horizon = algorithm.eval_episodes, algorithm.total_steps, algorithm.env.horizon
    if not asked:
        return EvaluationSize(asked)
    fitting = total // (SAMPLED_AND_GREEDY * horizon * algorithm.log_points)
    return _within(min(asked, max(FEW_EPISODES, fitting)), total, horizon)


def final_size(asked: int | None, algorithm: Algorithm) -> EvaluationSize:
    """The final evaluation: what was asked for; None: 128 episodes, or as many as at full length fit in `total_steps`."""
    if asked is not None:
        return EvaluationSize(asked)
    return _within(FINAL_EPISODES, algorithm.total_steps, algorithm.env.horizon)


def _within(episodes: int, total: int, horizon: int) -> EvaluationSize:
    episodes = max(1, min(episodes, total // (SAMPLED_AND_GREEDY * horizon)))
    return EvaluationSize(
        episodes, None if SAMPLED_AND_GREEDY * horizon <= total else max(1, total // SAMPLED_AND_GREEDY)
    )


class Program:
    """An algorithm over the seeds of one run, compiled ahead of time so that compilation is timed apart.

    On the host every array has seeds as its first axis, one seed included. With a mesh the environments are sharded over
    its devices within a compiled call; between two of them every device holds the whole train state. Under
    `jax_disable_jit` nothing is compiled.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        *,
        seeds: Sequence[int],
        final: EvaluationSize,
        mesh: Mesh | None = None,
        start: InitialPolicy | None = None,
    ) -> None:
        begin = time.perf_counter()
        self.algorithm = algorithm
        self.seeds = list(seeds)
        self.num_seeds = len(self.seeds)
        self.row_size, self.final_size = row_size(algorithm), final
        # A seed is the same run alone and among many, so its key is made from its own number.
        self._keys = jax.random.key(self.seeds[0])
        if self.num_seeds > 1:
            self._keys = jax.vmap(jax.random.key)(np.array(self.seeds, np.uint32))
        evaluated = algorithm
        if self.row_size.episodes != algorithm.eval_episodes:
            evaluated = algorithm.replace(eval_episodes=self.row_size.episodes)

        def evaluation(state: TrainState) -> dict[str, Any]:
            row = evaluated.progress(state, max_steps=self.row_size.max_steps)
            return {name: value for name, value in row.items() if name.startswith("eval_")}

        def final_evaluation(state: TrainState) -> dict[str, Any]:
            size: dict[str, Any] = {"episodes": final.episodes, "max_steps": final.max_steps}
            sampled, greedy = (algorithm.evaluate(state, **size, greedy=greedy) for greedy in (False, True))
            return {"return": sampled["return"], "length": sampled["length"], "return_greedy": greedy["return"]}

        placed: dict[str, Any] = {}
        if mesh is not None:
            placed = dict.fromkeys(("in_shardings", "out_shardings"), sharding.replicated(mesh))
        pool = ThreadPoolExecutor(3)

        def compiled(function: Any, axes: Any, *arguments: Any, **keywords: Any) -> tuple[Any, Future[Any]]:
            """The shapes of what a function over all seeds returns, and the function compiled for these arguments."""
            function = jax.vmap(function, in_axes=axes) if self.num_seeds > 1 else function
            if getattr(jax.config, "jax_disable_jit", False):
                return jax.eval_shape(function, *arguments), pool.submit(lambda: function)
            lowered = jax.jit(function, **placed, **keywords).lower(*arguments)
            return lowered.out_info, pool.submit(lowered.compile)

        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            self._init_from = (self._keys,) if start is None else (self._keys, start)
            # XLA releases the GIL while it compiles, so one function is traced while others are compiled.
            self._state, init = compiled(algorithm.init, (0,) if start is None else (0, None), *self._init_from)
            count = jax.eval_shape(lambda: StepCount.of(0))
            (_, metrics), advance = compiled(algorithm.advance, (0, None), self._state, count, donate_argnums=0)
            self._evaluation_names, evaluate = compiled(evaluation, 0, self._state)
            # What is needed only at the end is compiled during the training.
            self._final = compiled(final_evaluation, 0, self._state)[1] if final.episodes else None
            self._place = jax.jit(lambda state: state, **placed)
        self._init, self._advance, self._evaluation = (done.result() for done in (init, advance, evaluate))
        pool.shutdown(wait=False)
        self.compile_seconds = time.perf_counter() - begin

    def _per_seed(self, values: dict[str, Any]) -> PerSeed:
        host = jax.device_get(values)
        return {name: np.asarray(v) if self.num_seeds > 1 else np.asarray(v)[None] for name, v in host.items()}

    def init(self) -> TrainState:
        """The train state before the first update."""
        return self._init(*self._init_from)

    def restore(self, checkpoint: Checkpoint) -> TrainState:
        """The train state that a verified checkpoint holds. Raises CheckpointError."""
        return self._place(checkpoint.restore(self._state))

    def advance(self, state: TrainState, until: int) -> tuple[TrainState, PerSeed]:
        """Trains every seed up to `until` steps; uses up `state`. Waits, so that it can be timed."""
        state, metrics = self._advance(state, StepCount.of(until))
        return state, self._per_seed(metrics)

    def evaluate(self, state: TrainState) -> PerSeed:
        """The evaluation that belongs to a row, per seed; empty where `eval_episodes` is 0."""
        return self._per_seed(self._evaluation(state))

    def not_evaluated(self) -> PerSeed:
        """What a row has in place of an evaluation that is left out."""
        return dict.fromkeys(self._evaluation_names, np.full(self.num_seeds, np.nan))

    def final_evaluation(self, state: TrainState) -> PerSeed:
        """`return`, `length` (sampled actions) and `return_greedy` of the final policy: (seeds, episodes) each."""
        if self._final is None:
            return dict.fromkeys(("return", "length", "return_greedy"), np.zeros((self.num_seeds, 0)))
        return self._per_seed(self._final.result()(state))
