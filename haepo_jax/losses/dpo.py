"""DPO: in every pair of trajectories of a group, the one with the higher return is preferred."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from haepo_jax.losses._checks import Checks
from haepo_jax.losses.numerics import masked_mean, rounding, select


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
    """Direct Preference Optimization on all pairs within each group (Rafailov 2023, arXiv 2305.18290, eq. 7).

    Every pair (i, j) of valid members with R[i] > R[j], by more than rounding, is one preference; ties are ignored:

        margin[i,j] = beta ((L[i] - L_ref[i]) - (L[j] - L_ref[j]))      J = mean over pairs of log sigmoid(margin)
        loss = -J - entropy_coef * H

    J is averaged over the groups with at least one pair; without any pair the whole loss, entropy bonus included, is 0.
    The partition function of the paper cancels only between trajectories with the same start state. This is not
    Discovered Policy Optimization, which other libraries call DPO.

    For a data set of preferences use groups of two: stack the chosen and the rejected log-likelihoods along the last
    axis, (N, 2), and pass returns of [1, 0].

    Args:
      log_likelihood: (..., K), L = sum of the log-probabilities (nats) of a trajectory's actions; leading axes are
        groups. For long trajectories pass ``sum(l - l_reference)`` and ``reference_log_likelihood`` = 0: subtracting
        two long sums loses precision.
      returns: (..., K), return of each trajectory; integers are cast.
      reference_log_likelihood: (..., K), L under the frozen reference policy; its gradient is stopped.
      beta: scalar > 0, strength of the implicit KL constraint to the reference.
      mask: (..., K), bool or 0/1: which members are valid; default all. Masked entries, even NaN, affect neither the
        value nor the gradient.
      entropy_coef: scalar, weight of the entropy bonus H, which is not part of the paper.
      policy_entropy: mean policy entropy over valid steps: a scalar, or an array that broadcasts to the leading axes.

    Returns:
      The loss, a scalar in at least float32, and metrics, scalars with gradients stopped: "loss"; "objective" (J);
      "accuracy", the fraction of pairs with a positive margin; "margin", its mean; "pairs", the number of pairs in all
      groups; "entropy" (H, over groups with a valid member).

    Raises:
      TypeError: a log-likelihood is not floating point, or another array is not numeric.
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
    valid = check.mask("mask", mask, shape, like=like)
    entropies = check.average("policy_entropy", policy_entropy, groups, likelihood.dtype)

    implicit = check.number("beta", beta, low=0, open_low=True) * (
        select(valid, likelihood) - jax.lax.stop_gradient(select(valid, reference))
    )
    margins = implicit[..., :, None] - implicit[..., None, :]
    better = rewards[..., :, None] - rewards[..., None, :] > rounding(rewards, valid)[..., None]
    preferred = valid[..., :, None] & valid[..., None, :] & better
    paired = jnp.any(preferred, axis=(-2, -1))

    def over_pairs(x: jax.Array) -> jax.Array:
        return masked_mean(masked_mean(x, preferred, axis=(-2, -1)), paired)

    objective = over_pairs(jax.nn.log_sigmoid(margins))
    entropy = masked_mean(entropies, jnp.any(valid, axis=-1))
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
