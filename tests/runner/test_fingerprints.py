"""What tells one object from another when a run or a sweep is resumed."""

from __future__ import annotations

import dataclasses
import enum
import functools
import itertools
import logging
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import haepo_jax as hx
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.fingerprints import fingerprint
from tests.jobs import environment
from tests.toy_envs import Drift


class Holder:
    """An object with any attributes, which may hold itself."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)
        self.itself = self

    @functools.cached_property
    def total(self) -> int:
        return 3


Tile = enum.Enum("Tile", [f"TILE_{number}" for number in range(40)])


class Row(NamedTuple):
    size: int


def row_with_attribute(number: int) -> Any:
    """A tuple of a class that has an attribute of its own."""
    return type("Scaled", (Row,), {"scale": number, "__module__": __name__})(1)


def cells() -> Any:
    """A grid of objects that know their neighbours, so that there are very many paths through it."""
    grid = [[Holder(x=x, y=y) for x in range(8)] for y in range(8)]
    for x, y in itertools.product(range(8), repeat=2):
        grid[y][x].next = [grid[(y + 1) % 8][x], grid[y][(x + 1) % 8]]
    return grid[0][0]


def jitted(factor: int) -> Any:
    """An object whose method is compiled."""
    step = functools.partial(jax.jit, static_argnums=0)(lambda self, x: factor * x)
    return type("Jitted", (), {"step": step, "__module__": __name__})()


class Slotted:
    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


@dataclasses.dataclass(frozen=True)
class Pair:
    first: Any
    second: Any = 0


class Net(nn.Module):
    size: int = 2
    kernel: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(nn.Dense(self.size, kernel_init=self.kernel)(x))


def with_attribute(number: int) -> Any:
    """An object of a class that has an attribute of its own."""
    return type("Scaled", (), {"scale": number, "__module__": __name__})()


def falling(rate: float, done: Any) -> Any:
    return rate * (1 - done)


def adder(number: int) -> Callable[[int], int]:
    def add(x: int) -> int:
        return x + number

    return add


def default(number: int) -> Callable[..., int]:
    def add(x: int, y: int = number) -> int:
        return x + y

    return add


class Table(np.lib.mixins.NDArrayOperatorsMixin):
    """What numpy can read."""

    __module__ = "numpy.of.a.library"

    def __init__(self, number: int) -> None:
        self.number = number

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.full(3, self.number)


ONES = np.ones(5000)
CHANGED = np.where(np.arange(5000) == 2500, 2.0, ONES)  # in the part that repr leaves out

PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "a number": (lambda: 1, lambda: 2),
    "its type": (lambda: 1, lambda: 1.0),
    "a number in an object": (lambda: Holder(a=1), lambda: Holder(a=2)),
    "a nested object": (lambda: Holder(a=Holder(b=1)), lambda: Holder(a=Holder(b=2))),
    "a large array": (lambda: Holder(a=ONES), lambda: Holder(a=CHANGED)),
    "a large array of jax": (lambda: [jnp.asarray(ONES)], lambda: [jnp.asarray(CHANGED)]),
    "an array beside infinity": (lambda: jnp.array([1.0, jnp.inf]), lambda: jnp.array([2.0, jnp.inf])),
    "the sign of infinity": (lambda: jnp.array([1.0, jnp.inf]), lambda: jnp.array([1.0, -jnp.inf])),
    "a key": (lambda: jax.random.key(0), lambda: jax.random.key(1)),
    "an array's shape": (lambda: np.ones((2, 3)), lambda: np.ones((3, 2))),
    "an array of objects": (lambda: np.array([1, "a"], object), lambda: np.array([1, "b"], object)),
    "a slot": (lambda: Slotted(1), lambda: Slotted(2)),
    "a field": (lambda: Pair(1, (2, 3)), lambda: Pair(1, (2, 4))),
    "an element of a set": (lambda: {1, "a", (2, 3)}, lambda: {1, "b", (2, 3)}),
    "a value of a dict": (lambda: {"a": 1, "b": [2]}, lambda: {"a": 1, "b": [3]}),
    "where a list ends": (lambda: [[1], [2]], lambda: [[1, 2], []]),
    "the class": (lambda: with_attribute(1), lambda: with_attribute(2)),
    "a closure": (lambda: adder(1), lambda: adder(2)),
    "a default": (lambda: default(1), lambda: default(2)),
    "a number in a function": (lambda: lambda step: 0.1 * step, lambda: lambda step: 0.2 * step),
    "a schedule": (lambda: optax.linear_schedule(1.0, 0.0, 10), lambda: optax.linear_schedule(1.0, 0.0, 11)),
    "a jitted function": (lambda: jax.jit(adder(1)), lambda: jax.jit(adder(2))),
    "an argument": (lambda: functools.partial(max, 1), lambda: functools.partial(max, 2)),
    "a schedule's argument": (lambda: jax.tree_util.Partial(max, 1), lambda: jax.tree_util.Partial(max, 2)),
    "a tuple's class": (lambda: row_with_attribute(1), lambda: row_with_attribute(2)),
    "a member of an enum": (lambda: Holder(a=Tile(1)), lambda: Holder(a=Tile(2))),
    "a path": (lambda: Path("a"), lambda: Path("b")),
    "a private number": (lambda: Holder(_a=1), lambda: Holder(_a=2)),
    "a table": (lambda: Holder(a=Table(1)), lambda: Holder(a=Table(2))),
    "a distant object": (lambda: Holder(a=cells()), lambda: Holder(a=cells().next[0])),
    "a method's object": (lambda: types.MethodType(max, 1), lambda: types.MethodType(max, 2)),
    "a network's field": (lambda: Net(2), lambda: Net(3)),
    "a network's initialiser": (lambda: Net(2, nn.initializers.normal(0.1)), lambda: Net(2, nn.initializers.normal(0.2))),
    "an environment's setting": (
        lambda: hx.make_env("haepo/random_walk", length=5),
        lambda: hx.make_env("haepo/random_walk", length=7),
    ),
    "an environment's params": (lambda: hx.make_env("CartPole-v1"), lambda: hx.make_env("CartPole-v1", gravity=3.0)),
}  # fmt: skip


@pytest.mark.parametrize("one,other", PAIRS.values(), ids=PAIRS)
def test_a_fingerprint_is_of_what_an_object_holds(one: Any, other: Any) -> None:
    assert fingerprint(one()) == fingerprint(one()) != fingerprint(other()) == fingerprint(other())


def draw(held: Any) -> None:
    held.random.normal()
    held.logger.setLevel(logging.ERROR)
    hash(held.path), str(held.path)
    held._viewer, held._cache[1], held.iterator = logging.Formatter(), 2, iter([1])


@pytest.mark.parametrize(
    ("make", "use"),
    [
        (
            lambda: Holder(
                random=np.random.default_rng(0), logger=logging.getLogger("a"), path=Path("a"), iterator=iter([]),
                _viewer=None, _cache={}, lower=str.lower, get={}.get, kind=list[int], old=np.random.RandomState(0),
            ),
            draw,
        ),
        (lambda: Holder(a=jnp.linspace(1, 2, 1000)), lambda held: setattr(held, "a", held.a * (1 + 1e-6))),
        (lambda: jitted(2), lambda held: setattr(type(held), "step", type(jitted(3)).step)),
    ],
    ids=["what is a library's or a cache", "the last digits of a computed array", "the code of a jitted method"],
)  # fmt: skip
def test_what_is_not_part_of_a_fingerprint(make: Any, use: Any) -> None:
    held = make()
    before = fingerprint(held)
    use(held)
    assert fingerprint(held) == before == fingerprint(make()) and "(contents" in before


def test_of_what_cannot_be_read_the_name_counts() -> None:
    class Odd:
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError

    deep: Any = ()
    for _ in range(100_000):
        deep = (deep,)
    assert fingerprint(Odd()).endswith("Odd") and fingerprint(deep) == "builtins.tuple"


def test_a_fingerprint_is_not_of_what_changes_by_use() -> None:
    held, net = Holder(a=1), Net(2)
    before = fingerprint(held), fingerprint(net)
    assert held.total == 3
    net.init(jax.random.key(0), jnp.zeros(2))
    assert (fingerprint(held), fingerprint(net)) == before
    assert fingerprint(held).startswith(f"{__name__}.Holder (contents ")


def test_the_numbers_of_a_library_may_change_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(nn.initializers.zeros), fingerprint(nn.initializers.normal(0.1))
    function: Any = nn.initializers.zeros
    monkeypatch.setattr(function, "__code__", function.__code__.replace(co_consts=(*function.__code__.co_consts, 3)))
    assert (fingerprint(nn.initializers.zeros), fingerprint(nn.initializers.normal(0.1))) == before


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    code = "from tests.runner.test_fingerprints import *; print([fingerprint(one()) for one, _ in PAIRS.values()])"
    outputs = []
    for seed in ("1", "2"):
        job = subprocess.run(
            [sys.executable, "-c", code],
            env=environment() | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert job.returncode == 0, job.stderr
        outputs.append(job.stdout)
    assert outputs[0] == outputs[1] and outputs[0].count("contents") == len(PAIRS)


def test_a_run_is_not_resumed_with_other_objects(tmp_path: Path) -> None:
    def algorithm(size: int, rate: float) -> hx.PPO:
        schedule = jax.tree_util.Partial(falling, rate)
        small: dict[str, Any] = {"num_envs": 2, "num_steps": 4, "num_epochs": 1, "num_minibatches": 1, "log_points": 2}
        return hx.PPO(Drift(), policy=Net(size), learning_rate=schedule, total_steps=64, eval_episodes=2, **small)

    keywords: dict[str, Any] = {"run_dir": tmp_path, "final_eval_episodes": 2, "progress": False}
    hx.train(algorithm(2, 1e-3), **keywords)
    with pytest.warns(UserWarning, match="nothing was trained"):
        assert hx.train(algorithm(2, 1e-3), resume=True, **keywords).summary["updates"] > 0
    for other, name in ((algorithm(2, 2e-3), "learning_rate"), (algorithm(3, 1e-3), "policy")):
        with pytest.raises(ConfigError, match=rf"objects\.{name}='.* \(contents \w+\)', but the run in "):
            hx.train(other, resume=True, **keywords)
