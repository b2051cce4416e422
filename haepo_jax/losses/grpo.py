"""GRPO: the return, standardised within its group, is the advantage of every step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from haepo_jax.losses._checks import Checks
from haepo_jax.losses.numerics import clipped_surrogate, k3, masked_mean, select
from haepo_jax.losses.returns import normalize_returns


def grpo_loss(
    log_probs: ArrayLike,
    behaviour_log_probs: ArrayLike,
    returns: ArrayLike,
    mask: ArrayLike,
    *,
    reference_log_probs: ArrayLike | None = None,
    normalize: str = "standardize",
    average: str = "trajectory",
    max_length: ArrayLike | None = None,
    ratio: str = "step",
    clip_eps: ArrayLike = 0.2,
    clip_eps_high: ArrayLike | None = None,
    kl_coef: ArrayLike = 0.04,
    entropy_coef: ArrayLike = 0.0,
    policy_entropy: ArrayLike = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """GRPO's loss over groups of whole trajectories (Shao 2024, arXiv 2402.03300, eq. 3 and 4).

    Within each group, over its K valid members (those with at least one valid step) of lengths n:

        A[k] = (R[k] - mean R) / (std R + 1e-8)      rho[t,k] = exp(l[t,k] - l_behaviour[t,k])
        J = (1/K) sum_k (1/n[k]) sum_t min(rho A, clip(rho, 1 - eps, 1 + eps) A)
        KL = (1/K) sum_k (1/n[k]) sum_t exp(-d) - 1 + d,  d = l - l_reference
        loss = -J + kl_coef * KL - entropy_coef * H

    The loss is the mean over the groups with a valid member. Beyond an exponent of 20 both exponentials are replaced by
    their tangents, so that value and gradient stay finite.

    Options give the later variants:

    - Dr. GRPO (Liu 2025, arXiv 2503.20783): ``normalize="center"``, A = R - mean R, and ``average="constant"``, 1 /
      max_length instead of 1/n, which removes the bias towards easy groups and short wrong answers.
    - DAPO (Yu 2025, arXiv 2503.14476): ``clip_eps_high`` above ``clip_eps``, and ``average="step"``, J = sum_k sum_t /
      sum_k n[k]. Its dynamic sampling is not implemented: groups of returns that are equal up to rounding give no gradient.
    - GSPO (Zheng 2025, arXiv 2507.18071): ``ratio="trajectory"``, rho[k] = exp((1/n[k]) sum_t (l - l_behaviour)) at
      every step. HAEPO (``haepo_loss``) is closely related: if all n are equal and tau = n, its weights with the score
      ``log_ratio`` are these ratios divided by their sum over the group; the softmax bounds them where GSPO clips.

    Args:
      log_probs: (T, ..., K), log-probability (nats) of each action under the policy being optimised; time first, then
        groups, then members.
      behaviour_log_probs: (T, ..., K), the same under the behaviour policy; its gradient is stopped.
      returns: (..., K), return of each trajectory; integers are cast; the gradient is stopped.
      mask: (T, ..., K), bool or 0/1: valid steps, up to and including a trajectory's last. Masked entries, even NaN,
        affect neither the value nor the gradient.
      reference_log_probs: (T, ..., K), the same under the frozen reference policy; ``None``: no KL term.
      normalize: how returns become advantages: "standardize" or "center".
      average: how J and KL are averaged over steps: "trajectory", "step" or "constant", as above.
      max_length: scalar > 0, for ``average="constant"``; default T.
      ratio: "step" or "trajectory".
      clip_eps: scalar eps >= 0.
      clip_eps_high: scalar >= 0; the ratio is clipped to [1 - ``clip_eps``, 1 + ``clip_eps_high``]; default
        ``clip_eps``.
      kl_coef: scalar, weight of KL (beta in the paper).
      entropy_coef: scalar, weight of the entropy bonus H, which is not part of the paper.
      policy_entropy: policy entropy: a scalar (the mean over valid steps), or (T, ..., K), averaged over valid steps.

    Returns:
      The loss, a scalar in at least float32, and metrics, scalars with gradients stopped: "loss"; "objective" (J);
      "entropy" (H); "kl" (KL); "clip_fraction", the fraction of ratios outside the clip range.

    Raises:
      TypeError: log-probabilities are not floating point, or another array is not numeric.
      ValueError: shapes do not match, an option is unknown or a number is out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from haepo_jax.losses import grpo_loss
      >>> behaviour = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5]]))  # two steps of two trajectories
      >>> current = jnp.log(jnp.array([[0.55, 0.5], [0.8, 0.5]]))
      >>> loss, metrics = grpo_loss(current, behaviour, jnp.array([1.0, 0.0]), jnp.ones((2, 2)))
      >>> print(round(float(loss), 3))  # -((1.1 + 1.2) / 2 - 1) / 2: the ratio 1.6 is clipped to 1.2
      -0.075
    """
    check = Checks("grpo_loss")
    check.option("normalize", normalize, ("standardize", "center"))
    check.option("average", average, ("trajectory", "step", "constant"))
    check.option("ratio", ratio, ("step", "trajectory"))
    like = "the shape of log_probs"
    current = check.floats("log_probs", log_probs, min_ndim=2)
    shape = current.shape
    valid = check.mask("mask", mask, shape, like=like)
    current = select(valid, current)

    behaviour = check.constant("behaviour_log_probs", behaviour_log_probs, valid, like=like)
    rewards = check.floats(
        "returns",
        returns,
        shape[1:],
        like="the shape of log_probs without time",
        integers=current.dtype,
    )
    members = jnp.any(valid, axis=0)
    group_valid = jnp.any(members, axis=-1)
    advantages = jnp.broadcast_to(normalize_returns(rewards, normalize=normalize, mask=members), shape)
    most = check.number("max_length", shape[0] if max_length is None else max_length, low=0, open_low=True)

    def over_group(x: jax.Array) -> jax.Array:
        if average == "step":
            axes = (0, x.ndim - 1)
            return masked_mean(masked_mean(x, valid, axis=axes), group_valid)
        if average == "constant":
            return masked_mean(masked_mean(jnp.sum(select(valid, x), axis=0) / most, members, axis=-1), group_valid)
        return masked_mean(masked_mean(masked_mean(x, valid, axis=0), members, axis=-1), group_valid)

    log_ratio = current - behaviour
    if ratio == "trajectory":
        log_ratio = jnp.broadcast_to(masked_mean(log_ratio, valid, axis=0), shape)
    low = check.number("clip_eps", clip_eps, low=0)
    high = low if clip_eps_high is None else check.number("clip_eps_high", clip_eps_high, low=0)
    surrogate, clipped = clipped_surrogate(log_ratio, advantages, low, high)
    objective = over_group(surrogate)
    kl = jnp.zeros_like(objective)
    if reference_log_probs is not None:
        reference = check.constant("reference_log_probs", reference_log_probs, valid, like=like)
        kl = over_group(k3(reference - current))
    entropies = check.average("policy_entropy", policy_entropy, shape, current.dtype, whole=True, like=like)
    entropy = masked_mean(entropies, valid)

    penalty = check.number("kl_coef", kl_coef) * kl
    loss = penalty - objective - check.number("entropy_coef", entropy_coef) * entropy
    metrics = {
        "loss": loss,
        "objective": objective,
        "entropy": entropy,
        "kl": kl,
        "clip_fraction": masked_mean(clipped.astype(loss.dtype), valid),
    }
    return loss, jax.lax.stop_gradient(metrics)
