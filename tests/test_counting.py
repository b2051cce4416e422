import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax.counting import StepCount

EDGES = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33 + 7, 2**62]


def test_a_count_is_read_back_as_it_was_written() -> None:
    for value in EDGES:
        assert StepCount.of(value).to_int() == value
        assert type(StepCount.of(value).to_int()) is int


def test_adding_carries_past_32_bits() -> None:
    add = jax.jit(lambda count, more: count + more)
    for start in (2**31 - 3, 2**32 - 3, 2**40 - 3):
        for increment in (0, 1, 2, 3, 4, 2**31 - 1):
            assert add(StepCount.of(start), jnp.int32(increment)).to_int() == start + increment


def test_many_additions_in_a_compiled_loop_are_exact() -> None:
    steps, loops = 123_457_001, 300
    end = jax.jit(lambda count: jax.lax.fori_loop(0, loops, lambda _, c: c + jnp.int32(steps), count))(StepCount.of(5))
    assert end.to_int() == 5 + steps * loops > 2**35


def test_comparison() -> None:
    counts = jax.tree.map(lambda *x: jnp.stack(x), *[StepCount.of(value) for value in EDGES])
    below = jax.vmap(jax.vmap(lambda x, y: x < y, (None, 0)), (0, None))(counts, counts)
    assert below.tolist() == [[left < right for right in EDGES] for left in EDGES]


@pytest.mark.parametrize("total", [10, 500_000, 2**31 + 1, 2**32, 2**40, 2**62])
def test_share_of_a_total_of_any_size(total: int) -> None:
    fraction_of = jax.jit(lambda count: count.fraction_of(total))
    for share in (0.0, 0.25, 0.5, 0.999, 1.0, 3.0):
        done = int(total * share)
        found = fraction_of(StepCount.of(done))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, min(done / total, 1.0), rtol=1e-6)


def test_a_batch_of_counts() -> None:
    counts = jax.tree.map(lambda *x: jnp.stack(x), *[StepCount.of(value) for value in EDGES])
    assert counts.to_int().tolist() == EDGES
    moved = jax.vmap(lambda count: count + jnp.int32(2**31 - 1))(counts)
    assert moved.to_int().tolist() == [value + 2**31 - 1 for value in EDGES]
