"""What HAEPO's weights know: whether training has made those episodes likelier that return more, asked of new ones.

The metric `alignment` asks the experience that was learnt from, whose luck the policy has learnt too. These episodes
have been seen by no update.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from haepo_jax.algorithms.base import Algorithm, TrainState
from haepo_jax.rollout import collect_episodes, lane_keys


class FreshEpisodes(NamedTuple):
    """K episodes, an entry for each; all (K,) float32.

    Attributes:
      scores: sum over steps of log pi_after(a) - log pi_before(a): the score "log_ratio", whose softmax are the weights.
      log_likelihoods: sum over steps of log pi_after(a): the score "likelihood"; minus `scores`, that under pi_before.
      returns: undiscounted sums of rewards.
    """

    scores: jax.Array
    log_likelihoods: jax.Array
    returns: jax.Array


def fresh_alignment(
    algorithm: Algorithm, before: TrainState, after: TrainState, key: jax.Array, episodes: int
) -> FreshEpisodes:
    """Plays complete episodes with one policy of a run and scores them by how much likelier a later one makes them.

    Pure: it jits, and vmaps over states and keys. Of the states only the policies and their normalisers are looked at.
    Forced steps (see `Trajectory.decisions`) do not count, as in the losses. Both policies decide step by step, each
    with its own memory, so no step's log-probability has to be computed twice. What the environment spoils is NaN.

    Args:
      algorithm: of the run.
      before: whose policy plays, by sampled actions.
      after: whose policy is compared with it.
      key: typed, of starts, actions and transitions.
      episodes: K, side by side.
    """
    reset_key, step_key = jax.random.split(key)

    def act(
        carry: Any, observation: Any, is_first: jax.Array, action_mask: Any, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        carry_before, played = algorithm.act_distribution(before, carry[0], observation, is_first, action_mask)
        carry_after, judged = algorithm.act_distribution(after, carry[1], observation, is_first, action_mask)
        action = played.sample(key)
        log_prob = judged.log_prob(action)
        return (carry_before, carry_after), action, (log_prob - played.log_prob(action), log_prob)

    carry = algorithm.initial_carry()
    steps, returns, _ = collect_episodes(
        algorithm.env, act, (carry, carry), lane_keys(reset_key, episodes), lane_keys(step_key, episodes)
    )
    assert steps is not None
    # The differences are summed: subtracting two long sums loses digits.
    scores, log_likelihoods = (jnp.sum(x, axis=0, where=steps.decisions) for x in steps.extras)
    return FreshEpisodes(scores, log_likelihoods, returns)
