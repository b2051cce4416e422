"""An algorithm that compiles in milliseconds and whose numbers are known, to test what runs around algorithms."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from haepo_jax.counting import StepCount


class State(NamedTuple):
    key: jax.Array
    stride: jax.Array
    update: jax.Array
    env_steps: StepCount


@dataclasses.dataclass(frozen=True)
class Counting:
    """An update takes `stride` live steps in a run of seed 0, `stride + 1` in one of seed 1 and so on.

    The loss is the number of updates, the return of an episode the number of steps; no episode ends in the first
    update. With `start`, a run begins at that many steps.
    """

    total_steps: int
    log_points: int = 5
    eval_episodes: int = 2
    stride: int = 10
    start: int = 0

    def init(self, key: jax.Array) -> State:
        seed = jax.random.key_data(key)[-1].astype(jnp.int32)
        return State(key, self.stride + seed, jnp.int32(0), StepCount.of(self.start))

    def train_step(self, state: State) -> tuple[State, dict[str, jax.Array]]:
        state = state._replace(update=state.update + 1, env_steps=state.env_steps + state.stride)
        ended = jnp.where(state.update > 1, 1.0, jnp.nan)
        return state, {"loss": state.update.astype(jnp.float32), "episode_return": ended, "ess": jnp.float32(0.5)}

    def advance(self, state: State, until: StepCount) -> tuple[State, dict[str, jax.Array]]:
        nothing = dict.fromkeys(("loss", "episode_return", "ess"), jnp.float32(jnp.nan))
        return jax.lax.while_loop(
            lambda loop: loop[0].env_steps < until, lambda loop: self.train_step(loop[0]), (state, nothing)
        )

    def evaluate(self, state: State, *, episodes: int = 128, greedy: bool = False) -> dict[str, jax.Array]:
        steps = state.env_steps.low.astype(jnp.float32) + 0.5 * greedy
        return {"return": jnp.full(episodes, steps), "length": jnp.full(episodes, 7)}

    def progress(self, state: State) -> dict[str, Any]:
        row = {"env_steps": state.env_steps, "update": state.update}
        if self.eval_episodes:
            row["eval_return"] = self.evaluate(state, episodes=self.eval_episodes)["return"].mean()
        return row
