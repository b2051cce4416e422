"""One step of one environment, the steps of many, and the keys that their randomness comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.envs.base import has_action_mask
from haepo_jax.spaces import Box, Leaf, map_space

Act = Callable[[Any, Any, jax.Array, Any, jax.Array], tuple[Any, jax.Array, Any]]
"""(carry, observation, is_first, action_mask, key) -> (carry, action, extras): selects an action in one environment.
The action is in policy units; `extras` is any pytree to store with it, such as its log-probability."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Steps with leading axes (T, B), time first.

    Attributes:
      observation: the observation before the action, in the environment's dtype.
      action: in policy units: int32 for discrete actions, (..., d) for a box of d numbers, whatever its shape.
      reward: float32, 0 where `mask` is false.
      mask: true for valid steps. Of complete episodes these end with the last step, after which all arrays are 0.
      action_mask: valid actions (see `Environment`), or None if the environment has no action mask.
      extras: the extras that the policy returned with the action.
    """

    observation: Any
    action: Any
    reward: jax.Array
    mask: jax.Array
    action_mask: Any
    extras: Any

    @property
    def decisions(self) -> jax.Array:
        """The valid steps that count in a loss: not those with a single valid action and no reward, as in a prompt.

        If actions have several parts, every valid step counts.
        """
        if not isinstance(self.action_mask, jax.Array):
            return self.mask
        return self.mask & ((jnp.sum(self.action_mask, axis=-1) > 1) | (self.reward != 0))


def environment_keys(key: jax.Array, num_envs: int) -> jax.Array:
    """One PRNG key per environment, (num_envs,)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_envs, dtype=jnp.int32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stepped:
    """The transition of one step of one environment, and what the next step starts from."""

    transition: Trajectory
    state: Any
    observation: Any
    carry: Any
    terminated: jax.Array
    truncated: jax.Array

    @property
    def done(self) -> jax.Array:
        return self.terminated | self.truncated


def step_environment(
    env: Any, act: Act, state: Any, observation: Any, carry: Any, is_first: jax.Array, alive: jax.Array, key: jax.Array
) -> Stepped:
    """One action and one transition of one environment; where `alive` is false, the transition is set to 0."""
    action_key, env_key = jax.random.split(key)
    action_mask = env.action_mask(state) if has_action_mask(env) else None
    carry, action, extras = act(carry, observation, is_first, action_mask, action_key)
    after = env.step(env_key, state, to_env_action(env, action))
    masked = lambda tree: jax.tree.map(lambda x: jnp.where(alive, x, jnp.zeros_like(x)), tree)  # noqa: E731
    transition = Trajectory(
        observation=masked(observation), action=masked(action), reward=masked(after.reward), mask=alive,
        action_mask=masked(action_mask), extras=masked(extras),
    )  # fmt: skip
    return Stepped(transition, after.state, after.observation, carry, after.terminated, after.truncated)


def to_env_action(env: Any, action: Any) -> Any:
    """Converts an action from policy units to those of the environment."""

    def convert(space: Leaf, x: jax.Array) -> jax.Array:
        return space.from_unit(x.reshape(space.shape)) if isinstance(space, Box) else x

    return map_space(convert, env.action_space, action)


LARGEST = 1e12
"""Larger numbers from an environment count as not finite: the squares of observations and of discounted returns, which may be
1 / (1 - discount) times as large as rewards, would overflow in running statistics, for good."""


def all_finite(tree: Any, num_leading: int) -> jax.Array:
    """Whether all entries of observations or rewards are finite and below `LARGEST`: leaves (*leading, *shape) -> (*leading)."""

    def below(x: jax.Array) -> jax.Array:
        # float16 does not hold `LARGEST`.
        return jnp.abs(x.astype(jnp.promote_types(x.dtype, jnp.float32))) < LARGEST

    flags = [
        jnp.all(below(x), axis=tuple(range(num_leading, x.ndim)))
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.stack(flags), axis=0) if flags else jnp.bool_(True)
