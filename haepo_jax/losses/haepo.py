"""HAEPO: a trajectory's whole history weighs its return; and the same idea at every prefix of it, of rewards or of
advantages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from haepo_jax.losses._checks import Checks
from haepo_jax.losses._numerics import centre, divide, lowest, masked_mean, rank_correlation, select
from haepo_jax.losses.returns import NORMALIZATIONS, normalize_returns
from haepo_jax.losses.weights import Temperature, WeightFunction, resolve_temperature, weigh

SCORES = ("likelihood", "mean_likelihood", "log_ratio")
REGULARIZERS = ("policy", "weights")


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

    Inside each group, over its K valid members, with score s and normalised return R~:

        w = softmax_k(s / tau)      J = sum_k w[k] R~[k]      loss = -J - entropy_coef * H + kl_coef * KL

    and the loss is the mean over the groups that have a valid member. The gradient of J is
    (1/tau) sum_k w[k] (R~[k] - sum_j w[j] R~[j]) ds[k]: the softmax brings its own baseline, and weights that have
    collapsed onto one trajectory have no gradient. tau, R~, the behaviour and the reference policy are constants of the
    differentiation.

    Args:
      log_likelihood: (..., K), L = sum of the log-probabilities (nats) of a trajectory's actions; see
        ``trajectory_log_likelihood``.
      returns: (..., K), the return of each trajectory; integers are cast.
      score: "likelihood", s = L, the paper's; "mean_likelihood", s = L / lengths; "log_ratio", s = L - L_behaviour,
        with tau = 1 self-normalised importance sampling. For long trajectories pass ``log_likelihood`` = sum(l -
        l_behaviour) and ``behaviour_log_likelihood`` = 0: subtracting two long sums loses digits.
      temperature: tau > 0: a scalar, an array that broadcasts to the leading axes, or "auto"; see
        ``plackett_luce_weights``.
      weight_function: weights in place of the softmax; see ``weights.WeightFunction``. ``None``: the softmax.
      normalize: "none", "center", "standardize" or "rank"; see ``normalize_returns``.
      entropy_coef: scalar, weight of H in the loss.
      kl_coef: scalar, weight of KL in the loss.
      mask: (..., K), bool or 0/1: which members are valid; default all. What is masked changes neither value nor
        gradient, NaN included.
      behaviour_log_likelihood: (..., K), L under the policy that collected the batch; "log_ratio" needs it.
      reference_log_likelihood: (..., K), L under the frozen reference, for ``kl="weights"``; default
        ``behaviour_log_likelihood``.
      lengths: (..., K), number of live steps; "mean_likelihood" needs it.
      entropy: "policy", H = ``policy_entropy``; "weights", H = -sum_k w log w / log K (0 for K = 1).
      kl: "policy", KL = ``policy_kl``; "weights", KL(w_ref || w), where w_ref has the same score and temperature.
      policy_entropy: the mean over live steps of the policy's entropy: a scalar, or an array that broadcasts to the
        leading axes.
      policy_kl: the mean over live steps of KL(reference || theta), exact or ``kl_k3``: shaped as ``policy_entropy``.

    Returns:
      The loss, a scalar in at least float32, and metrics, scalars without gradient, means over the groups that have a
      valid member: "loss"; "objective" (J); "entropy" (H); "kl" (KL); "ess", effective sample size of w as a fraction
      of K; "max_weight", the largest w; "alignment", Spearman's rank correlation of weight and return, 0 where
      undefined. All are 0 where nothing is valid.

    Raises:
      TypeError: a log-likelihood is not floating point, or another array not a real number.
      ValueError: shapes differ, an option is unknown or out of range, or the option chosen needs an argument that is
        missing.

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
    reward = check.floats("returns", returns, shape, like=like, integers=True)
    live = check.mask("mask", mask, shape, like=like)

    def constant(name: str, value: ArrayLike | None, integers: bool = False) -> jax.Array | None:
        if value is None:
            return None
        return jax.lax.stop_gradient(select(live, check.floats(name, value, shape, like=like, integers=integers)))

    behaviour = constant("behaviour_log_likelihood", behaviour_log_likelihood)
    reference = constant("reference_log_likelihood", reference_log_likelihood)
    steps = constant("lengths", lengths, integers=True)

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

    scores = scored(select(live, likelihood))
    tau = resolve_temperature(check, temperature, scores, live, groups)
    weights, log_weights = weigh(weight_function, scores, live, tau)
    normalized = normalize_returns(reward, normalize=normalize, mask=live)
    # The weights sum to 1, so J is unchanged; but its gradient no longer carries the rounding of a large common return.
    floor = lowest(normalized, live)
    objective = floor[..., 0] + jnp.sum(weights * select(live, normalized - floor), axis=-1)

    if entropy == "weights":
        entropies = _relative_entropy(weights, log_weights, live)
    else:
        entropies = check.average("policy_entropy", policy_entropy, groups, scores.dtype)
    if kl == "weights":
        anchor = behaviour if reference is None else reference
        if anchor is None:
            raise ValueError("haepo_loss: kl='weights' needs reference_log_likelihood or behaviour_log_likelihood")
        divergences = _divergence(*weigh(weight_function, scored(anchor), live, tau), log_weights)
    else:
        divergences = check.average("policy_kl", policy_kl, groups, scores.dtype)

    valid = jnp.any(live, axis=-1)
    terms = {
        "objective": masked_mean(objective, valid),
        "entropy": masked_mean(entropies, valid),
        "kl": masked_mean(divergences, valid),
    }
    spread = {
        "ess": masked_mean(_effective_fraction(weights, live), valid),
        "max_weight": masked_mean(jnp.max(weights, axis=-1), valid),
        "alignment": masked_mean(_alignment(scores, select(live, reward), live), valid),
    }
    return _total(check, terms, spread, entropy_coef, kl_coef)


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
    group, over its K valid members (alive at one step at least), with h the history decay:

        s[t,k] = h s[t-1,k] + m[t,k] (l[t,k] - l_behaviour[t,k])      w[t,k] = softmax_k(s[t,k] / tau)
        J = tau K sum_{t,k} w[t,k] (r[t,k] - rbar[t]) / (sigma N)     loss = -J - entropy_coef * H + kl_coef * KL

    rbar[t] is the mean reward at step t, N the number of live steps, sigma the root mean square over live steps of the
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
      mask: (T, ..., K), bool or 0/1: whether the trajectory is alive at that step, its last step included. What is
        masked changes neither value nor gradient, NaN included.
      history_decay: scalar h in (0, 1]; 1 is the whole history.
      temperature: tau > 0: a scalar, an array that broadcasts to the group axes, or "auto", the rule of
        ``plackett_luce_weights`` applied at every step.
      weight_function: weights in place of the softmax; see ``weights.WeightFunction``. ``None``: the softmax.
      entropy_coef: scalar, weight of H in the loss.
      kl_coef: scalar, weight of KL in the loss.
      policy_entropy: the policy's entropy: a scalar (a mean over live steps), or (T, ..., K), which is averaged over
        all live steps.
      policy_kl: KL(reference || theta), exact or ``kl_k3``: shaped as ``policy_entropy``.
      entropy: "policy", H = ``policy_entropy``; "weights", H = -sum_k w log w / log K (0 for K = 1), averaged over a
        group's live steps.
      kl: "policy", KL = ``policy_kl``; "weights", KL(w_ref || w) at each step, averaged as the entropy of the weights.
      reference_log_probs: (T, ..., K), the same under the frozen reference, for ``kl="weights"``; default
        ``behaviour_log_probs``.

    Returns:
      The loss, a scalar in at least float32, and the metrics of ``haepo_loss``. "ess" and "max_weight" are averaged
      over the steps at which the group has a live member; "alignment" compares a trajectory's log-ratio, summed without
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
    behaviour, reward = (
        jax.lax.stop_gradient(select(live, check.floats(name, value, shape, like=like, integers=integers)))
        for name, value, integers in (("behaviour_log_probs", behaviour_log_probs, False), ("rewards", rewards, True))
    )
    decay = check.number("history_decay", history_decay, low=0, high=1, open_low=True)

    members = jnp.broadcast_to(jnp.any(live, axis=0), shape)  # the softmax has the same members at every step
    log_ratio = current - behaviour
    scores = _decayed_sum(log_ratio, decay)
    tau = resolve_temperature(check, temperature, scores, members, shape[1:-1])
    weights, log_weights = weigh(weight_function, scores, members, tau)

    surprise, num_live = _standardized_rewards(reward, live, members, decay)
    size = jnp.sum(members, axis=-1, dtype=weights.dtype)
    objective = jnp.sum(tau[..., 0] * size * jnp.sum(weights * surprise, axis=-1), axis=0) / jnp.maximum(num_live, 1)

    valid = jnp.any(members[0], axis=-1)
    ongoing = jnp.any(live, axis=-1)

    def over_steps(x: jax.Array) -> jax.Array:
        return masked_mean(masked_mean(x, ongoing, axis=0), valid)

    def over_live(name: str, value: ArrayLike) -> jax.Array:
        return masked_mean(check.average(name, value, shape, scores.dtype, whole=True, like=like), live)

    if entropy == "weights":
        mean_entropy = over_steps(_relative_entropy(weights, log_weights, members))
    else:
        mean_entropy = over_live("policy_entropy", policy_entropy)
    if kl == "weights":
        anchor = behaviour_log_probs if reference_log_probs is None else reference_log_probs
        anchor = jax.lax.stop_gradient(select(live, check.floats("reference_log_probs", anchor, shape, like=like)))
        reference = weigh(weight_function, _decayed_sum(anchor - behaviour, decay), members, tau)
        divergence = over_steps(_divergence(*reference, log_weights))
    else:
        divergence = over_live("policy_kl", policy_kl)
    terms = {"objective": masked_mean(objective, valid), "entropy": mean_entropy, "kl": divergence}
    spread = {
        "ess": over_steps(_effective_fraction(weights, members)),
        "max_weight": over_steps(jnp.max(weights, axis=-1)),
        "alignment": masked_mean(_alignment(jnp.sum(log_ratio, axis=0), jnp.sum(reward, axis=0), members[0]), valid),
    }
    return _total(check, terms, spread, entropy_coef, kl_coef)


def haepo_advantage_loss(
    log_probs: ArrayLike,
    behaviour_log_probs: ArrayLike,
    advantages: ArrayLike,
    is_first: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    history_decay: ArrayLike = 0.95,
    temperature: ArrayLike = 1.0,
    entropy_coef: ArrayLike = 0.0,
    kl_coef: ArrayLike = 0.0,
    policy_entropy: ArrayLike = 0.0,
    policy_kl: ArrayLike = 0.0,
    weight_function: WeightFunction | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """HAEPO on advantages: at every step the histories of a group compete for the credit of what follows.

    HAEPO (arXiv 2508.18884) weighs whole trajectories by their histories. Here every step of K pieces of experience is
    weighed, each with the behaviour policy that played it, which may differ between members. With the advantages A^
    standardised over all live steps, h the history decay, and first/last the ends of an episode inside a piece:

        s[t,k] = h (1 - first[t,k]) s[t-1,k] + l[t,k] - l_behaviour[t,k]       w[t,k] = softmax_k(s[t,k] / tau)
        c[t,k] = A^[t,k] - h (1 - last[t,k]) A^[t+1,k]
        J = tau K^2 / (K - 1) sum_{t,k} w[t,k] (c[t,k] - cbar[t]) / N          loss = -J - entropy_coef * H + kl_coef * KL

    cbar[t] is the group's mean and N the number of live steps. The credits c telescope: where the policies are equal
    (all w = 1/K), a member's gradient is A^[t] times that of its log-probability, whatever h, less what the group's other
    members give as a baseline; with A^ from generalised advantage estimation and h = gamma lambda, c are temporal-difference
    residuals. So h sets how much of its history a step answers for, not how credit is assigned. Once the policy has
    moved, the weights of histories that it has made likelier or unlikelier than others saturate within about tau nats,
    and with them the gradient: tau is the size of the trust region. tau, h, the advantages and the behaviour policy are
    constants of the differentiation.

    Args:
      log_probs: (T, ..., K), log-probability (nats) of each action under the policy being optimised; time first, then
        groups, then members.
      behaviour_log_probs: (T, ..., K), the same under the policy that played the step.
      advantages: (T, ..., K), for example of ``generalized_advantage_estimation``; standardised here.
      is_first: (T, ..., K), bool or 0/1: the step is the first of its episode, so no history precedes it.
      mask: (T, ..., K), bool or 0/1: steps to learn from; default all. A masked step adds nothing to its history and
        earns nothing, NaN included.
      history_decay: scalar h in [0, 1]; 0: each step for itself.
      temperature: scalar tau > 0.
      weight_function: weights in place of the softmax; see ``weights.WeightFunction``. ``None``: the softmax.
      entropy_coef: scalar, weight of H in the loss.
      kl_coef: scalar, weight of KL in the loss.
      policy_entropy: the policy's entropy: a scalar (a mean over live steps), or (T, ..., K), averaged over live steps.
      policy_kl: KL(reference || theta): shaped as ``policy_entropy``.

    Returns:
      The loss, a scalar in at least float32, and metrics, scalars without gradient: "loss"; "objective" (J); "entropy"
      (H); "kl" (KL); "ess", effective sample size of w as a fraction of K, and "max_weight", the largest w, means over
      steps and groups; "alignment", Spearman's rank correlation of weight and credit inside a group, likewise.

    Raises:
      TypeError: log-probabilities are not floating point, or another array not a real number.
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
        raise ValueError(f"haepo_advantage_loss: a group needs 2 members at least, got shape {shape}")
    live = check.mask("mask", mask, shape, like=like)
    first = check.mask("is_first", is_first, shape, like=like)
    behaviour, advantage = (
        jax.lax.stop_gradient(select(live, check.floats(name, value, shape, like=like, integers=integers)))
        for name, value, integers in (
            ("behaviour_log_probs", behaviour_log_probs, False),
            ("advantages", advantages, True),
        )
    )
    decay = check.number("history_decay", history_decay, low=0, high=1)
    tau = check.number("temperature", temperature, low=0, open_low=True)

    kept = decay * ~first  # what of the history before it a step keeps
    scores = _decayed_sum(select(live, current) - behaviour, kept)
    weights, _ = weigh(weight_function, scores, jnp.ones_like(live), tau)

    standard = normalize_returns(advantage.reshape(-1), mask=live.reshape(-1)).reshape(shape)
    following = jnp.concatenate([kept[1:] * standard[1:], jnp.zeros_like(standard[:1])])
    credit = centre(select(live, standard) - following, jnp.ones_like(live))
    num_live = jnp.maximum(jnp.sum(live, dtype=weights.dtype), 1)
    terms = {
        "objective": tau * size**2 / (size - 1) * jnp.sum(weights * credit) / num_live,
        "entropy": masked_mean(
            check.average("policy_entropy", policy_entropy, shape, scores.dtype, whole=True, like=like), live
        ),
        "kl": masked_mean(check.average("policy_kl", policy_kl, shape, scores.dtype, whole=True, like=like), live),
    }
    spread = {
        "ess": jnp.mean(_effective_fraction(weights, jnp.ones_like(live))),
        "max_weight": jnp.mean(jnp.max(weights, axis=-1)),
        "alignment": jnp.mean(_alignment(scores, credit, jnp.ones_like(live))),
    }
    return _total(check, terms, spread, entropy_coef, kl_coef)


