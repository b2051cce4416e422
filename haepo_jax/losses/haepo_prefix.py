"""Per-decision HAEPO: at every step the prefixes of trajectories are weighed, and rewards credited to what precedes them."""

from __future__ import annotations

from typing import Any

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
    """Per-decision HAEPO: each reward is credited to the history before it, not to the whole trajectory.

    HAEPO (arXiv 2508.18884) weighs whole trajectories by their histories; here every prefix is weighed. Inside each
    group, over its K valid members (with one valid step at least), with h the history decay:

        s[t,k] = h s[t-1,k] + m[t,k] (l[t,k] - l_behaviour[t,k])      w[t,k] = softmax_k(s[t,k] / tau)
        J = tau K sum_{t,k} w[t,k] (r[t,k] - rbar[t]) / (sigma N)     loss = -J - entropy_coef * H + kl_coef * KL

    rbar[t] is the mean reward at step t, N the number of valid steps, sigma the root mean square over valid steps of the
    centred reward-to-go decayed by h; where sigma is 0, J is 0. A trajectory that has ended stays in the softmax with
    reward 0. The loss is the mean over the groups that have a valid member. At equal weights the gradient is that of
    REINFORCE with reward-to-go discounted by h and the group's mean at each step as its baseline; with h = tau = 1, J
    is, up to its unit, weighted per-decision importance sampling, normalised at each step (Thomas 2015, "Safe
    Reinforcement Learning"), of the return above the group's mean. tau, h, the rewards, the behaviour and the reference
    policy are constants of the differentiation.

    Args:
      log_probs: (T, ..., K), log-probability (nats) of each action under the policy being optimised; time first, then
        groups, then members.
      behaviour_log_probs: (T, ..., K), the same under the policy that collected the batch.
      rewards: (T, ..., K), the reward that each action earned; integers are cast.
      mask: (T, ..., K), bool or 0/1: whether the trajectory has reached that step, its last step included. What is
        masked changes neither value nor gradient, NaN included.
      history_decay: scalar h in (0, 1]; 1 is the whole history.
      temperature: tau > 0: a scalar, an array that broadcasts to the group axes, or "auto", the rule of
        ``plackett_luce_weights`` applied at every step.
      weight_function: weights in place of the softmax; see ``weights.WeightFunction``. ``None``: the softmax.
      entropy_coef: scalar, weight of H in the loss.
      kl_coef: scalar, weight of KL in the loss.
      policy_entropy: the policy's entropy: a scalar (a mean over valid steps), or (T, ..., K), which is averaged over
        all valid steps.
      policy_kl: KL(reference || theta), exact or ``kl_k3``: shaped as ``policy_entropy``.
      entropy: "policy", H = ``policy_entropy``; "weights", H = -sum_k w log w / log K (0 for K = 1), averaged over a
        group's valid steps.
      kl: "policy", KL = ``policy_kl``; "weights", KL(w_ref || w) at each step, averaged as the entropy of the weights.
      reference_log_probs: (T, ..., K), the same under the frozen reference, for ``kl="weights"``; default
        ``behaviour_log_probs``.

    Returns:
      The loss, a scalar in at least float32, and the metrics of ``haepo_loss``. "ess" and "max_weight" are averaged
      over the steps at which the group has a valid member; "alignment" compares a trajectory's log-ratio, summed without
      decay, with its return.

    Raises:
      TypeError: log-probabilities are not floating point, or another array not a real number.
      ValueError: shapes differ, or an option is unknown or out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from haepo_jax.losses import haepo_prefix_loss
      >>> log_probs = jnp.log(jnp.full((2, 2), 0.5))  # two steps of two trajectories
      >>> rewards = jnp.array([[0.0, 0.0], [1.0, 0.0]])  # only the first one earns anything
      >>> grad = jax.grad(lambda l: haepo_prefix_loss(l, log_probs, rewards, jnp.ones((2, 2)), history_decay=1.0)[0])
      >>> print(grad(log_probs))  # both of its decisions are made likelier
      [[-0.25  0.25]
       [-0.25  0.25]]
    """
    check = Checks("haepo_prefix_loss")
    check.option("entropy", entropy, REGULARIZERS)
    check.option("kl", kl, REGULARIZERS)
    like = "the shape of log_probs"
    current = check.floats("log_probs", log_probs, min_ndim=2)
    shape = current.shape
    live = check.mask("mask", mask, shape, like=like)
    current = select(live, current)

    def constant(name: str, value: ArrayLike, integers: Any = None) -> jax.Array:
        array = check.floats(name, value, shape, like=like, integers=integers)
        return jax.lax.stop_gradient(select(live, array))

    behaviour = constant("behaviour_log_probs", behaviour_log_probs)
    reward = constant("rewards", rewards, integers=current.dtype)
    decay = check.number("history_decay", history_decay, low=0, high=1, open_low=True)

    members = jnp.broadcast_to(jnp.any(live, axis=0), shape)  # the softmax has the same members at every step
    log_ratio = current - behaviour
    scores = decayed_sum(log_ratio, decay)
    tau = resolve_temperature(check, temperature, scores, members, shape[1:-1])
    weights, log_weights = weigh(weight_function, scores, members, tau)

    standard_rewards, num_live = _standardized_rewards(reward, live, members, decay)
    size = jnp.sum(members, axis=-1, dtype=weights.dtype)
    objective = jnp.sum(tau[..., 0] * size * jnp.sum(weights * standard_rewards, axis=-1), axis=0) / jnp.maximum(
        num_live, 1
    )

    valid = jnp.any(members[0], axis=-1)
    ongoing = jnp.any(live, axis=-1)

    def over_steps(x: jax.Array) -> jax.Array:
        return masked_mean(masked_mean(x, ongoing, axis=0), valid)

    def over_live(name: str, value: ArrayLike) -> jax.Array:
        return masked_mean(check.average(name, value, shape, scores.dtype, whole=True, like=like), live)

    if entropy == "weights":
        mean_entropy = over_steps(relative_entropy(weights, log_weights, members))
    else:
        mean_entropy = over_live("policy_entropy", policy_entropy)
    if kl == "weights":
        anchor = behaviour_log_probs if reference_log_probs is None else reference_log_probs
        anchor = constant("reference_log_probs", anchor)
        reference = weigh(weight_function, decayed_sum(anchor - behaviour, decay), members, tau)
        mean_kl = over_steps(divergence(*reference, log_weights))
    else:
        mean_kl = over_live("policy_kl", policy_kl)
    terms = {"objective": masked_mean(objective, valid), "entropy": mean_entropy, "kl": mean_kl}
    spread = {
        "ess": over_steps(effective_fraction(weights, members)),
        "max_weight": over_steps(jnp.max(weights, axis=-1)),
        "alignment": masked_mean(alignment(jnp.sum(log_ratio, axis=0), jnp.sum(reward, axis=0), members[0]), valid),
    }
    return total(check, terms, spread, entropy_coef, kl_coef)


def _standardized_rewards(
    reward: jax.Array, live: jax.Array, members: jax.Array, decay: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Rewards less the group's mean at each step, over sigma, (T, ..., K); each group's number of valid steps, (...)."""
    centred = centre(reward, members)
    # J does not depend on the unit of reward; without one, squares neither overflow nor vanish.
    unit = jnp.max(jnp.abs(centred), axis=(0, -1), keepdims=True)
    centred = divide(centred, unit)
    credit = decayed_sum(centred, decay, reverse=True)
    num_live = jnp.sum(live, axis=(0, -1), dtype=reward.dtype)
    square = jnp.sum(select(live, credit**2), axis=(0, -1)) / jnp.maximum(num_live, 1)
    return divide(centred, jnp.sqrt(square)[None, ..., None]), num_live
