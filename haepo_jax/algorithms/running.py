"""The training loop and evaluation as pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from haepo_jax.algorithms.state import Metrics, TrainState
from haepo_jax.counting import StepCount
from haepo_jax.rollout import collect_episodes, environment_keys
from haepo_jax.unbatched import any_in_batch, hold_finished

if TYPE_CHECKING:
    from haepo_jax.algorithms.base import Algorithm

EVALUATION_SEED = 0x5EED


def advance(algorithm: Algorithm, state: TrainState, until: StepCount) -> tuple[TrainState, Metrics]:
    """Updates until `until` steps are done or the run diverges; the metrics are those of the last update, 0 if none."""

    def unfinished(state: TrainState) -> jax.Array:
        return (state.env_steps < until) & ~state.status.diverged

    def step(loop: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        return hold_finished(unfinished(loop[0]), train_step(loop[0]), loop)

    train_step = jax.jit(algorithm.train_step)  # traced once, for its shapes and for the loop
    nothing = _zeros(jax.eval_shape(train_step, state)[1])
    return jax.lax.while_loop(lambda loop: any_in_batch(unfinished(loop[0])), step, (state, nothing))


def whole_run(algorithm: Algorithm, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Runs all updates from `state` to `total_steps`, with metrics at `log_points` evenly spaced points."""
    total, rows = algorithm.total_steps, algorithm.log_points
    points = [-(-total * (row + 1) // rows) for row in range(rows)]
    until = StepCount(
        jnp.array([p >> 32 for p in points], jnp.uint32), jnp.array([p & 0xFFFFFFFF for p in points], jnp.uint32)
    )

    def row(loop: tuple[TrainState, Metrics], until: StepCount) -> tuple[tuple[TrainState, Metrics], dict[str, Any]]:
        state, metrics = algorithm.advance(loop[0], until)
        advanced = state.update > loop[0].update
        metrics = jax.tree.map(lambda new, old: jnp.where(advanced, new, old), metrics, loop[1])
        return (state, metrics), {**metrics, **algorithm.progress(state)}

    nothing = _zeros(jax.eval_shape(algorithm.train_step, state)[1])
    (state, _), metrics = jax.lax.scan(row, (state, nothing), until)
    return state, metrics


def _zeros(shapes: Any) -> Any:
    # Not NaN: `jax_debug_nans` rejects any NaN returned by a compiled function.
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def progress(algorithm: Algorithm, state: TrainState, max_steps: int | None = None) -> dict[str, Any]:
    """The other entries of a row of metrics: counters, and an evaluation if `eval_episodes` > 0."""
    row: dict[str, Any] = {"env_steps": state.env_steps, "update": state.update}
    if algorithm.eval_episodes:
        # Sampled and greedy episodes share one loop, which runs as long as the longest episode of both.
        key = jax.random.key(EVALUATION_SEED)
        both = jax.vmap(lambda greedy: play(algorithm, state, algorithm.eval_episodes, greedy, key, max_steps))
        played = both(jnp.array([False, True]))
        row["eval_return"], row["eval_return_greedy"] = jnp.mean(played["return"], axis=1)
        row["eval_length"] = jnp.mean(played["length"][0].astype(jnp.float32))
    return row


def play(
    algorithm: Algorithm,
    state: TrainState,
    episodes: int,
    greedy: jax.Array,
    key: jax.Array,
    max_steps: int | None = None,
) -> dict[str, jax.Array]:
    """Evaluates on complete episodes, run in parallel; see `Algorithm.evaluate`."""
    reset_key, step_key = jax.random.split(key)

    def act(
        carry: Any, observation: Any, is_first: jax.Array, action_mask: Any, key: jax.Array
    ) -> tuple[Any, jax.Array, None]:
        carry, distribution = algorithm.act_distribution(state, carry, observation, is_first, action_mask)
        choose = lambda mode, sample: jnp.where(greedy, mode, sample)  # noqa: E731
        return carry, jax.tree.map(choose, distribution.mode(), distribution.sample(key)), None

    # If the algorithm is a constant of the compiled program, XLA would fold the environment's parameters and round
    # differently. The barrier makes evaluation bit-identical inside and outside `jax.jit`.
    env = jax.lax.optimization_barrier(algorithm.env)
    keys = environment_keys(reset_key, episodes), environment_keys(step_key, episodes)
    _, returns, lengths = collect_episodes(
        env, act, algorithm.initial_carry(), *keys, record=False, max_steps=max_steps
    )
    return {"return": returns, "length": lengths}
