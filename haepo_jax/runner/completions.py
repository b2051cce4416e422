"""What a policy says in a token task, and what its training makes likelier: text for every logged row."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.running import EVALUATION_SEED
from haepo_jax.algorithms.state import TrainState
from haepo_jax.losses import plackett_luce_weights
from haepo_jax.rollout import Trajectory, collect_episodes, environment_keys
from haepo_jax.runner.observers import Observer, Row, RunInfo
from haepo_jax.runner.run_dir import RunDir, append_record, json_text, keep_rows


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


class CompletionLogger(Observer):
    """Writes `completions.jsonl`, a line for each completion.

    At every row but the first, the policy of the row before (of the first seed) completes new prompts. Since then
    training has changed the completions' log-likelihoods from `log_likelihood` to `log_likelihood_after`, and `weight` is
    the Plackett-Luce weight of that change within the group of one prompt. A task without tokens has none.
    """

    def __init__(self, directory: RunDir, prompts: int) -> None:
        self._file, self._prompts = directory.path / "completions.jsonl", prompts
        self._before: TrainState | None = None

    def on_start(self, info: RunInfo) -> None:
        self._decode: Any = getattr(info.algorithm.env, "decode", None)
        self._rows = info.rows
        group = getattr(info.algorithm, "group_size", 1)
        members = group if group > 1 else 8

        @jax.jit
        def play(before: TrainState, after: TrainState) -> Any:
            reset_key, step_key = jax.random.split(jax.random.fold_in(jax.random.key(EVALUATION_SEED), before.update))
            reset_keys = jnp.repeat(environment_keys(reset_key, self._prompts), members)
            step_keys = environment_keys(step_key, len(reset_keys))
            steps, *scored = play_and_score(info.algorithm, before, after, reset_keys, step_keys)
            weights = plackett_luce_weights(scored[0].reshape(-1, members)).reshape(-1)
            return steps.observation[0], steps.action, steps.mask, steps.decisions, weights, *scored

        self._play = play

    def on_compiled(self, seconds: float) -> None:
        if self._decode is not None:
            keep_rows(self._file, lambda line: line["row"] < self._rows)

    def on_row(self, row: Row, state: TrainState) -> None:
        if self._decode is None:
            return
        # What no policy needs may be large: the optimiser's moments, a replay buffer.
        state = dataclasses.replace(state, opt_state=None, reference=None, extra=None)
        # A copy, because the run continues in these buffers.
        state = jax.tree.map(lambda x: x[0] if len(row.update) > 1 else jnp.copy(x), state)
        if self._before is not None:
            lines = self._lines(*jax.device_get(self._play(self._before, state)))
            place = {"row": row.index, "env_steps": row.mean_steps}
            append_record(self._file, "".join(json_text(place | line) + "\n" for line in lines))
        self._before = state

    def _lines(
        self, first: Any, actions: Any, mask: Any, decided: Any, weights: Any, scores: Any, after: Any, returns: Any
    ) -> list[dict[str, Any]]:
        return [
            {
                "prompt": self._decode([first[k], *actions[mask[:, k] & ~decided[:, k], k]]),
                "completion": self._decode(actions[decided[:, k], k]),
                "reward": float(returns[k]),
                "weight": float(weights[k]),
                "log_likelihood": float(after[k] - scores[k]),
                "log_likelihood_after": float(after[k]),
            }
            for k in range(len(weights))
        ]
