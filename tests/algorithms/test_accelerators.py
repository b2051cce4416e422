"""What an update asks of an accelerator, read from the program as it is lowered for one; no accelerator is needed.

On a GPU every operation that XLA cannot fuse is a kernel to start, a loop starts its kernels in every turn, and a conditional
makes the host wait for the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.algorithms import optimizers
from haepo_jax.losses import numerics

SMALL: dict[str, Any] = {"num_envs": 4, "num_epochs": 2, "hidden_sizes": (8,), "total_steps": 1000}
SEGMENTS: dict[str, Any] = {**SMALL, "num_steps": 6}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "HAEPO": {**SEGMENTS, "num_minibatches": 2, "group_size": 2, "replay_batches": 2},
    "PPO": {**SEGMENTS, "num_minibatches": 2},
    "EpisodicHAEPO": {**SMALL, "num_minibatches": 1, "group_size": 2},
    "GRPO": {**SMALL, "num_minibatches": 1, "group_size": 2},
    "DPO": {**SMALL, "num_minibatches": 1, "group_size": 2},
}
TASKS: dict[str, dict[str, Any]] = {
    "mlp": {"env": "CartPole-v1"},
    "transformer": {"env": "haepo/reverse", "network": "transformer", "num_heads": 2},
    "gru": {"env": "CartPole-v1", "network": "gru"},
}
CONDITIONALS = ("stablehlo.case", "stablehlo.if")
HOST = ("stablehlo.infeed", "stablehlo.outfeed", "stablehlo.send", "stablehlo.recv")


def algorithm(name: str, kind: str) -> Any:
    settings = {**ALGORITHMS[name], **TASKS[kind]}
    return getattr(hx, name)(hx.make_env(settings.pop("env")), **settings)


def abstract_state(algo: Any) -> Any:
    return jax.eval_shape(algo.init, jax.eval_shape(lambda: jax.random.key(0)))


def decided(operation: Any) -> bool:
    """Whether it is a conditional that the platform has decided: its index is a constant, or one branch is left."""
    if operation.name not in CONDITIONALS:
        return False
    owner = operation.operands[0].owner
    return len(operation.regions) == 1 or getattr(owner, "name", "") == "stablehlo.constant"


@functools.cache
def operations(name: str, kind: str, platform: str = "cuda") -> list[tuple[tuple[int, ...], str, str]]:
    """Of one update, lowered for a platform: the loops that each operation is in, numbered, its name, and what it calls."""
    algo = algorithm(name, kind)
    lowered = jax.jit(algo.train_step).trace(abstract_state(algo)).lower(lowering_platforms=(platform,))
    module = lowered.compiler_ir("stablehlo")
    functions = {op.attributes["sym_name"].value: op for op in module.body.operations}
    loops = iter(range(10**6))

    def within(operation: Any, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], str, str]]:
        for region in operation.regions:
            for block in region.blocks:
                for inner in block.operations:
                    attributes = inner.operation.attributes
                    target = next(
                        (str(attributes[key]) for key in ("callee", "call_target_name") if key in attributes), ""
                    )
                    if not decided(inner.operation):
                        yield path, inner.operation.name, target
                    turn = (*path, next(loops)) if inner.operation.name == "stablehlo.while" else path
                    yield from within(inner, turn)
                    if inner.operation.name == "func.call":
                        yield from within(functions[attributes["callee"].value], turn)

    return list(within(functions["main"], ()))


def depths(name: str, kind: str, kinds: tuple[str, ...], platform: str = "cuda") -> list[int]:
    """How many loops each operation of these kinds is in."""
    return [len(path) for path, operation, _ in operations(name, kind, platform) if operation in kinds]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "mlp") for name in ALGORITHMS),
        ("HAEPO", "transformer"),
        *(pytest.param(name, "transformer", marks=pytest.mark.slow) for name in ALGORITHMS if name != "HAEPO"),
    ],
)
def test_an_update_is_a_loop_over_environment_steps_and_one_over_gradient_steps(name: str, kind: str) -> None:
    """None inside them: sums over time in a loss, and advantages, take no loop of their own."""
    assert depths(name, kind, ("stablehlo.while",)) == [0, 0]


def test_a_recurrent_network_has_its_own_loop_over_time_and_nothing_else_does() -> None:
    inner = [depth for depth in depths("PPO", "gru", ("stablehlo.while",)) if depth]
    assert inner and set(inner) == {1}


@pytest.mark.parametrize(("name", "kind"), [("HAEPO", "mlp"), ("PPO", "mlp"), ("HAEPO", "transformer"), ("PPO", "gru")])
def test_the_host_waits_for_nothing_in_an_update(name: str, kind: str) -> None:
    assert depths(name, kind, CONDITIONALS) == []
    # On a CPU, where waiting costs nothing, starts are drawn and final values computed only where they are needed.
    assert depths(name, kind, CONDITIONALS, "cpu") == [1, 1]


@pytest.mark.parametrize("name", ["EpisodicHAEPO", "GRPO", "DPO"])
def test_an_episode_is_stepped_without_conditionals(name: str) -> None:
    rollout = min(path for path, *_ in operations(name, "mlp") if path)
    assert not [op for path, op, _ in operations(name, "mlp") if path == rollout and op in CONDITIONALS]


@pytest.mark.parametrize("name", ["HAEPO", "PPO"])
def test_the_orders_of_all_epochs_are_sorted_at_once_and_before_them(name: str) -> None:
    assert depths(name, "mlp", ("stablehlo.sort",)) == [0]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_update_calls_back_or_transfers(name: str) -> None:
    assert not [target for *_, target in operations(name, "mlp") if "callback" in target]
    assert depths(name, "mlp", HOST) == []


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_update_has_a_number_of_64_bits(name: str) -> None:
    algo = algorithm(name, "mlp")
    assert "64[" not in str(jax.make_jaxpr(algo.train_step)(abstract_state(algo)))


# What is computed differently on accelerators gives the same.


@pytest.fixture
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    def default_of(*args: Any, default: Callable[..., Any], **_: Any) -> Any:
        return default(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", default_of)


def updates(name: str, kind: str, count: int = 3) -> tuple[Any, Any]:
    algo = algorithm(name, kind)
    state, metrics = algo.init(jax.random.key(5)), None
    step = jax.jit(lambda state: algo.train_step(state))
    for _ in range(count):
        state, metrics = step(state)
    return state, metrics


@pytest.mark.parametrize(("name", "kind"), [("HAEPO", "mlp"), pytest.param("PPO", "gru", marks=pytest.mark.slow)])
def test_the_first_updates_are_those_of_a_cpu(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    expected, expected_metrics = updates(name, kind)
    request.getfixturevalue("as_on_an_accelerator")
    state, metrics = updates(name, kind)
    chex.assert_trees_all_close(state.params, expected.params, atol=1e-6, rtol=1e-7)
    chex.assert_trees_all_equal(state.extra.envs.state, expected.extra.envs.state)
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", [numerics._sum_by_steps, numerics._sum_by_doubling])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 33])
def test_decayed_sums_equal_their_definition(way: Callable[..., jax.Array], reverse: bool, length: int) -> None:
    rng = np.random.default_rng(length)
    x, decay = rng.normal(size=(2, length, 5)).astype(np.float32)
    decay = np.where(rng.random(decay.shape) < 0.3, 0, np.abs(decay) % 1).astype(np.float32)
    start = rng.normal(size=5).astype(np.float32)
    expected, total = np.zeros((length, 5)), start.astype(np.float64)
    for t in reversed(range(length)) if reverse else range(length):
        total = decay[t].astype(np.float64) * total + x[t]
        expected[t] = total
    np.testing.assert_allclose(
        way(*map(jnp.asarray, (x, decay, start)), reverse=reverse), expected, rtol=2e-5, atol=2e-6
    )

    weights = rng.normal(size=x.shape)
    gradient = jax.grad(lambda x: jnp.sum(way(x, *map(jnp.asarray, (decay, start)), reverse=reverse) * weights))(
        jnp.asarray(x)
    )
    change = np.zeros_like(expected)
    total = np.zeros(5)
    for t in range(length) if reverse else reversed(range(length)):
        total = total + weights[t]
        change[t] = total
        total = total * decay[t]
    np.testing.assert_allclose(gradient, change, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("way", [numerics._sum_by_steps, numerics._sum_by_doubling])
def test_nothing_gets_through_a_decay_of_zero(way: Callable[..., jax.Array]) -> None:
    x = jnp.array([1.0, jnp.nan, 1.0, 1.0])
    found = way(x, jnp.array([0.5, 0.5, 0.0, 0.5]), jnp.float32(0), reverse=False)
    np.testing.assert_array_equal(found, [1.0, np.nan, 1.0, 1.5])


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_means_and_norms_at_once_are_those_one_by_one() -> None:
    live = jnp.array([[True, False], [True, True]])
    x = jnp.array([[1.0, jnp.nan], [2.0, 6.0]])
    np.testing.assert_allclose(numerics.masked_means(live, x, ~live), [3.0, 0.0])
    np.testing.assert_array_equal(numerics.masked_means(jnp.zeros_like(live), x), [0.0])
    tree = {"a": jnp.full((2, 2), 2.0), "b": jnp.array(3.0)}
    assert float(optimizers.global_norm(tree)) == 5.0
    clip = optimizers.clip_by_global_norm(1.0)
    np.testing.assert_allclose(optimizers.global_norm(clip.update(tree, clip.init(tree))[0]), 1.0, rtol=1e-6)


@pytest.mark.parametrize("standardised", [False, True])
def test_memory_of_an_update(standardised: bool) -> None:
    """The replay buffer is updated in place: an update takes at most 2.5 times the memory of the stored steps, and that of their
    standardised observations."""
    algo = hx.HAEPO("CartPole-v1", num_envs=1024, num_steps=256, total_steps=10**7, normalize_observations=standardised)
    state = abstract_state(algo)
    memory = jax.jit(algo.train_step, donate_argnums=0).lower(state).compile().memory_analysis()
    stored = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.extra.replay))
    assert memory.alias_size_in_bytes > stored
    more = state.extra.replay.segment.steps.observation.size * 4 if standardised else 0
    assert memory.temp_size_in_bytes + memory.argument_size_in_bytes < 2.5 * stored + more
