"""An algorithm that compiles in milliseconds and whose numbers are known, to test what runs around algorithms."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from haepo_jax.algorithms.state import TrainingStatus
from haepo_jax.counting import StepCount


class State(NamedTuple):
    key: jax.Array
    stride: jax.Array
    update: jax.Array
    env_steps: StepCount
    status: TrainingStatus


class Horizon(NamedTuple):
    """What the sizes of evaluations need to know of an environment."""

    horizon: int
    name: str = "counting"
    observation_space: Any = None
    action_space: Any = None
    reset: Any = None
    step: Any = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Counting:
    """An update takes `stride` valid steps in a run of seed 0, `stride + 1` in one of seed 1 and so on.

    The loss is the number of updates, the return of an episode the number of steps; no episode ends in the first
    update. With `start`, a run begins at that many steps. With `sick`, that seed diverges in its fifth update.
    """

    total_steps: int
    log_points: int = 5
    eval_episodes: int = 2
    stride: int = 10
    start: int = 0
    sick: tuple[int, ...] = ()
    env: Any = Horizon(1)
    on_nan: str = "stop"

    def init(self, key: jax.Array) -> State:
        seed = jax.random.key_data(key)[-1].astype(jnp.int32)
        return State(
            key,
            self.stride + seed,
            jnp.int32(0),
            StepCount.of(self.start),
            TrainingStatus(jnp.int32(0), jnp.int32(-1), jnp.int32(0), jnp.int32(0)),
        )

    def train_step(self, state: State) -> tuple[State, dict[str, jax.Array]]:
        seed = state.stride - self.stride
        if self.sick:
            sick = (state.update == 4) & jnp.isin(seed, jnp.array(self.sick))
            status = TrainingStatus(
                jnp.int32(0), jnp.where(sick, state.update, -1), jnp.where(sick, 3, 0), jnp.int32(0)
            )
            state = state._replace(status=status)
        moved = jnp.where(state.status.diverged, 0, 1)
        state = state._replace(update=state.update + moved, env_steps=state.env_steps + moved * state.stride)
        episodes = jnp.where(state.update > 1, 1.0, 0.0)
        metrics = {"loss": state.update.astype(jnp.float32), "episode_return": episodes, "episodes": episodes}
        return state, {**metrics, "ess": jnp.float32(0.5)}

    def advance(self, state: State, until: StepCount) -> tuple[State, dict[str, jax.Array]]:
        nothing = dict.fromkeys(("loss", "episode_return", "episodes", "ess"), jnp.float32(jnp.nan))

        def unfinished(loop: tuple[State, dict[str, jax.Array]]) -> jax.Array:
            return (loop[0].env_steps < until) & ~loop[0].status.diverged

        return jax.lax.while_loop(unfinished, lambda loop: self.train_step(loop[0]), (state, nothing))

    def evaluate(
        self, state: State, *, episodes: int = 128, greedy: bool = False, max_steps: int | None = None
    ) -> dict[str, jax.Array]:
        steps = state.env_steps.low.astype(jnp.float32) + 0.5 * greedy
        return {"return": jnp.full(episodes, steps), "length": jnp.full(episodes, 7)}

    def replace(self, **changes: Any) -> Counting:
        return dataclasses.replace(self, **changes)

    def progress(self, state: State, max_steps: int | None = None) -> dict[str, Any]:
        row = {"env_steps": state.env_steps, "update": state.update}
        if self.eval_episodes:
            row["eval_return"] = self.evaluate(state, episodes=self.eval_episodes)["return"].mean()
            row["eval_length"] = jnp.float32(7)
        return row
