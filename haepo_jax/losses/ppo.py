"""PPO: the clipped surrogate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from haepo_jax.losses._checks import Checks
from haepo_jax.losses.numerics import (
    bounded_exp,
    centre,
    clipped_surrogate,
    divide,
    k3,
    masked_mean,
    masked_means,
    select,
    standardize_all,
)


def ppo_loss(
    log_probs: ArrayLike,
    behaviour_log_probs: ArrayLike,
    advantages: ArrayLike,
    *,
    values: ArrayLike,
    value_targets: ArrayLike,
    behaviour_values: ArrayLike | None = None,
    clip_eps: ArrayLike = 0.2,
    clip_around_log_probs: ArrayLike | None = None,
    value_coef: ArrayLike = 0.5,
    value_clip_eps: ArrayLike | None = None,
    entropy_coef: ArrayLike = 0.0,
    kl_coef: ArrayLike = 0.0,
    policy_entropy: ArrayLike = 0.0,
    policy_kl: ArrayLike = 0.0,
    normalize_advantages: bool = True,
    min_advantage_std: ArrayLike = 0.0,
    mask: ArrayLike | None = None,
    value_mask: ArrayLike | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """PPO's loss on a minibatch of steps (Schulman 2017, arXiv 1707.06347, eq. 7 to 9).

        J = mean min(rho A, clip(rho, 1 - eps, 1 + eps) A), rho = exp(l - l_behaviour)
        loss = -J + value_coef * mean (v - target)^2 / 2 - entropy_coef * H + kl_coef * KL

    With ``clip_around_log_probs``, l', the clip range is rho' - eps to rho' + eps with rho' = exp(l' - l_behaviour), as
    in GePPO, which reuses samples from earlier policies (Queeney 2021, arXiv 2111.00072, eq. 8).

    Means are over valid steps, in any order. Beyond log rho = 20 the ratio is replaced by its tangent, so that value
    and gradient stay finite.

    Args:
      log_probs: (...), log-probability (nats) of each action under the policy being optimised; any shape.
      behaviour_log_probs: (...), the same under the behaviour policy; its gradient is stopped.
      advantages: (...), gradient stopped; see ``generalized_advantage_estimation``.
      values: (...), value estimates.
      value_targets: (...), regression targets of ``values``; gradient stopped.
      behaviour_values: (...), value estimates from when the batch was collected; required by ``value_clip_eps``.
      clip_eps: scalar eps >= 0.
      clip_around_log_probs: (...), log-probability of each action under the policy that the clip range is centred on,
        such as the policy before the update; gradient stopped. ``None``: the behaviour policy.
      value_coef: scalar, weight of the value loss.
      value_clip_eps: scalar > 0; clips the change of the values from ``behaviour_values``, and the value loss is the
        larger of the clipped and the unclipped one. ``None``: no clipping.
      entropy_coef: scalar, weight of H.
      kl_coef: scalar, weight of KL, the penalty of eq. 8.
      policy_entropy: policy entropy: a scalar (the mean over valid steps), or (...), averaged over valid steps.
      policy_kl: KL(reference || theta), shaped like ``policy_entropy``; used only by ``kl_coef``.
      normalize_advantages: whether to standardise the advantages over the valid steps of this minibatch (population std
        + 1e-8).
      min_advantage_std: scalar >= 0; if the standard deviation is smaller, they are divided by this instead.
      mask: (...), bool or 0/1: which steps are valid; default all.
      value_mask: (...), bool or 0/1: which steps count in the value loss and "explained_variance"; default ``mask``.

    Returns:
      The loss, a scalar in at least float32, and metrics, scalars with gradients stopped: "loss"; "objective" (J);
      "value_loss"; "entropy" (H); "kl", the k3 estimate of the KL from the policy that the clip range is centred on (by
      default the behaviour policy) to theta; "clip_fraction", the fraction of ratios outside the clip range;
      "explained_variance", 1 - Var(target - v) / Var(target), 0 if all targets are equal.

    Raises:
      TypeError: log-probabilities or values are not floating point, or another array is not numeric.
      ValueError: shapes differ, a number is out of range, or ``value_clip_eps`` is given without ``behaviour_values``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from haepo_jax.losses import ppo_loss
      >>> loss, metrics = ppo_loss(
      ...     jnp.log(jnp.array([0.9, 0.5])),
      ...     jnp.log(jnp.array([0.6, 0.5])),
      ...     jnp.array([1.0, -1.0]),
      ...     values=jnp.array([0.0, 2.0]),
      ...     value_targets=jnp.array([0.0, 0.0]),
      ... )
      >>> print(round(float(metrics["objective"]), 3))  # (1.2 - 1) / 2: the ratio 1.5 is clipped to 1.2
      0.1
      >>> print(round(float(metrics["value_loss"]), 3), round(float(loss), 3))
      1.0 0.4
    """
    check = Checks("ppo_loss")
    like = "the shape of log_probs"
    current = check.floats("log_probs", log_probs)
    shape = current.shape
    valid = check.mask("mask", mask, shape, like=like)
    current = select(valid, current)

    behaviour = check.constant("behaviour_log_probs", behaviour_log_probs, valid, like=like)
    advantage = check.constant("advantages", advantages, valid, like=like, integers=current.dtype)
    fitted = valid if value_mask is None else check.mask("value_mask", value_mask, shape, like=like)
    value = select(fitted, check.floats("values", values, shape, like=like))
    target = check.constant("value_targets", value_targets, fitted, like=like, integers=current.dtype)
    if normalize_advantages:
        advantage = standardize_all(advantage, valid, check.number("min_advantage_std", min_advantage_std, low=0))

    eps, around = check.number("clip_eps", clip_eps, low=0), behaviour
    if clip_around_log_probs is None:
        surrogate, clipped = clipped_surrogate(current - behaviour, advantage, eps)
    else:
        around = check.constant("clip_around_log_probs", clip_around_log_probs, valid, like=like)
        ratio = bounded_exp(around - behaviour)
        surrogate, clipped = clipped_surrogate(current - behaviour, advantage, eps, around=ratio)
    squares = (value - target) ** 2
    if value_clip_eps is not None:
        if behaviour_values is None:
            raise ValueError("ppo_loss: value_clip_eps needs behaviour_values")
        limit = check.number("value_clip_eps", value_clip_eps, low=0, open_low=True)
        before = check.constant("behaviour_values", behaviour_values, fitted, like=like)
        near = before + jnp.clip(value - before, -limit, limit)
        squares = jnp.maximum(squares, (near - target) ** 2)
    averages = (("policy_entropy", policy_entropy), ("policy_kl", policy_kl))
    entropies, divergences = (check.average(*one, shape, current.dtype, whole=True, like=like) for one in averages)

    objective, value_loss, entropy, divergence, kl, clip_fraction = masked_means(
        valid, surrogate, squares / 2, entropies, divergences, k3(current - around), clipped
    )
    if value_mask is not None:
        value_loss = masked_mean(squares / 2, fitted)
    loss = check.number("value_coef", value_coef) * value_loss - objective
    loss = loss - check.number("entropy_coef", entropy_coef) * entropy + check.number("kl_coef", kl_coef) * divergence

    total = _variance(target, fitted)
    explained = divide(total - _variance(target - value, fitted), total)
    metrics = {
        "loss": loss,
        "objective": objective,
        "value_loss": value_loss,
        "entropy": entropy,
        "kl": kl,
        "clip_fraction": clip_fraction,
        "explained_variance": explained,
    }
    return loss, jax.lax.stop_gradient(metrics)


def _variance(x: jax.Array, valid: jax.Array) -> jax.Array:
    flat = valid.reshape(-1)
    return masked_mean(centre(x.reshape(-1), flat) ** 2, flat)
