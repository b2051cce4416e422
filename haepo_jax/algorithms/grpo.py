"""GRPO: Group Relative Policy Optimization (Shao et al. 2024, arXiv 2402.03300)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax import losses
from haepo_jax.algorithms.fields import NOT_NEGATIVE, POSITIVE, Scheduled, leaf, static
from haepo_jax.algorithms.state import Metrics
from haepo_jax.algorithms.trajectory import EpisodeBatch, TrajectoryAlgorithm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GRPO(TrajectoryAlgorithm):
    """Group Relative Policy Optimization (arXiv 2402.03300), with options for its later variants.

    The return, standardised within the group, is the advantage of every step; clipped ratios, k3 KL to the reference
    policy; see `grpo_loss`.
    """

    learning_rate: Scheduled = leaf(6e-4, "learning rate of Adam", within=NOT_NEGATIVE, scheduled=True)
    entropy_coef: Scheduled = leaf(0.003, "weight of the entropy bonus", within=NOT_NEGATIVE, scheduled=True)
    normalize: str = static(
        "standardize",
        str,
        "how returns become advantages (Dr. GRPO: center)",
        choices=("standardize", "center"),
    )
    average: str = static(
        "trajectory",
        str,
        "average over steps: per trajectory, over all steps of a group (DAPO), or sum / horizon (Dr. GRPO)",
        choices=("trajectory", "step", "constant"),
    )
    ratio: str = static(
        "step",
        str,
        "probability ratio per step, or per trajectory to the power 1 / length (GSPO)",
        choices=("step", "trajectory"),
    )
    clip_eps: Scheduled = leaf(0.2, "clip range of the probability ratio", within=POSITIVE, scheduled=True)
    clip_eps_high: float | None = leaf(
        None, "upper clip range of the probability ratio (DAPO: 0.28); null: clip_eps", within=POSITIVE, optional=True
    )
    kl_coef: Scheduled = leaf(
        0.02, "weight of the KL penalty to the reference policy", within=NOT_NEGATIVE, scheduled=True
    )
    reference: str = static("previous", str, "reference policy of the KL penalty", choices=("previous", "initial"))

    def loss(self, params: Any, batch: EpisodeBatch) -> tuple[jax.Array, Metrics]:
        steps, mask = batch.steps, batch.mask
        current = self.sequence_distribution(params, batch.observation, steps)
        return losses.grpo_loss(
            current.log_prob(steps.action), steps.extras, jnp.sum(steps.reward, axis=0, where=mask), mask,
            reference_log_probs=batch.reference.log_prob(steps.action), clip_eps=self.clip_eps, kl_coef=self.kl_coef,
            clip_eps_high=self.clip_eps_high, normalize=self.normalize, average=self.average, max_length=self.env.horizon,
            ratio=self.ratio,
            entropy_coef=self.entropy_coef, policy_entropy=current.entropy(),
        )  # fmt: skip
