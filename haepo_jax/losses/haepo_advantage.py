"""HAEPO on advantages of trajectory segments: the loss of `haepo_jax.HAEPO`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from haepo_jax.losses._checks import Checks
from haepo_jax.losses.numerics import centre, decayed_sum, masked_means, select, standardize_all
from haepo_jax.losses.weights import WeightFunction, alignment, effective_fraction, total, weigh


def haepo_advantage_loss(
    log_probs: ArrayLike,
    behaviour_log_probs: ArrayLike,
    advantages: ArrayLike,
    is_first: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    min_advantage_std: ArrayLike = 0.0,
    history_decay: ArrayLike = 0.95,
    temperature: ArrayLike = 1.0,
    entropy_coef: ArrayLike = 0.0,
    kl_coef: ArrayLike = 0.0,
    policy_entropy: ArrayLike = 0.0,
    policy_kl: ArrayLike = 0.0,
    weight_function: WeightFunction | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """HAEPO on advantages: at every step a softmax over the group weights the histories by their log-ratios.

    HAEPO (arXiv 2508.18884) weights whole trajectories. Here every step of K trajectory segments is weighted, relative
    to the behaviour policy that took it, which may differ between members. With advantages A^ standardised over all
    valid steps, history decay h, and first/last marking episode boundaries inside a segment:

        s[t,k] = h (1 - first[t,k]) s[t-1,k] + l[t,k] - l_behaviour[t,k]       w[t,k] = softmax_k(s[t,k] / tau)
        c[t,k] = A^[t,k] - h (1 - last[t,k]) A^[t+1,k]
        J = tau K^2 / (K - 1) sum_{t,k} w[t,k] (c[t,k] - cbar[t]) / N          loss = -J - entropy_coef * H + kl_coef * KL

    cbar[t] is the group mean and N the number of valid steps. The credits c telescope: while the policy equals the
    behaviour policies (all w = 1/K), a member's gradient is A^[t] times that of its log-probability for any h, minus a
    baseline from the other members of the group; with A^ from generalised advantage estimation and h = gamma lambda, c
    are temporal-difference residuals. So h sets how much of the history enters the weights, not how credit is assigned.
    As the policy moves, the weights of histories that have become more or less likely than the others saturate within
    about tau nats, and so does the gradient: tau is the size of the trust region. No gradient flows through tau, h, the
    advantages or the behaviour policy.

    Args:
      log_probs: (T, ..., K), log-probability (nats) of each action under the policy being optimised; time first, then
        groups, then members.
      behaviour_log_probs: (T, ..., K), the same under the policy that took the step.
      advantages: (T, ..., K), for example from ``generalized_advantage_estimation``; standardised here.
      is_first: (T, ..., K), bool or 0/1: first steps of episodes, where the history is reset.
      mask: (T, ..., K), bool or 0/1: steps to learn from; default all. Masked steps, even NaN, add nothing to the
        history; their A^ is 0, and their log-probability receives no gradient.
      min_advantage_std: scalar >= 0; advantages are divided by it if their standard deviation is smaller.
      history_decay: scalar h in [0, 1]; 0 weights every step on its own.
      temperature: scalar tau > 0.
      weight_function: a replacement for the softmax; see ``weights.WeightFunction``. ``None``: the softmax.
      entropy_coef: scalar, weight of H in the loss.
      kl_coef: scalar, weight of KL in the loss.
      policy_entropy: policy entropy: a scalar (the mean over valid steps), or (T, ..., K), averaged over valid steps.
      policy_kl: KL(reference || theta), shaped like ``policy_entropy``.

    Returns:
      The loss, a scalar in at least float32, and metrics, scalars with gradients stopped: "loss"; "objective" (J);
      "entropy" (H); "kl" (KL); and, averaged over steps and groups, "ess", the effective sample size of w as a fraction
      of K, "max_weight", the largest w, and "alignment", Spearman's rank correlation of weight and credit.

    Raises:
      TypeError: log-probabilities are not floating point, or another array is not numeric.
      ValueError: shapes differ, a number is out of range, or a group has a single member.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from haepo_jax.losses import haepo_advantage_loss
      >>> log_probs = jnp.log(jnp.full((1, 2), 0.5))  # one step of two members
      >>> grad = jax.grad(lambda l: haepo_advantage_loss(l, log_probs, jnp.array([[3.0, 1.0]]), jnp.ones((1, 2)))[0])
      >>> print(grad(log_probs))  # the standardised advantages are 1 and -1
      [[-1.  1.]]
    """
    check = Checks("haepo_advantage_loss")
    like = "the shape of log_probs"
    current = check.floats("log_probs", log_probs, min_ndim=2)
    shape, size = current.shape, current.shape[-1]
    if size < 2:
        raise ValueError(f"haepo_advantage_loss: a group needs at least 2 members, got shape {shape}")
    valid = check.mask("mask", mask, shape, like=like)
    first = check.mask("is_first", is_first, shape, like=like)

    behaviour = check.constant("behaviour_log_probs", behaviour_log_probs, valid, like=like)
    advantage = check.constant("advantages", advantages, valid, like=like, integers=current.dtype)
    decay = check.number("history_decay", history_decay, low=0, high=1)
    tau = check.number("temperature", temperature, low=0, open_low=True)

    kept = jnp.where(first, 0, decay)  # the factor on the history before each step
    scores = decayed_sum(select(valid, current) - behaviour, kept)
    weights, _ = weigh(weight_function, scores, jnp.ones_like(valid), tau)

    standard = standardize_all(advantage, valid, check.number("min_advantage_std", min_advantage_std, low=0))
    following = jnp.concatenate([kept[1:] * standard[1:], jnp.zeros_like(standard[:1])])
    credit = centre(standard - following, jnp.ones_like(valid))
    num_valid = jnp.maximum(jnp.sum(valid, dtype=weights.dtype), 1)
    averages = (("policy_entropy", policy_entropy), ("policy_kl", policy_kl))
    entropy, kl = masked_means(
        valid, *(check.average(name, x, shape, scores.dtype, whole=True, like=like) for name, x in averages)
    )
    terms = {
        "objective": tau * size**2 / (size - 1) * jnp.sum(weights * credit) / num_valid,
        "entropy": entropy,
        "kl": kl,
    }
    spread = {
        "ess": jnp.mean(effective_fraction(weights, jnp.ones_like(valid))),
        "max_weight": jnp.mean(jnp.max(weights, axis=-1)),
        "alignment": jnp.mean(alignment(scores, credit, jnp.ones_like(valid))),
    }
    return total(check, terms, spread, entropy_coef, kl_coef)
