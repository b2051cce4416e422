"""GRPO: Group Relative Policy Optimization (Shao et al. 2024, arXiv 2402.03300)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax import losses
from haepo_jax.algorithms import hyperparameters
from haepo_jax.algorithms.base import Metrics
from haepo_jax.algorithms.trajectory import Batch, TrajectoryAlgorithm
from haepo_jax.losses.numerics import masked_mean


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GRPO(hyperparameters.GRPO, TrajectoryAlgorithm):
    """Group-standardised returns as every step's advantage, clipped ratios, k3 KL to the reference; see `grpo_loss`."""

    def loss(self, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        steps, mask = batch.steps, batch.mask
        current = self.sequence_distribution(params, batch.observation, steps)
        return losses.grpo_loss(
            current.log_prob(steps.action), steps.extras, jnp.sum(steps.reward, axis=0, where=mask), mask,
            reference_log_probs=batch.reference.log_prob(steps.action), clip_eps=self.clip_eps, kl_coef=self.kl_coef,
            clip_eps_high=self.clip_eps_high, normalize=self.normalize, average=self.average, max_length=self.env.horizon,
            ratio=self.ratio,
            entropy_coef=self.entropy_coef, policy_entropy=masked_mean(current.entropy(), mask),
        )  # fmt: skip
