"""What is compiled does not grow with what only makes a run longer: loops stay loops."""

from __future__ import annotations

from typing import Any

import jax
import pytest

import haepo_jax as hx
from tests.toy_envs import Drift

SMALL: dict[str, Any] = {
    "num_envs": 16, "num_epochs": 2, "num_minibatches": 2, "hidden_sizes": (4,), "total_steps": 1000, "log_points": 2,
    "eval_episodes": 2,
}  # fmt: skip


def operations(name: str, horizon: int = 24, **changes: int) -> int:
    """In the whole of a training, as it is handed to the compiler."""
    own = {"num_steps": 8} if name == "PPO" else {"group_size": 2}
    algo = getattr(hx, name)(Drift(horizon=horizon), **{**SMALL, **own, **changes})
    return str(jax.jit(algo.train).lower(jax.random.key(0)).as_text()).count(" = ")


@pytest.mark.parametrize("name", ["HAEPO", "PPO"])
def test_no_number_of_turns_is_compiled_in(name: str) -> None:
    longer = {"num_epochs": 40, "num_minibatches": 8, "horizon": 700, "total_steps": 10**9, "log_points": 90}
    # jax splits a key into an odd number of others with a few operations more.
    assert operations(name, **longer) <= 1.05 * operations(name)


def test_the_optimiser_is_compiled_once_and_not_for_every_prefix() -> None:
    """One that costs 100 operations more makes the program about as much larger, not three times that."""

    class Longer(hx.EpisodicHAEPO):
        def apply_gradients(self, params: Any, opt_state: Any, gradients: Any) -> Any:
            for _ in range(100):
                gradients = jax.tree.map(lambda g: g * 1.5, gradients)
            return super().apply_gradients(params, opt_state, gradients)

    jax.tree_util.register_dataclass(Longer)
    settings = {**SMALL, "group_size": 2}
    sizes = []
    for kind in (hx.EpisodicHAEPO, Longer):
        algo = kind(Drift(horizon=24), **settings)
        lowered = jax.jit(algo.train_step).lower(jax.eval_shape(algo.init, jax.random.key(0)))
        sizes.append(str(lowered.as_text()).count("multiply"))
    assert sizes[1] - sizes[0] == 400  # four leaves: two layers of weights and biases