def _standardized_rewards(
    reward: jax.Array, live: jax.Array, members: jax.Array, decay: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Rewards less the group's mean at each step, over sigma, (T, ..., K); each group's number of live steps, (...)."""
    centred = centre(reward, members)
    # J does not depend on the unit of reward; without one, squares neither overflow nor vanish.
    unit = jnp.max(jnp.abs(centred), axis=(0, -1), keepdims=True)
    centred = divide(centred, unit)
    credit = _decayed_sum(centred, decay, reverse=True)
    num_live = jnp.sum(live, axis=(0, -1), dtype=reward.dtype)
    square = jnp.sum(select(live, credit**2), axis=(0, -1)) / jnp.maximum(num_live, 1)
    return divide(centred, jnp.sqrt(square)[..., None]), num_live


def _decayed_sum(x: jax.Array, decay: jax.Array, *, reverse: bool = False) -> jax.Array:
    """y[t] = decay[t] y[t-1] + x[t] along the first axis, or y[t] = decay[t] y[t+1] + x[t]; decay () or shaped as x."""

    def step(carry: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        added, kept = now
        carry = (kept * carry + added).astype(x.dtype)
        return carry, carry

    return jax.lax.scan(step, jnp.zeros_like(x[0]), (x, jnp.broadcast_to(decay, x.shape)), reverse=reverse)[1]


def _relative_entropy(weights: jax.Array, log_weights: jax.Array, live: jax.Array) -> jax.Array:
    """Entropy of the weights as a fraction of log K, its largest value; (..., K) -> (...)."""
    most = jnp.log(jnp.maximum(jnp.sum(live, axis=-1, dtype=weights.dtype), 1))
    return divide(-jnp.sum(weights * log_weights, axis=-1), most)


def _divergence(reference_weights: jax.Array, log_reference: jax.Array, log_weights: jax.Array) -> jax.Array:
    """KL(w_ref || w), (..., K) -> (...)."""
    return jnp.sum(reference_weights * (log_reference - log_weights), axis=-1)


def _effective_fraction(weights: jax.Array, live: jax.Array) -> jax.Array:
    """Effective sample size over K, (..., K) -> (...); the weights sum to 1."""
    squares = jnp.sum(live, axis=-1) * jnp.sum(weights**2, axis=-1)
    return divide(jnp.ones_like(squares), squares)


def _alignment(scores: jax.Array, returns: jax.Array, live: jax.Array) -> jax.Array:
    """Rank correlation of weight and return: taken of the scores, which keep the order of weights that underflow."""
    return rank_correlation(jax.lax.stop_gradient(scores), returns, live)


def _total(
    check: Checks,
    terms: dict[str, jax.Array],
    spread: dict[str, jax.Array],
    entropy_coef: ArrayLike,
    kl_coef: ArrayLike,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    bonus = check.number("entropy_coef", entropy_coef) * terms["entropy"]
    penalty = check.number("kl_coef", kl_coef) * terms["kl"]
    loss = penalty - terms["objective"] - bonus
    return loss, jax.lax.stop_gradient({"loss": loss, **terms, **spread})
