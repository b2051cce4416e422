"""DPO: trajectories of one group compared in pairs, the higher return preferred."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from haepo_jax.losses._checks import Checks
from haepo_jax.losses.numerics import masked_mean, select


def dpo_loss(
    log_likelihood: ArrayLike,
    returns: ArrayLike,
    *,
    reference_log_likelihood: ArrayLike,
    beta: ArrayLike = 0.1,
    mask: ArrayLike | None = None,
    entropy_coef: ArrayLike = 0.0,
    policy_entropy: ArrayLike = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Direct Preference Optimization on the pairs inside each group (Rafailov 2023, arXiv 2305.18290, eq. 7).

    Every pair (i, j) of valid members with R[i] > R[j] is one preference; ties make none:

        margin[i,j] = beta ((L[i] - L_ref[i]) - (L[j] - L_ref[j]))      J = mean over pairs of log sigmoid(margin)
        loss = -J - entropy_coef * H

    averaged over the groups that have a pair; without any pair the loss is 0, its entropy bonus included. The paper's
    partition function cancels only between trajectories that share their start. Not Discovered Policy Optimization,
    which other libraries call DPO.

    Given preferences are groups of two: stack the chosen and the rejected log-likelihoods along the last axis, (N, 2), and
    pass returns of [1, 0].

    Args:
      log_likelihood: (..., K), L = sum of the log-probabilities (nats) of a trajectory's actions, leading axes are
        groups. For long trajectories pass ``sum(l - l_reference)`` and ``reference_log_likelihood`` = 0: subtracting
        two long sums loses digits.
      returns: (..., K), the return of each trajectory; integers are cast.
      reference_log_likelihood: (..., K), L under the frozen reference; a constant.
      beta: scalar > 0: how strongly the reference holds.
      mask: (..., K), bool or 0/1: which members are valid; default all. What is masked changes neither value nor
        gradient, NaN included.
      entropy_coef: scalar, weight of H, which the paper does not have.
      policy_entropy: the mean over valid steps of the policy's entropy: a scalar, or an array that broadcasts to the
        leading axes.

    Returns:
      The loss, a scalar in at least float32, and metrics, scalars without gradient: "loss"; "objective" (J);
      "accuracy", the share of pairs with a margin above 0; "margin", its mean; "pairs", the number of pairs in all
      groups; "entropy" (H, over groups that have a valid member).

    Raises:
      TypeError: a log-likelihood is not floating point, or another array not a real number.
      ValueError: shapes differ, or a number is out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from haepo_jax.losses import dpo_loss
      >>> likelihood = jnp.array([-1.0, -3.0])
      >>> reference = jnp.array([-2.0, -2.0])
      >>> loss, metrics = dpo_loss(likelihood, jnp.array([1, 0]), reference_log_likelihood=reference, beta=0.5)
      >>> print(round(float(loss), 4), float(metrics["margin"]))  # -log sigmoid(0.5 * (1 - -1))
      0.3133 1.0
    """
    check = Checks("dpo_loss")
    like = "the shape of log_likelihood"
    likelihood = check.floats("log_likelihood", log_likelihood, min_ndim=1)
    shape, groups = likelihood.shape, likelihood.shape[:-1]
    rewards = check.floats("returns", returns, shape, like=like, integers=likelihood.dtype)
    reference = check.floats("reference_log_likelihood", reference_log_likelihood, shape, like=like)
    live = check.mask("mask", mask, shape, like=like)
    entropies = check.average("policy_entropy", policy_entropy, groups, likelihood.dtype)

    implicit = check.number("beta", beta, low=0, open_low=True) * (
        select(live, likelihood) - jax.lax.stop_gradient(select(live, reference))
    )
    margins = implicit[..., :, None] - implicit[..., None, :]
    preferred = live[..., :, None] & live[..., None, :] & (rewards[..., :, None] > rewards[..., None, :])
    paired = jnp.any(preferred, axis=(-2, -1))

    def over_pairs(x: jax.Array) -> jax.Array:
        return masked_mean(masked_mean(x, preferred, axis=(-2, -1)), paired)

    objective = over_pairs(jax.nn.log_sigmoid(margins))
    entropy = masked_mean(entropies, jnp.any(live, axis=-1))
    bonus = check.number("entropy_coef", entropy_coef) * select(jnp.any(paired), entropy)
    loss = -objective - bonus
    metrics = {
        "loss": loss,
        "objective": objective,
        "accuracy": over_pairs((margins > 0).astype(loss.dtype)),
        "margin": over_pairs(margins),
        "pairs": jnp.sum(preferred, dtype=loss.dtype),
        "entropy": entropy,
    }
    return loss, jax.lax.stop_gradient(metrics)
