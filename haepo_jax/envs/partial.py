"""Partially observed environments, which require memory."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.envs.base import Array, Box, Environment, Replaceable, TimeStep, static_field


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PartiallyObserved(Replaceable):
    """Wraps an environment with vector observations and shows only the entries `visible`."""

    env: Environment
    visible: tuple[int, ...] = static_field()
    name: str = static_field()

    @property
    def horizon(self) -> int:
        return self.env.horizon

    @property
    def observation_space(self) -> Box:
        space: Any = self.env.observation_space
        low, high = (
            tuple(np.broadcast_to(np.asarray(bound), space.shape)[list(self.visible)].tolist())
            for bound in (space.low, space.high)
        )
        return Box(low, high, (len(self.visible),), space.dtype)

    @property
    def action_space(self) -> Any:
        return self.env.action_space

    def reset(self, key: Array) -> tuple[Any, Array]:
        state, observation = self.env.reset(key)
        return state, observation[jnp.array(self.visible)]

    def step(self, key: Array, state: Any, action: Array) -> TimeStep:
        after = self.env.step(key, state, action)
        return after._replace(observation=after.observation[jnp.array(self.visible)])


def make_hidden_cartpole(**kwargs: Any) -> PartiallyObserved:
    """CartPole-v1 without velocities; the observation, (2,), has the positions of cart and pole.

    Args:
        **kwargs: settings of CartPole-v1.
    """
    from haepo_jax.envs.gymnax import make_gymnax

    return PartiallyObserved(make_gymnax("CartPole-v1", **kwargs), (0, 2), "haepo/hidden_cartpole")
