"""HAEPO on complete episodes (arXiv 2508.18884), with weights over trajectories, as in the paper, or over prefixes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax import losses
from haepo_jax.algorithms.fields import (
    NOT_NEGATIVE,
    POSITIVE,
    UNIT_OPEN_LOW,
    HyperparameterError,
    Scheduled,
    check_function,
    leaf,
    static,
)
from haepo_jax.algorithms.state import Metrics
from haepo_jax.algorithms.trajectory import EpisodeBatch, TrajectoryAlgorithm
from haepo_jax.losses.numerics import masked_mean


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EpisodicHAEPO(TrajectoryAlgorithm):
    """HAEPO (arXiv 2508.18884) on groups of complete episodes, without a value function; includes the paper's form.

    Plackett-Luce weights over complete episodes; see `haepo_loss` and `haepo_prefix_loss`. By default each reward is
    credited to the actions before it (`credit="prefix"`), and the score is the log-likelihood ratio to the behaviour
    policy. The form of the paper is
    `EpisodicHAEPO(env, credit="trajectory", score="likelihood", normalize="standardize", temperature=1.0)`, on the
    command line `algo=haepo_paper`.

    Attributes:
      weight_function: (scores, mask, temperature) -> weights, a replacement for the softmax; see
        `haepo_jax.losses.weights`.

    Examples:
      >>> import haepo_jax as hx
      >>> algo = hx.EpisodicHAEPO("CartPole-v1", total_steps=500_000, learning_rate=3e-3)
      >>> state = algo.init(jax.random.key(0))
      >>> state, metrics = jax.jit(algo.train_step)(state)
    """

    learning_rate: Scheduled = leaf(7e-4, "learning rate of Adam", within=NOT_NEGATIVE, scheduled=True)
    entropy_coef: Scheduled = leaf(0.03, "weight of the entropy bonus", within=NOT_NEGATIVE, scheduled=True)
    credit: str = static(
        "prefix",
        str,
        "credit a reward to the actions before it (prefix), or to the whole trajectory",
        choices=("prefix", "trajectory"),
    )
    score: str = static(
        "log_ratio",
        str,
        "score in the softmax over trajectories",
        choices=("log_ratio", "likelihood", "mean_likelihood"),
    )
    temperature: Scheduled | str = leaf(
        3.0,
        "temperature of that softmax; 'auto' raises it where the weights would collapse",
        within=POSITIVE,
        scheduled=True,
        word="auto",
    )
    history_decay: float = leaf(
        0.99, "credit=prefix: per-step decay of past log-ratios in the score", within=UNIT_OPEN_LOW
    )
    normalize: str = static(
        "standardize",
        str,
        "credit=trajectory: how returns are normalised within a group",
        choices=("standardize", "center", "rank", "none"),
    )
    entropy: str = static("policy", str, "entropy bonus on the policy or on the weights", choices=("policy", "weights"))
    kl: str = static("policy", str, "KL penalty on the policy or on the weights", choices=("policy", "weights"))
    kl_coef: Scheduled = leaf(
        0.1, "weight of the KL penalty to the reference policy", within=NOT_NEGATIVE, scheduled=True
    )
    reference: str = static("previous", str, "reference policy of the KL penalty", choices=("previous", "initial"))
    weight_function: Any = dataclasses.field(default=None, kw_only=True, metadata={"static": True})

    def check(self) -> None:
        super().check()
        check_function("weight_function", self.weight_function)
        if self.credit == "prefix" and self.score != "log_ratio":
            raise HyperparameterError(
                f"score={self.score!r} requires credit=trajectory; credit=prefix requires score=log_ratio"
            )
        unused, other = ("normalize", "trajectory") if self.credit == "prefix" else ("history_decay", "prefix")
        value = getattr(self, unused)
        if isinstance(value, str | int | float) and value != getattr(type(self), unused):  # not an array or a tracer
            raise HyperparameterError(f"{unused}={value!r} requires credit={other}; remove {unused}=")

    def loss(self, params: Any, batch: EpisodeBatch) -> tuple[jax.Array, Metrics]:
        """The per-decision or the trajectory loss of a batch (T, G, K)."""
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
            "weight_function": self.weight_function,
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
            # Subtract the behaviour policy at every step: subtracting two long sums would lose precision.
            base, behaviour = steps.extras, jnp.zeros(mask.shape[1:], log_probs.dtype)
        else:
            base, behaviour = jnp.zeros_like(log_probs), None
        return losses.haepo_loss(
            total(log_probs - base, mask), jnp.sum(steps.reward, axis=0, where=mask),
            score=self.score, normalize=self.normalize, mask=jnp.any(mask, axis=0), lengths=jnp.sum(mask, axis=0),
            behaviour_log_likelihood=behaviour,
            reference_log_likelihood=None if reference_log_probs is None else total(reference_log_probs - base, mask),
            policy_entropy=masked_mean(entropy, mask), policy_kl=masked_mean(kl, mask), **shared,
        )  # fmt: skip
