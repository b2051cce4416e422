"""An algorithm that compiles in a moment and whose results are known, to test what a sweep does around algorithms.

Parameters take a random walk whose steps are as large as `learning_rate`; the return of an episode is best at
learning_rate = 0.01, whatever the walk. A seed's updates differ in how many steps they take. Beyond 1, it diverges.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.algorithms.state import TrainingStatus, TrainState
from haepo_jax.counting import StepCount


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Toy:
    learning_rate: Any = 0.01
    entropy_coef: Any = 0.0
    env: Any = 0.0
    total_steps: int = dataclasses.field(default=100, metadata={"static": True})
    stride: int = dataclasses.field(default=5, metadata={"static": True})

    def init(self, key: jax.Array) -> TrainState:
        params = jax.random.normal(key, (2,))
        status = dataclasses.replace(
            TrainingStatus(*(jnp.int32(0) for _ in dataclasses.fields(TrainingStatus))), diverged_at=jnp.int32(-1)
        )
        return TrainState(params, jnp.zeros(2), None, None, None, key, jnp.int32(0), StepCount.of(0), status)

    def train_step(self, state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        step_key = jax.random.fold_in(state.key, state.update)
        params = state.params + self.learning_rate * jax.random.normal(step_key, (2,))
        steps = self.stride + jax.random.randint(step_key, (), 0, 4)
        sick = (self.learning_rate > 1) & (state.update >= 2)
        status = dataclasses.replace(state.status, diverged_at=jnp.where(sick, state.update, state.status.diverged_at))
        new = dataclasses.replace(state, params=params, update=state.update + 1, env_steps=state.env_steps + steps)
        new = jax.tree.map(lambda x, old: jnp.where(sick, old, x), new, state)
        metrics = {"episode_return": jnp.float32(state.update + 1), "episode_length": steps.astype(jnp.float32)}
        return dataclasses.replace(new, status=status), metrics

    def evaluate(self, state: TrainState, *, episodes: int, max_steps: int | None = None) -> dict[str, jax.Array]:
        value = -jnp.abs(jnp.log10(self.learning_rate) + 2) + 1e-6 * jnp.sum(state.params)
        return {"return": jnp.full(episodes, value)}


def alone(algorithm: Toy, seed: int, until: int) -> TrainState:
    """The same run by itself."""
    state = _init(algorithm, jax.random.key(seed))
    while int(state.env_steps.to_int()) < until and int(state.status.diverged_at) < 0:
        state = _step(algorithm, state)[0]
    return state


_init = jax.jit(Toy.init)
_step = jax.jit(Toy.train_step)
