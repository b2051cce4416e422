"""What an algorithm accepts and refuses, and schedules."""

from __future__ import annotations

import abc
import dataclasses
import inspect
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import haepo_jax as hx
from haepo_jax.algorithms import declared
from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.segments import SegmentAlgorithm
from haepo_jax.algorithms.trajectory import TrajectoryAlgorithm
from haepo_jax.losses import AUTO
from tests.toy_envs import Drift

ENV = Drift()
DECLARED = {cls.__name__: cls for cls in map(declared.declaration, declared.ALGORITHMS)}


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "HAEPO",
            {"num_envs": 3, "replay_batches": 2},
            r"num_envs \* replay_batches=6 is not a multiple of num_minibatches \* group_size=64; .* are: 64",
        ),
        (
            "EpisodicHAEPO",
            {"num_envs": 30},
            "num_envs=30 is not a multiple of group_size=8; the nearest that are: 24 or 32",
        ),
        ("HAEPO", {"group_size": 1}, r"group_size=1 is out of range \[2, "),
        ("GRPO", {"group_size": 1}, r"group_size=1 is out of range \[2, "),
        ("HAEPO", {"replay_batches": 0}, r"replay_batches=0 is out of range \[1, "),
        ("HAEPO", {"history_decay": 1.1}, r"history_decay=1.1 is out of range \[0, 1\]"),
        ("HAEPO", {"temperature": "auto"}, "temperature='auto' must be a number"),
        ("GRPO", {"num_envs": 5}, "num_envs=5 is not a multiple of group_size=8; the nearest that are: 8"),
        (
            "DPO",
            {"num_envs": 32, "num_minibatches": 3},
            r"num_envs=32 is not a multiple of num_minibatches \* group_size=24; the nearest that are: 24 or 48",
        ),
        (
            "PPO",
            {"num_envs": 3, "num_steps": 5, "num_minibatches": 4},
            r"num_envs \* num_steps=15 is not a multiple of num_minibatches=4.* 12 or 16",
        ),
        ("HAEPO", {"num_envs": 0}, r"num_envs=0 is out of range \[1, "),
        ("PPO", {"learning_rate": -1}, r"learning_rate=-1 is out of range \[0, inf\)"),
        ("PPO", {"learning_rate": float("nan")}, "learning_rate=nan is out of range"),
        ("PPO", {"learning_rate": (1e-3, -1)}, r"learning_rate=\(0.001, -1\) is out of range"),
        ("PPO", {"learning_rate": (1e-3, 0, 0)}, "must be a number or a pair"),
        ("PPO", {"discount": 1.5}, r"discount=1.5 is out of range \[0, 1\]"),
        ("PPO", {"discount": (0.9, 0.99)}, r"discount=\(0.9, 0.99\) must be a number"),
        ("PPO", {"discount": math.sqrt}, "discount=<built-in function sqrt> must be a number"),
        ("PPO", {"learning_rate": (1e-3, math.sqrt)}, r"must be a pair \[start, end\] of numbers"),
        ("PPO", {"clip_eps": 0}, r"clip_eps=0 is out of range \(0, inf\)"),
        ("EpisodicHAEPO", {"history_decay": 0.0}, r"history_decay=0.0 is out of range \(0, 1\]"),
        ("EpisodicHAEPO", {"temperature": "warm"}, "temperature='warm' must be a number .*or 'auto'"),
        ("HAEPO", {"temperature": 0.0}, "temperature=0.0 is out of range"),
        ("EpisodicHAEPO", {"score": "log_rato"}, "score='log_rato' must be one of .*did you mean 'log_ratio'"),
        ("EpisodicHAEPO", {"score": "likelihood"}, "score='likelihood' requires credit=trajectory"),
        ("EpisodicHAEPO", {"normalize": "rank"}, "normalize='rank' requires credit=trajectory"),
        (
            "EpisodicHAEPO",
            {"credit": "trajectory", "history_decay": 0.9},
            "history_decay=0.9 requires credit=prefix; remove history_decay=",
        ),
        ("EpisodicHAEPO", {"normalize": "standardise"}, "did you mean 'standardize'"),
        ("EpisodicHAEPO", {"reference": "last"}, "reference='last' must be one of previous, initial"),
        ("HAEPO", {"activation": "gelu"}, "activation='gelu' must be one of tanh, relu, swish"),
        ("HAEPO", {"total_steps": 1.5}, "total_steps=1.5 must be an integer"),
        ("HAEPO", {"num_envs": math.inf}, "num_envs=inf must be an integer"),
        ("HAEPO", {"total_steps": 0}, "total_steps=0 is out of range"),
        ("HAEPO", {"hidden_sizes": (64, 0)}, "hidden_sizes=.*must be a list of positive integers"),
        ("HAEPO", {"hidden_sizes": 64}, "hidden_sizes=64 must be a list"),
        ("HAEPO", {"entropy_coef": "0.1"}, "entropy_coef='0.1' must be a number"),
        ("HAEPO", {"entropy_coef": None}, "entropy_coef=None must be a number"),
        ("EpisodicHAEPO", {"shared_start": 1}, "shared_start=1 must be true or false"),
        ("HAEPO", {"num_epochs": True}, "num_epochs=True must be an integer"),
        ("HAEPO", {"on_nan": "ignore"}, "on_nan='ignore' must be one of stop, skip"),
        ("DPO", {"beta": 0.0}, "beta=0.0 is out of range"),
        ("DPO", {"reference_interval": 0}, "reference_interval=0 is out of range"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(hx.HyperparameterError, match=message) as error:
        getattr(hx, method)(ENV, **settings)
    assert "\n" not in str(error.value)
    with pytest.raises(hx.HyperparameterError, match=message):
        DECLARED[method](**settings).check()
    with pytest.raises(hx.HyperparameterError, match=message):
        getattr(hx, method)(ENV).replace(**settings)


def test_an_environment_that_does_not_exist_or_fit() -> None:
    with pytest.raises(ValueError, match="CartPole-v1"):
        hx.HAEPO("CartPol-v1")
    with pytest.raises(TypeError, match="object is not an environment"):
        hx.HAEPO(object())


def test_a_static_number_cannot_be_traced() -> None:
    with pytest.raises(hx.HyperparameterError, match="num_envs=.* is traced, but static: it determines shapes"):
        jax.vmap(lambda n: hx.PPO(ENV, num_envs=n).num_steps)(np.arange(8, 10))


def test_what_may_be_used() -> None:
    algo = hx.PPO(
        ENV,
        hidden_sizes=[8, 8],
        learning_rate=[1e-3, 0.0],
        num_envs=np.int64(8),
        total_steps=1e4,
        clip_eps=jnp.float32(0.1),
        target_kl=None,
        value_clip_eps=0.2,
    )
    assert (algo.num_envs, algo.total_steps) == (8, 10_000) and type(algo.num_envs) is type(algo.total_steps) is int
    assert algo.hidden_sizes == (8, 8) and algo.learning_rate == (1e-3, 0.0)
    assert hx.EpisodicHAEPO(ENV, temperature="auto", group_size=4).temperature == AUTO
    # Arrays are trusted, tracers among them: a range that hangs on a value cannot be checked under jit.
    assert hx.PPO(ENV, learning_rate=jnp.float32(-1)).learning_rate == -1


@pytest.mark.parametrize("name", declared.ALGORITHMS)
def test_what_is_read_from_the_source_is_what_the_class_has(name: str) -> None:
    fields = [field for field in dataclasses.fields(declared.load(name)) if "kind" in field.metadata]
    found = declared.hyperparameters(name)
    assert list(found) == [field.name for field in fields] and len(found) > 15
    for field in fields:
        assert (found[field.name].default, found[field.name].metadata) == (field.default, field.metadata), field.name
        assert found[field.name].type == field.type
    assert declared.declaration(name).__doc__ == inspect.getdoc(declared.load(name))


def test_hyperparameters_are_read_without_jax() -> None:
    code = (
        "import sys; from haepo_jax.algorithms import declared as d; [d.declaration(n)().check() for n in d.ALGORITHMS]; "
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


CUSTOM = """
import haepo_jax as hx
import haepo_jax.algorithms.segments
from haepo_jax import GRPO
from haepo_jax.algorithms.fields import COUNT, HyperparameterError, leaf, static
from haepo_jax.algorithms.ppo import PPO as Base

class Mine(Base):
    'Mine.'
    num_epochs: int = static(3, int, "epochs", within=COUNT)
    value_clip_eps: float = leaf(2.0, "changed", within=COUNT)

    def check(self):
        super().check()
        if self.num_epochs == 7:
            raise HyperparameterError("num_epochs=7 is unlucky")

class Other(hx.HAEPO):
    pass

class Fifth(GRPO):
    pass

class Third(haepo_jax.algorithms.segments.SegmentAlgorithm, Unknown):
    odd: int = static(LIMIT, int, "of a name that fields does not have")

class Fourth(Mine):
    pass
"""


def test_a_custom_class_is_read_by_module_and_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_algorithms.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    found = declared.hyperparameters("my_algorithms:Mine")
    assert found["num_epochs"].default == 3 and found["clip_eps"].default == 0.1
    assert list(found) == list(declared.hyperparameters("ppo"))
    assert declared.declaration("my_algorithms:Mine").__doc__ == "Mine."
    for name in ("Mine", "Fourth"):
        with pytest.raises(hx.HyperparameterError, match="is unlucky"):
            declared.declaration(f"my_algorithms:{name}")(num_epochs=7).check()
    for name, base in (("Other", "haepo"), ("Fifth", "grpo")):
        assert list(declared.hyperparameters(f"my_algorithms:{name}")) == list(declared.hyperparameters(base))
    with pytest.raises(
        hx.HyperparameterError, match="my_algorithms:Third .* 'LIMIT' is not defined; .*only use names from"
    ):
        declared.hyperparameters("my_algorithms:Third")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("from .mine import Mine")
    (tmp_path / "my_package" / "mine.py").write_text("from haepo_jax import PPO\nclass Mine(PPO):\n    'Mine.'")
    assert declared.declaration("my_package:Mine").__doc__ == "Mine."
    for name in ("my_algorithms:None", "no_such_module:Mine", "no.such:Mine"):
        with pytest.raises(ImportError, match="there is no "):
            declared.declaration(name)


def test_no_class_is_more_than_two_above_an_algorithm() -> None:
    for name in declared.ALGORITHMS:
        above = [cls for cls in declared.load(name).__mro__[1:] if cls not in (object, abc.ABC)]
        assert len(above) == 2, above


def test_numbers_are_leaves_and_the_rest_is_structure() -> None:
    algo = hx.HAEPO(ENV, learning_rate=0.5, kl_coef=0.25)
    leaves = jax.tree.leaves(algo)
    assert 0.5 in leaves and 0.25 in leaves
    assert all(isinstance(leaf, float) for leaf in leaves)
    assert jax.tree.structure(algo) == jax.tree.structure(algo.replace(learning_rate=0.1))
    assert jax.tree.structure(algo) != jax.tree.structure(algo.replace(num_epochs=2))
    for field in dataclasses.fields(algo):
        if field.metadata.get("static"):
            hash(getattr(algo, field.name))


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_schedules(progress: float) -> None:
    """A number, a pair, a function of the share of steps done; a learning rate that is one number falls to 0."""
    scheduled = jax.jit(lambda algo, progress: algo.scheduled(progress))
    cosine = optax.cosine_decay_schedule(0.1, 1)
    algo = hx.EpisodicHAEPO(ENV, learning_rate=0.01, kl_coef=(2.0, 1.0), entropy_coef=cosine, temperature="auto")
    now = scheduled(algo, jnp.float32(progress))
    np.testing.assert_allclose(now.learning_rate, 0.01 * (1 - progress), rtol=1e-6)
    np.testing.assert_allclose(now.kl_coef, 2 - progress, rtol=1e-6)
    np.testing.assert_allclose(now.entropy_coef, cosine(progress), rtol=1e-5, atol=1e-8)
    assert now.temperature == algo.temperature
    assert now.history_decay == pytest.approx(0.99)

    # What is a schedule already, or is not to be annealed, is left as it is.
    kept = hx.HAEPO(ENV, learning_rate=0.01, anneal_learning_rate=False, temperature=(4.0, 2.0), kl_coef=1.0)
    now = scheduled(kept, jnp.float32(progress))
    np.testing.assert_allclose(now.learning_rate, 0.01, rtol=1e-6)
    np.testing.assert_allclose(now.temperature, 4 - 2 * progress, rtol=1e-6)
    np.testing.assert_allclose(now.kl_coef, 1.0)
    ramp = hx.PPO(ENV, learning_rate=(0.0, 0.02), clip_eps=lambda share: 0.1 + share)
    now = scheduled(ramp, jnp.float32(progress))
    np.testing.assert_allclose(now.learning_rate, 0.02 * progress, rtol=1e-6)
    np.testing.assert_allclose(now.clip_eps, 0.1 + progress, rtol=1e-6)
    own = hx.PPO(ENV, learning_rate=cosine)
    np.testing.assert_allclose(
        scheduled(own, jnp.float32(progress)).learning_rate, cosine(progress), rtol=1e-5, atol=1e-8
    )


def test_a_schedule_vmaps() -> None:
    ends = jnp.array([0.0, 1.0])
    found = jax.vmap(lambda end: hx.HAEPO(ENV).replace(kl_coef=(2.0, end)).scheduled(jnp.float32(0.5)).kl_coef)(ends)
    np.testing.assert_allclose(found, [1.0, 1.5])


def test_vectors_outside_the_unit_interval_are_normalised() -> None:
    key = jax.eval_shape(lambda: jax.random.key(0))
    for env, setting, expected in (
        ("CartPole-v1", None, True), ("CartPole-v1", False, False), ("Pendulum-v1", None, True),
        ("Catch-bsuite", None, False), ("haepo/random_walk", None, False), ("haepo/random_walk", True, True),
        ("Breakout-MinAtar", None, False), ("Pong-misc", None, False), ("haepo/reverse", None, False),
        ("FourRooms-misc", None, True),
    ):  # fmt: skip
        algo = hx.HAEPO(env, normalize_observations=setting)
        assert (jax.eval_shape(algo.init, key).normalizer is not None) == expected


def test_a_class_without_a_loss_or_update_cannot_be_made() -> None:
    for cls, missing in ((Algorithm, "update"), (TrajectoryAlgorithm, "loss"), (SegmentAlgorithm, "loss")):
        with pytest.raises(TypeError, match=f"abstract class {cls.__name__} .*{missing}"):
            cls(ENV)


@pytest.mark.parametrize("name", ["HAEPO", "EpisodicHAEPO"])
def test_weights_that_are_no_function(name: str) -> None:
    with pytest.raises(hx.HyperparameterError, match="weight_function='softmax' is not a function"):
        getattr(hx, name)("CartPole-v1", weight_function="softmax")
