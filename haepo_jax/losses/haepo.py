"""HAEPO: returns are weighted by the cumulative log-likelihood of their trajectories (arXiv 2508.18884)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from haepo_jax.losses._checks import Checks
from haepo_jax.losses.numerics import lowest, masked_mean, select
from haepo_jax.losses.returns import NORMALIZATIONS, normalize_returns
from haepo_jax.losses.weights import (
    REGULARIZERS,
    Temperature,
    WeightFunction,
    alignment,
    divergence,
    effective_fraction,
    relative_entropy,
    resolve_temperature,
    total,
    weigh,
)

SCORES = ("likelihood", "mean_likelihood", "log_ratio")


def haepo_loss(
    log_likelihood: ArrayLike,
    returns: ArrayLike,
    *,
    score: str = "likelihood",
    temperature: Temperature = 1.0,
    normalize: str = "standardize",
    entropy_coef: ArrayLike = 0.0,
    kl_coef: ArrayLike = 0.0,
    mask: ArrayLike | None = None,
    behaviour_log_likelihood: ArrayLike | None = None,
    reference_log_likelihood: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    entropy: str = "policy",
    kl: str = "policy",
    policy_entropy: ArrayLike = 0.0,
    policy_kl: ArrayLike = 0.0,
    weight_function: WeightFunction | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """HAEPO's loss over groups of whole trajectories (HAEPO, arXiv 2508.18884).

    Within each group, over its K valid members, with score s and normalised return R~:

        w = softmax_k(s / tau)      J = sum_k w[k] R~[k]      loss = -J - entropy_coef * H + kl_coef * KL

    The loss is the mean over the groups with a valid member. The gradient of J is
    (1/tau) sum_k w[k] (R~[k] - sum_j w[j] R~[j]) ds[k]: the softmax provides its own baseline, and the gradient
    vanishes when the weights collapse onto one trajectory. No gradient flows through tau, R~, the behaviour policy or
    the reference policy.

    Args:
      log_likelihood: (..., K), L = sum of the log-probabilities (nats) of a trajectory's actions; see
        ``trajectory_log_likelihood``.
      returns: (..., K), return of each trajectory; integers are cast.
      score: "likelihood", s = L, as in the paper; "mean_likelihood", s = L / lengths; "log_ratio", s = L - L_behaviour,
        which with tau = 1 is self-normalised importance sampling. For long trajectories pass ``log_likelihood`` = sum(l
        - l_behaviour) and ``behaviour_log_likelihood`` = 0: subtracting two long sums loses precision.
      temperature: tau > 0: a scalar, an array that broadcasts to the leading axes, or "auto"; see
        ``plackett_luce_weights``.
      weight_function: a replacement for the softmax; see ``weights.WeightFunction``. ``None``: the softmax.
      normalize: "none", "center", "standardize" or "rank"; see ``normalize_returns``.
      entropy_coef: scalar, weight of H in the loss.
      kl_coef: scalar, weight of KL in the loss.
      mask: (..., K), bool or 0/1: which members are valid; default all. Masked entries, even NaN, affect neither the
        value nor the gradient.
      behaviour_log_likelihood: (..., K), L under the behaviour policy; required by "log_ratio".
      reference_log_likelihood: (..., K), L under the frozen reference policy, for ``kl="weights"``; default
        ``behaviour_log_likelihood``.
      lengths: (..., K), number of valid steps; required by "mean_likelihood".
      entropy: "policy", H = ``policy_entropy``; "weights", H = -sum_k w log w / log K (0 for K = 1).
      kl: "policy", KL = ``policy_kl``; "weights", KL(w_ref || w), where w_ref uses the same score and temperature.
      policy_entropy: mean policy entropy over valid steps: a scalar, or an array that broadcasts to the leading axes.
      policy_kl: mean over valid steps of KL(reference || theta), exact or ``kl_k3``; shaped like ``policy_entropy``.

    Returns:
      The loss, a scalar in at least float32, and metrics, scalars with gradients stopped, averaged over the groups with
      a valid member: "loss"; "objective" (J); "entropy" (H); "kl" (KL); "ess", effective sample size of w as a fraction
      of K; "max_weight", the largest w; "alignment", Spearman's rank correlation of weight and return, 0 if undefined.
      All are 0 if no member is valid.

    Raises:
      TypeError: a log-likelihood is not floating point, or another array is not numeric.
      ValueError: shapes differ, an option is unknown or out of range, or an argument required by an option is missing.

    Examples:
      >>> import jax.numpy as jnp
      >>> from haepo_jax.losses import haepo_loss
      >>> log_likelihood = jnp.log(jnp.array([0.6, 0.3, 0.1]))
      >>> loss, metrics = haepo_loss(log_likelihood, jnp.array([1.0, 0.0, 0.0]), normalize="none")
      >>> print(round(float(loss), 3), round(float(metrics["ess"]), 3))  # the weights are 0.6, 0.3 and 0.1
      -0.6 0.725
    """
    check = Checks("haepo_loss")
    check.option("score", score, SCORES)
    check.option("normalize", normalize, NORMALIZATIONS)
    check.option("entropy", entropy, REGULARIZERS)
    check.option("kl", kl, REGULARIZERS)
    like = "the shape of log_likelihood"
    likelihood = check.floats("log_likelihood", log_likelihood, min_ndim=1)
    shape, groups = likelihood.shape, likelihood.shape[:-1]
    reward = check.floats("returns", returns, shape, like=like, integers=likelihood.dtype)
    valid = check.mask("mask", mask, shape, like=like)

    def constant(name: str, value: ArrayLike | None, integers: Any = None) -> jax.Array | None:
        return None if value is None else check.constant(name, value, valid, like=like, integers=integers)

    behaviour = constant("behaviour_log_likelihood", behaviour_log_likelihood)
    reference = constant("reference_log_likelihood", reference_log_likelihood)
    steps = constant("lengths", lengths, integers=likelihood.dtype)

    def scored(cumulative: jax.Array) -> jax.Array:
        if score == "likelihood":
            return cumulative
        if score == "mean_likelihood":
            if steps is None:
                raise ValueError("haepo_loss: score='mean_likelihood' needs lengths")
            return cumulative / jnp.maximum(steps, 1)
        if behaviour is None:
            raise ValueError("haepo_loss: score='log_ratio' needs behaviour_log_likelihood")
        return cumulative - behaviour

    scores = scored(select(valid, likelihood))
    tau = resolve_temperature(check, temperature, scores, valid, groups)
    weights, log_weights = weigh(weight_function, scores, valid, tau)
    normalized = normalize_returns(reward, normalize=normalize, mask=valid)
    # The weights sum to 1, so subtracting the lowest return and adding it back leaves J unchanged, but keeps the
    # rounding error of a large common return out of the gradient.
    floor = lowest(normalized, valid)
    objective = floor[..., 0] + jnp.sum(weights * select(valid, normalized - floor), axis=-1)

    if entropy == "weights":
        entropies = relative_entropy(weights, log_weights, valid)
    else:
        entropies = check.average("policy_entropy", policy_entropy, groups, scores.dtype)
    if kl == "weights":
        anchor = behaviour if reference is None else reference
        if anchor is None:
            raise ValueError("haepo_loss: kl='weights' needs reference_log_likelihood or behaviour_log_likelihood")
        divergences = divergence(*weigh(weight_function, scored(anchor), valid, tau), log_weights)
    else:
        divergences = check.average("policy_kl", policy_kl, groups, scores.dtype)

    group_valid = jnp.any(valid, axis=-1)
    terms = {
        "objective": masked_mean(objective, group_valid),
        "entropy": masked_mean(entropies, group_valid),
        "kl": masked_mean(divergences, group_valid),
    }
    spread = {
        "ess": masked_mean(effective_fraction(weights, valid), group_valid),
        "max_weight": masked_mean(jnp.max(weights, axis=-1), group_valid),
        "alignment": masked_mean(alignment(scores, select(valid, reward), valid), group_valid),
    }
    return total(check, terms, spread, entropy_coef, kl_coef)
