"""HAEPO on complete episodes (arXiv 2508.18884): the paper's trajectory weights, and the same at every prefix."""

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
class EpisodicHAEPO(hyperparameters.EpisodicHAEPO, TrajectoryAlgorithm):
    """Plackett-Luce weights over complete episodes; see `haepo_loss` and `haepo_prefix_loss`. It needs no value function.

    The defaults credit each reward to the decisions before it (`credit="prefix"`) and weigh by the likelihood ratio to
    the behaviour policy. The paper's literal form is
    `EpisodicHAEPO(env, credit="trajectory", score="likelihood", normalize="standardize")`, on the command line
    `algo=haepo_paper`.

    Examples:
      >>> import haepo_jax as hx
      >>> algo = hx.EpisodicHAEPO("CartPole-v1", total_steps=500_000, learning_rate=3e-3)
      >>> state = algo.init(jax.random.key(0))
      >>> state, metrics = jax.jit(algo.train_step)(state)
    """

    def loss(self, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        """The per-decision loss, or the trajectory loss, of a batch (T, G, K)."""
        steps, mask = batch.steps, batch.mask
        current = self.sequence_distribution(params, batch.observation, steps)
        log_probs = current.log_prob(steps.action)
        entropy = current.entropy()
        kl = batch.reference.kl_to(current)
        shared: dict[str, Any] = {
            "temperature": self.temperature,
            "entropy_coef": self.entropy_coef,
            "kl_coef": self.kl_coef,
            "entropy": self.entropy,
            "kl": self.kl,
        }
        reference_log_probs = (
            jax.lax.stop_gradient(batch.reference.log_prob(steps.action)) if self.kl == "weights" else None
        )
        if self.credit == "prefix":
            return losses.haepo_prefix_loss(
                log_probs, steps.extras, steps.reward, mask,
                history_decay=self.history_decay, policy_entropy=entropy, policy_kl=kl,
                reference_log_probs=reference_log_probs, **shared,
            )  # fmt: skip

        total = losses.trajectory_log_likelihood
        if self.score == "log_ratio":
            # Relative to the behaviour policy from the first step on: two long sums subtracted would lose digits.
            base, behaviour = steps.extras, jnp.zeros(mask.shape[1:])
        else:
            base, behaviour = jnp.zeros_like(log_probs), None
        return losses.haepo_loss(
            total(log_probs - base, mask), jnp.sum(steps.reward, axis=0, where=mask),
            score=self.score, normalize=self.normalize, mask=jnp.any(mask, axis=0), lengths=jnp.sum(mask, axis=0),
            behaviour_log_likelihood=behaviour,
            reference_log_likelihood=None if reference_log_probs is None else total(reference_log_probs - base, mask),
            policy_entropy=masked_mean(entropy, mask), policy_kl=masked_mean(kl, mask), **shared,
        )  # fmt: skip
