"""Custom networks whose outputs do not fit the spaces are refused at construction, in one line that says what would fit."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import haepo_jax as hx
from tests.toy_envs import GRU, Controls, Pair


@dataclasses.dataclass(frozen=True)
class Constant:
    """A network that puts out zeros of the shapes that it was made with: a tuple is a shape, a list or dict holds some."""

    shapes: Any

    def init(self, key: jax.Array, observation: Any) -> tuple[Any, Any]:
        return {}, ()

    def apply(self, params: Any, carry: Any, observation: Any, is_first: jax.Array) -> tuple[Any, Any]:
        return carry, self._zeros(self.shapes, jnp.shape(is_first))

    def _zeros(self, shapes: Any, lead: tuple[int, ...]) -> Any:
        if isinstance(shapes, Pairs):
            return {name: self._zeros(shape, lead) for name, shape in shapes.items}
        if isinstance(shapes, Parts):
            return tuple(self._zeros(shape, lead) for shape in shapes.items)
        return jnp.zeros((*lead, *shapes))


@dataclasses.dataclass(frozen=True)
class Parts:
    """A tuple of outputs."""

    items: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A dict of outputs."""

    items: tuple[tuple[str, Any], ...]


def controls(lever: Any = (2,), dials: Any = (5,), sliders: Any = Parts(((2,), (2,)))) -> Constant:
    return Constant(Pairs((("lever", lever), ("dials", Parts((dials, sliders))))))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("network", [Pair, GRU])
def test_logits_of_another_number_of_actions(network: Any, outputs: int) -> None:
    wanted = (
        rf"policy= does not fit CartPole-v1: for 2 discrete actions .*logits of shape \(2,\).* of shape \({outputs},\)"
    )
    with pytest.raises(ValueError, match=wanted) as error:
        hx.PPO("CartPole-v1", policy=network(outputs))
    assert "\n" not in str(error.value)
    hx.PPO("CartPole-v1", policy=network(2), value=network(0))


@pytest.mark.parametrize("algorithm", ["HAEPO", "PPO"])
@pytest.mark.parametrize("network", [Pair, GRU])
def test_a_value_that_is_no_scalar(network: Any, algorithm: str) -> None:
    with pytest.raises(
        ValueError, match=r"value= does not fit CartPole-v1: .*scalar, of shape \(\), .* of shape \(1,\)"
    ):
        getattr(hx, algorithm)("CartPole-v1", policy=network(2), value=network(1))


ACTOR_CRITIC = Parts((Parts(((1,), (1,))), ()))  # a policy's output beside a value, as other libraries have it


@pytest.mark.parametrize(
    "shapes", [(1,), (2,), Parts(((2,), (2,))), Parts(((1,), (3,))), Parts(((1,), (1,), (1,))), ACTOR_CRITIC], ids=str
)
def test_a_continuous_action_needs_a_mean_and_a_log_std(shapes: Any) -> None:
    wanted = r"policy= does not fit Pendulum-v1: .* a pair of mean and log-std of shape \(1,\)"
    with pytest.raises(ValueError, match=wanted):
        hx.PPO("Pendulum-v1", policy=Constant(shapes))
    hx.PPO("Pendulum-v1", policy=Constant(Parts(((1,), (1,)))))


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        (controls(lever=(3,)), "for 2 discrete actions its output must be logits of shape (2,), but is of shape (3,)"),
        (controls(dials=(6,)), "for MultiDiscrete(2, 3) its output must be logits of shape (5,), but is of shape (6,)"),
        (
            controls(sliders=Parts(((3,), (3,)))),
            "for a Box of shape (2,) its output must be a pair of mean and log-std",
        ),
        (controls(sliders=(2,)), "for a Box of shape (2,) its output must be a pair of mean and log-std"),
        (Constant(Pairs((("lever", (2,)),))), "its output must have the structure of the action space"),
        (Constant((9,)), "its output must have the structure of the action space"),
    ],
    ids=["lever", "dials", "sliders", "no log-std", "a part missing", "no dict"],
)
def test_the_parts_of_a_dictionary_of_actions(policy: Constant, wanted: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"policy= does not fit toy/controls: {wanted}")):
        hx.HAEPO(Controls(), policy=policy)


def test_a_policy_that_fits_a_dictionary_of_actions_is_accepted() -> None:
    algo = hx.HAEPO(Controls(), policy=controls(), num_envs=4, num_steps=2, group_size=4, num_minibatches=1)
    jax.eval_shape(algo.train_step, jax.eval_shape(algo.init, jax.random.key(0)))


@pytest.mark.parametrize("name", ["policy", "value"])
def test_a_network_that_cannot_be_hashed(name: str) -> None:
    @dataclasses.dataclass
    class Mutable:
        init, apply = Constant.init, Constant.apply

    with pytest.raises(TypeError, match=f"{name}=Mutable must be hashable, for instance by @dataclass"):
        hx.PPO("CartPole-v1", **{name: Mutable()})
