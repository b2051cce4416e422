"""Rollouts of complete episodes, for trajectory methods and evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from haepo_jax.rollout.stepping import Act, Trajectory, all_finite, step_environment
from haepo_jax.sharding import shard_environments
from haepo_jax.unbatched import any_in_batch


def collect_episodes(
    env: Any,
    act: Act,
    initial_carry: Any,
    reset_keys: jax.Array,
    step_keys: jax.Array,
    *,
    record: bool = True,
    max_steps: int | None = None,
) -> tuple[Trajectory | None, jax.Array, jax.Array]:
    """Collects one complete episode per environment; stops when the last one ends.

    Args:
      env: an `Environment`.
      act: the policy.
      initial_carry: initial policy carry of one environment.
      reset_keys: (B,); environments with equal keys start in the same state.
      step_keys: (B,), for actions and transitions.
      record: whether to store the steps; evaluation only needs returns and lengths.
      max_steps: limit on the episode length, if less than env.horizon.

    Returns:
      The steps (T, B) or None; returns (B,) float32; lengths (B,) int32. T is the smaller of env.horizon and max_steps;
      episodes still running after T steps are cut off. Without `record`, the return of an episode with an observation
      that is not finite is NaN, for an action that follows from it means nothing; recorded steps show it themselves.
    """
    chex.assert_equal_shape([reset_keys, step_keys])
    horizon = min(int(env.horizon), 2**31 - 1 if max_steps is None else max_steps)
    num_envs = reset_keys.shape[0]
    state, observation = shard_environments(jax.vmap(env.reset)(reset_keys))
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_envs, *jnp.shape(x))), initial_carry)
    one_step = jax.vmap(lambda *args: step_environment(env, act, *args), in_axes=(0, 0, 0, None, 0, 0))

    def step(loop: _Loop) -> _Loop:
        is_first = loop.time == 0
        keys = jax.vmap(jax.random.fold_in, (0, None))(step_keys, loop.time)
        stepped = one_step(loop.state, loop.observation, loop.carry, is_first, loop.alive, keys)
        buffers = jax.tree.map(
            lambda buffer, x: buffer.at[loop.time].set(x), loop.buffers, stepped.transition if record else None
        )
        reward = stepped.transition.reward
        if not record:
            reward = jnp.where(all_finite(stepped.transition.observation, 1), reward, jnp.nan)
        return _Loop(
            time=loop.time + 1,
            state=stepped.state,
            observation=stepped.observation,
            carry=stepped.carry,
            alive=loop.alive & ~stepped.done,
            buffers=buffers,
            returns=loop.returns + reward,
            lengths=loop.lengths + loop.alive.astype(jnp.int32),
        )

    alive = jnp.ones(num_envs, bool)
    buffers = None
    if record:
        shapes = jax.eval_shape(one_step, state, observation, carry, jnp.bool_(True), alive, step_keys).transition
        buffers = jax.tree.map(lambda x: jnp.zeros((horizon, *x.shape), x.dtype), shapes)
    start = _Loop(
        time=jnp.int32(0), state=state, observation=observation, carry=carry, alive=alive, buffers=buffers,
        returns=jnp.zeros(num_envs, jnp.float32), lengths=jnp.zeros(num_envs, jnp.int32),
    )  # fmt: skip
    end = jax.lax.while_loop(lambda loop: (loop.time < horizon) & any_in_batch(loop.alive), step, start)
    return end.buffers, end.returns, end.lengths


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Loop:
    time: jax.Array
    state: Any
    observation: Any
    carry: Any
    alive: jax.Array
    buffers: Trajectory | None
    returns: jax.Array
    lengths: jax.Array
