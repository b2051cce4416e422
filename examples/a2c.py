"""A2C (Mnih et al. 2016, arXiv 1602.01783) with synchronous environments, as a custom algorithm in one file.

python -m haepo_jax.train env=CartPole-v1 algo=examples.a2c:A2C algo.learning_rate=1e-3
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

import haepo_jax as hx
from haepo_jax.algorithms.fields import COUNT, NOT_NEGATIVE, UNIT, Scheduled, leaf, static
from haepo_jax.algorithms.segments import Batch, SegmentAlgorithm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class A2C(SegmentAlgorithm):
    """Advantage actor-critic (arXiv 1602.01783): one gradient step on every segment."""

    num_envs: int = static(32, int, "number of parallel environments", within=COUNT)
    num_steps: int = static(8, int, "steps per environment and update", within=COUNT)
    num_epochs: int = static(1, int, "epochs over the segment in each update", within=COUNT)
    gae_lambda: float = leaf(1.0, "1: n-step returns, as published", within=UNIT)
    learning_rate: Scheduled = leaf(2e-3, "learning rate of Adam", within=NOT_NEGATIVE, scheduled=True)

    def loss(self, params: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        policy, values = self.outputs(params, batch.observation, batch.is_first, batch.action_mask, batch.carry)
        objective = jnp.mean(policy.log_prob(batch.action) * batch.advantage, where=batch.mask)
        entropy = jnp.mean(policy.entropy(), where=batch.mask)
        value_loss = jnp.mean((values - batch.value_target) ** 2, where=batch.mask) / 2
        loss = self.value_coef * value_loss - objective - self.entropy_coef * entropy
        return loss, {"loss": loss, "value_loss": value_loss, "entropy": entropy}


if __name__ == "__main__":
    hx.train(A2C("CartPole-v1", total_steps=200_000))
