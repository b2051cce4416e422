"""What a policy says in a token task, and what its training makes likelier: text for every logged row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.running import EVALUATION_SEED
from haepo_jax.algorithms.state import TrainState
from haepo_jax.losses import plackett_luce_weights
from haepo_jax.rollout import environment_keys
from haepo_jax.runner.alignment import FreshLogger, play_and_judge
from haepo_jax.runner.observers import Row, RunInfo


class CompletionLogger(FreshLogger):
    """Writes `completions.jsonl`, a line for each completion, and a table of them as TensorBoard text.

    The completions of the row before are judged: since then training has changed their log-likelihoods from
    `log_likelihood` to `log_likelihood_after`, and `weight` is the Plackett-Luce weight of that change within the group of
    one prompt, above 1/K where a completion was made likelier than the others. A task without tokens has none.
    """

    file_name = "completions.jsonl"

    def on_start(self, info: RunInfo) -> None:
        self._decode: Any = getattr(info.algorithm.env, "decode", None)
        super().on_start(info)

    def on_compiled(self, seconds: float) -> None:
        if callable(self._decode):
            super().on_compiled(seconds)

    def play(self, algorithm: Algorithm, before: TrainState, after: TrainState) -> Any:
        members = getattr(algorithm, "group_size", 1)
        members = members if members > 1 else 8
        reset_key, step_key = jax.random.split(jax.random.fold_in(jax.random.key(EVALUATION_SEED), before.update))
        reset_keys = jnp.repeat(environment_keys(reset_key, self.episodes), members)
        steps, fresh = play_and_judge(algorithm, before, after, reset_keys, environment_keys(step_key, len(reset_keys)))
        weights = plackett_luce_weights(fresh.scores.reshape(-1, members)).reshape(-1)
        return steps.observation[0], steps.action, steps.mask, steps.decisions, weights, fresh

    def lines(self, row: Row, played: Any) -> list[dict[str, Any]]:
        first, actions, mask, decided, weights, fresh = played
        lines = [
            {
                "prompt": self._decode([first[k], *actions[mask[:, k] & ~decided[:, k], k]]),
                "completion": self._decode(actions[decided[:, k], k]),
                "reward": float(fresh.returns[k]),
                "weight": float(weights[k]),
                "log_likelihood": float(fresh.log_likelihoods[k] - fresh.scores[k]),
                "log_likelihood_after": float(fresh.log_likelihoods[k]),
            }
            for k in np.arange(len(weights))
        ]
        if self.tensorboard is not None:
            self.tensorboard.text("completions", _markdown(lines), row.mean_steps)
        return lines


def _markdown(lines: list[dict[str, Any]]) -> str:
    rows = [" | ".join(f"`{v}`" if isinstance(v, str) else f"{v:.3f}" for v in line.values()) for line in lines]
    head = [" | ".join(name.replace("_", " ") for name in lines[0]), " | ".join("---" for _ in lines[0])]
    return "\n".join(f"| {line} |" for line in [*head, *rows])
