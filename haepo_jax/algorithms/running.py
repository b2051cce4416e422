"""Whole runs and evaluation as pure functions, which are the methods `train`, `advance`, `progress` and `evaluate` of every
`Algorithm`: what can be done with its `train_step` and its policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.algorithms.state import InitialPolicy, Metrics, TrainState, check_single
from haepo_jax.counting import StepCount
from haepo_jax.rollout import collect_episodes, environment_keys
from haepo_jax.unbatched import any_in_batch, hold_finished

if TYPE_CHECKING:
    from haepo_jax.algorithms.base import Algorithm

EVALUATION_SEED = 0x5EED


def train(self: Algorithm, key: jax.Array, start: InitialPolicy | None = None) -> tuple[TrainState, dict[str, Any]]:
    """Runs the whole training; under `jax.jit` one compiled program. See `init` for `start`.

    Returns:
      The final state, and metrics with `log_points` rows, evenly spaced in environment steps: the metrics of the
      update that reaches each point, `env_steps` (a `StepCount`), `update`, and the mean `eval_return`,
      `eval_return_greedy` and `eval_length` over `eval_episodes` episodes. An update that passes several points
      repeats its row.
    """
    state = self.init(key, start)
    points = [-(-self.total_steps * (row + 1) // self.log_points) for row in range(self.log_points)]
    until = StepCount.of(np.array(points, np.int64))

    def row(loop: tuple[TrainState, Metrics], until: StepCount) -> tuple[tuple[TrainState, Metrics], dict[str, Any]]:
        state, metrics = self.advance(loop[0], until)
        advanced = state.update > loop[0].update
        metrics = jax.tree.map(lambda new, old: jnp.where(advanced, new, old), metrics, loop[1])
        return (state, metrics), {**metrics, **self.progress(state)}

    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(self.train_step, state)[1])
    (state, _), metrics = jax.lax.scan(row, (state, nothing), until)
    return state, metrics


def advance(self: Algorithm, state: TrainState, until: StepCount | int) -> tuple[TrainState, Metrics]:
    """Updates until `until` environment steps are done, a number or a traced `StepCount`, or the run diverges.

    Returns:
      The next state, and the metrics of the last update, 0 if there was none.
    """
    until = until if isinstance(until, StepCount) else StepCount.of(int(until))  # of NumPy, too

    def unfinished(state: TrainState) -> jax.Array:
        return (state.env_steps < until) & ~state.status.diverged

    def step(loop: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        return hold_finished(unfinished(loop[0]), train_step(loop[0]), loop)

    train_step = jax.jit(self.train_step)  # traced once, for its shapes and for the loop
    # Not NaN: `jax_debug_nans` rejects any NaN returned by a compiled function.
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(train_step, state)[1])
    return jax.lax.while_loop(lambda loop: any_in_batch(unfinished(loop[0])), step, (state, nothing))


def progress(self: Algorithm, state: TrainState, max_steps: int | None = None) -> dict[str, Any]:
    """Counters for a row of metrics, and an evaluation if `eval_episodes` > 0; see `evaluate` for `max_steps`."""
    row: dict[str, Any] = {"env_steps": state.env_steps, "update": state.update}
    if self.eval_episodes:
        # Sampled and greedy episodes share one loop, which runs as long as the longest episode of both.
        key = jax.random.key(EVALUATION_SEED)
        both = jax.vmap(lambda greedy: _play(self, state, self.eval_episodes, greedy, key, max_steps))
        played = both(jnp.array([False, True]))
        row["eval_return"], row["eval_return_greedy"] = jnp.mean(played["return"], axis=1)
        row["eval_length"] = jnp.mean(played["length"][0].astype(jnp.float32))
    return row


def evaluate(
    self: Algorithm,
    state: TrainState,
    *,
    episodes: int = 128,
    greedy: bool = False,
    key: jax.Array | None = None,
    max_steps: int | None = None,
) -> dict[str, jax.Array]:
    """Evaluates the current policy on complete episodes.

    Args:
      state: the train state.
      episodes: number of episodes, run in parallel.
      greedy: take the mode of each action distribution instead of a sample.
      key: PRNG key of initial states, actions and transitions. The default is one fixed key, so that all runs and
        seeds are evaluated with the same random numbers.
      max_steps: limit on the episode length, if less than the environment's horizon.

    Returns:
      `return` (episodes,) float32 and `length` (episodes,) int32.
    """
    key = jax.random.key(EVALUATION_SEED) if key is None else key
    return _play(self, state, episodes, jnp.bool_(greedy), key, max_steps)


def _play(
    self: Algorithm, state: TrainState, episodes: int, greedy: jax.Array, key: jax.Array, max_steps: int | None
) -> dict[str, jax.Array]:
    check_single(state)
    reset_key, step_key = jax.random.split(key)

    def act(
        carry: Any, observation: Any, is_first: jax.Array, action_mask: Any, key: jax.Array
    ) -> tuple[Any, jax.Array, None]:
        carry, distribution = self.act_distribution(state, carry, observation, is_first, action_mask)
        choose = lambda mode, sample: jnp.where(greedy, mode, sample)  # noqa: E731
        return carry, jax.tree.map(choose, distribution.mode(), distribution.sample(key)), None

    # If the algorithm is a constant of the compiled program, XLA would fold the environment's parameters and round
    # differently. The barrier makes evaluation bit-identical inside and outside `jax.jit`.
    env = jax.lax.optimization_barrier(self.env)
    keys = environment_keys(reset_key, episodes), environment_keys(step_key, episodes)
    _, returns, lengths = collect_episodes(env, act, self.initial_carry(), *keys, record=False, max_steps=max_steps)
    return {"return": returns, "length": lengths}
