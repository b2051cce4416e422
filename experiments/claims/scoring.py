"""How much likelier a later policy makes the episodes of an earlier one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.state import TrainState
from haepo_jax.rollout import Trajectory, collect_episodes


def play_and_score(
    algorithm: Algorithm, before: TrainState, after: TrainState, reset_keys: jax.Array, step_keys: jax.Array
) -> tuple[Trajectory, jax.Array, jax.Array, jax.Array]:
    """Plays complete episodes with one policy of a run and scores them by how much likelier a later one makes them. Pure.

    Args:
      algorithm: of the run.
      before: the train state whose policy plays, by sampled actions.
      after: the one whose policy is compared with it.
      reset_keys: (K,) typed keys, as `collect_episodes` takes them; likewise `step_keys`.

    Returns:
      The steps (T, K); and for each episode (K,) the scores, sums over steps of log pi_after(a) - log pi_before(a); the
      log-likelihoods, sums of log pi_after(a); and the undiscounted returns. Forced steps do not count (see
      `Trajectory.decisions`).
    """

    def act(
        carry: Any, observation: Any, is_first: jax.Array, action_mask: Any, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        carry_before, old = algorithm.act_distribution(before, carry[0], observation, is_first, action_mask)
        carry_after, new = algorithm.act_distribution(after, carry[1], observation, is_first, action_mask)
        action = old.sample(key)
        log_prob = new.log_prob(action)
        return (carry_before, carry_after), action, (log_prob - old.log_prob(action), log_prob)

    carry = algorithm.initial_carry()
    steps, returns, _ = collect_episodes(algorithm.env, act, (carry, carry), reset_keys, step_keys)
    assert steps is not None
    # The differences are summed: subtracting two long sums loses digits.
    scores, log_likelihoods = (jnp.sum(x, axis=0, where=steps.decisions) for x in steps.extras)
    return steps, scores, log_likelihoods, returns
