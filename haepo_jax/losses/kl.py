"""Sample-based estimate of the KL divergence."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from haepo_jax.losses._checks import Checks
from haepo_jax.losses.numerics import k3


def kl_k3(log_probs: ArrayLike, reference_log_probs: ArrayLike) -> jax.Array:
    """The k3 estimate of KL(reference || theta), one value per action.

    exp(d) - 1 - d with d = l - l_ref (Schulman 2020, "Approximating KL divergence",
    http://joschu.net/blog/kl-approx.html). It is never negative, and unbiased for actions sampled from the reference.
    Beyond d = 20 the exponential is replaced by its tangent, so that value and gradient stay finite. ``haepo_loss`` and
    ``haepo_prefix_loss`` take it, or its mean over valid steps, as ``policy_kl``.

    Args:
      log_probs: (...), log-probability of each action under the policy being optimised; floating point.
      reference_log_probs: (...), the same under the frozen reference policy; its gradient is stopped.

    Returns:
      (...), the estimate for each action, at least float32.

    Raises:
      TypeError: an argument is not floating point.
      ValueError: the shapes differ.

    Examples:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from haepo_jax.losses import kl_k3
      >>> estimates = kl_k3(jnp.log(jnp.array([0.5, 0.2])), jnp.log(jnp.array([0.5, 0.4])))
      >>> print(np.asarray(estimates).round(4))
      [0.     0.1931]
    """
    check = Checks("kl_k3")
    current = check.floats("log_probs", log_probs)
    reference = check.floats("reference_log_probs", reference_log_probs, current.shape, like="the shape of log_probs")
    return k3(current - jax.lax.stop_gradient(reference))
