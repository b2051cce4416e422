"""DPO: Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290), online, on pairs of episodes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax import losses
from haepo_jax.algorithms.fields import COUNT, NOT_NEGATIVE, POSITIVE, Scheduled, leaf, static
from haepo_jax.algorithms.state import Metrics, TrainState
from haepo_jax.algorithms.trajectory import EpisodeBatch, TrajectoryAlgorithm
from haepo_jax.losses.numerics import masked_mean


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DPO(TrajectoryAlgorithm):
    """Direct Preference Optimization (arXiv 2305.18290).

    In every pair of episodes of a group, the one with the higher return is preferred; see `dpo_loss`. Every
    `reference_interval` updates the reference policy is set to the current policy.
    """

    learning_rate: Scheduled = leaf(2e-3, "learning rate of Adam", within=NOT_NEGATIVE, scheduled=True)
    beta: Scheduled = leaf(2.0, "scale of the log-ratios in the preference margin", within=POSITIVE, scheduled=True)
    reference_interval: int = static(
        1, int, "updates between resets of the reference policy to the current policy", within=COUNT
    )

    def loss(self, params: Any, batch: EpisodeBatch) -> tuple[jax.Array, Metrics]:
        steps, mask = batch.steps, batch.mask
        current = self.sequence_distribution(params, batch.observation, steps)
        # Subtract the reference at every step: subtracting two long sums would lose precision.
        log_ratio = current.log_prob(steps.action) - batch.reference.log_prob(steps.action)
        return losses.dpo_loss(
            losses.trajectory_log_likelihood(log_ratio, mask), jnp.sum(steps.reward, axis=0, where=mask),
            reference_log_likelihood=jnp.zeros(mask.shape[1:], log_ratio.dtype), beta=self.beta, mask=jnp.any(mask, axis=0),
            entropy_coef=self.entropy_coef, policy_entropy=masked_mean(current.entropy(), mask),
        )  # fmt: skip

    def init_reference(self, params: Any) -> Any:
        return jax.tree.map(jnp.copy, params)

    def next_reference(self, state: TrainState, params: Any) -> Any:
        move = (state.update + 1) % self.reference_interval == 0
        return jax.tree.map(lambda new, old: jnp.where(move, new, old), params, state.reference)
