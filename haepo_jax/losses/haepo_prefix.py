"""Per-decision HAEPO: weights over trajectory prefixes credit each reward to the actions before it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from haepo_jax.losses._checks import Checks
from haepo_jax.losses.numerics import centre, decayed_sum, divide, masked_mean, select
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


def haepo_prefix_loss(
    log_probs: ArrayLike,
    behaviour_log_probs: ArrayLike,
    rewards: ArrayLike,
    mask: ArrayLike,
    *,
    history_decay: ArrayLike = 0.99,
    temperature: Temperature = 1.0,
    entropy_coef: ArrayLike = 0.0,
    kl_coef: ArrayLike = 0.0,
    policy_entropy: ArrayLike = 0.0,
    policy_kl: ArrayLike = 0.0,
    entropy: str = "policy",
    kl: str = "policy",
    reference_log_probs: ArrayLike | None = None,
    weight_function: WeightFunction | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Per-decision HAEPO: each reward is credited to the actions before it, not to the whole trajectory.

    HAEPO (arXiv 2508.18884) weights whole trajectories; here every prefix is weighted. Within each group, over its K
    valid members (those with at least one valid step), with history decay h:

        s[t,k] = h s[t-1,k] + m[t,k] (l[t,k] - l_behaviour[t,k])      w[t,k] = softmax_k(s[t,k] / tau)
        J = tau K sum_{t,k} w[t,k] (r[t,k] - rbar[t]) / (sigma N)     loss = -J - entropy_coef * H + kl_coef * KL

    rbar[t] is the mean reward at step t, N the number of valid steps and sigma the root mean square over valid steps of
    the centred reward-to-go discounted by h; if sigma is 0, J is 0. A finished trajectory stays in the softmax with
    reward 0. The loss is the mean over the groups with a valid member. At equal weights the gradient is that of
    REINFORCE with reward-to-go discounted by h and the group mean at each step as baseline; with h = tau = 1, J is, up
    to scale, the weighted per-decision importance sampling estimate, normalised at each step (Thomas 2015, "Safe
    Reinforcement Learning"), of the return above the group mean. No gradient flows through tau, h, the rewards, the
    behaviour policy or the reference policy.

    Args:
      log_probs: (T, ..., K), log-probability (nats) of each action under the policy being optimised; time first, then
        groups, then members.
      behaviour_log_probs: (T, ..., K), the same under the behaviour policy.
      rewards: (T, ..., K), reward of each step; integers are cast.
      mask: (T, ..., K), bool or 0/1: valid steps, up to and including a trajectory's last. Masked entries, even NaN,
        affect neither the value nor the gradient.
      history_decay: scalar h in (0, 1]; 1 uses the whole history.
      temperature: tau > 0: a scalar, an array that broadcasts to the group axes, or "auto", the rule of
        ``plackett_luce_weights`` applied at every step.
      weight_function: a replacement for the softmax; see ``weights.WeightFunction``. ``None``: the softmax.
      entropy_coef: scalar, weight of H in the loss.
      kl_coef: scalar, weight of KL in the loss.
      policy_entropy: policy entropy: a scalar (the mean over valid steps), or (T, ..., K), averaged over valid steps.
      policy_kl: KL(reference || theta), exact or ``kl_k3``; shaped like ``policy_entropy``.
      entropy: "policy", H = ``policy_entropy``; "weights", H = -sum_k w log w / log K (0 for K = 1), averaged over a
        group's valid steps.
      kl: "policy", KL = ``policy_kl``; "weights", KL(w_ref || w) at each step, averaged like the entropy of the
        weights.
      reference_log_probs: (T, ..., K), the same under the frozen reference policy, for ``kl="weights"``; default
        ``behaviour_log_probs``.

    Returns:
      The loss, a scalar in at least float32, and the metrics of ``haepo_loss``. "ess" and "max_weight" are averaged
      over the steps at which the group has a valid member; "alignment" correlates a trajectory's undecayed sum of
      log-ratios with its return.

    Raises:
      TypeError: log-probabilities are not floating point, or another array is not numeric.
      ValueError: shapes differ, or an option is unknown or out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from haepo_jax.losses import haepo_prefix_loss
      >>> log_probs = jnp.log(jnp.full((2, 2), 0.5))  # two steps of two trajectories
      >>> rewards = jnp.array([[0.0, 0.0], [1.0, 0.0]])  # only the first one is rewarded
      >>> grad = jax.grad(lambda l: haepo_prefix_loss(l, log_probs, rewards, jnp.ones((2, 2)), history_decay=1.0)[0])
      >>> print(grad(log_probs))  # both of its actions become more likely
      [[-0.25  0.25]
       [-0.25  0.25]]
    """
    check = Checks("haepo_prefix_loss")
    check.option("entropy", entropy, REGULARIZERS)
    check.option("kl", kl, REGULARIZERS)
    like = "the shape of log_probs"
    current = check.floats("log_probs", log_probs, min_ndim=2)
    shape = current.shape
    valid = check.mask("mask", mask, shape, like=like)
    current = select(valid, current)

    behaviour = check.constant("behaviour_log_probs", behaviour_log_probs, valid, like=like)
    reward = check.constant("rewards", rewards, valid, like=like, integers=current.dtype)
    decay = check.number("history_decay", history_decay, low=0, high=1, open_low=True)

    members = jnp.broadcast_to(jnp.any(valid, axis=0), shape)  # the softmax has the same members at every step
    log_ratio = current - behaviour
    scores = decayed_sum(log_ratio, decay)
    tau = resolve_temperature(check, temperature, scores, members, shape[1:-1])
    weights, log_weights = weigh(weight_function, scores, members, tau)

    standard_rewards, num_valid = _standardized_rewards(reward, valid, members, decay)
    size = jnp.sum(members, axis=-1, dtype=weights.dtype)
    objective = jnp.sum(tau[..., 0] * size * jnp.sum(weights * standard_rewards, axis=-1), axis=0) / jnp.maximum(
        num_valid, 1
    )

    group_valid = jnp.any(members[0], axis=-1)
    ongoing = jnp.any(valid, axis=-1)

    def over_steps(x: jax.Array) -> jax.Array:
        return masked_mean(masked_mean(x, ongoing, axis=0), group_valid)

    def over_valid_steps(name: str, value: ArrayLike) -> jax.Array:
        return masked_mean(check.average(name, value, shape, scores.dtype, whole=True, like=like), valid)

    if entropy == "weights":
        mean_entropy = over_steps(relative_entropy(weights, log_weights, members))
    else:
        mean_entropy = over_valid_steps("policy_entropy", policy_entropy)
    if kl == "weights":
        anchor = behaviour_log_probs if reference_log_probs is None else reference_log_probs
        anchor = check.constant("reference_log_probs", anchor, valid, like=like)
        reference = weigh(weight_function, decayed_sum(anchor - behaviour, decay), members, tau)
        mean_kl = over_steps(divergence(*reference, log_weights))
    else:
        mean_kl = over_valid_steps("policy_kl", policy_kl)
    terms = {"objective": masked_mean(objective, group_valid), "entropy": mean_entropy, "kl": mean_kl}
    spread = {
        "ess": over_steps(effective_fraction(weights, members)),
        "max_weight": over_steps(jnp.max(weights, axis=-1)),
        "alignment": masked_mean(
            alignment(jnp.sum(log_ratio, axis=0), jnp.sum(reward, axis=0), members[0]), group_valid
        ),
    }
    return total(check, terms, spread, entropy_coef, kl_coef)


def _standardized_rewards(
    reward: jax.Array, valid: jax.Array, members: jax.Array, decay: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Rewards minus the group mean at each step, over sigma, (T, ..., K), and the valid steps of each group, (...)."""
    centred = centre(reward, members)
    # J does not depend on the scale of the rewards; rescaling keeps their squares from overflowing or underflowing.
    unit = jnp.max(jnp.abs(centred), axis=(0, -1), keepdims=True)
    centred = divide(centred, unit)
    credit = decayed_sum(centred, decay, reverse=True)
    num_valid = jnp.sum(valid, axis=(0, -1), dtype=reward.dtype)
    square = jnp.sum(select(valid, credit**2), axis=(0, -1)) / jnp.maximum(num_valid, 1)
    return divide(centred, jnp.sqrt(square)[None, ..., None]), num_valid
