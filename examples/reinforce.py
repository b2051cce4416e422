"""REINFORCE (Williams 1992) with the batch's mean return as baseline, as a custom algorithm.

`TrajectoryAlgorithm` provides rollouts, optimiser, schedules, evaluation and vmapped seeds. The subclass only adds the
loss on a batch of complete episodes.

    python examples/reinforce.py
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.algorithms.fields import COUNT, static
from haepo_jax.algorithms.state import Metrics
from haepo_jax.algorithms.trajectory import EpisodeBatch, TrajectoryAlgorithm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class REINFORCE(TrajectoryAlgorithm):
    """Weights the log-probability of every action by its episode's return minus the mean return of the batch."""

    num_envs: int = static(32, int, "number of parallel environments", within=COUNT)
    # The gradient is on-policy, so each batch is used for one step.
    num_epochs: int = static(1, int, "epochs over the batch in each update", within=COUNT)

    def loss(self, params: Any, batch: EpisodeBatch) -> tuple[jax.Array, Metrics]:
        """The surrogate loss with the gradient of REINFORCE; all arrays in `batch.steps` are (T, groups, members)."""
        steps, mask = batch.steps, batch.steps.mask
        policy = self.sequence_distribution(params, batch.observation, steps)

        returns = jnp.sum(steps.reward, axis=0)
        valid = jnp.any(mask, axis=0)
        advantage = jnp.where(valid, returns - jnp.mean(returns, where=valid), 0.0)

        objective = jnp.mean(policy.log_prob(steps.action) * advantage, where=mask)
        entropy = jnp.mean(policy.entropy(), where=mask)
        entropy_coef: Any = self.entropy_coef  # a number, because schedules are evaluated before each update
        loss = -objective - entropy_coef * entropy
        return loss, {"loss": loss, "entropy": entropy}


def main() -> None:
    algo = REINFORCE("CartPole-v1", total_steps=500_000, learning_rate=1e-2, log_points=10)
    seeds = jax.vmap(jax.random.key)(jnp.arange(4))
    _, metrics = jax.jit(jax.vmap(algo.train))(seeds)
    for steps, returns in zip(metrics["env_steps"].to_int().T, metrics["eval_return"].T, strict=True):
        print(f"{int(steps.mean()):>8,} steps: return per seed", *(f"{value:6.1f}" for value in returns))


if __name__ == "__main__":
    main()
