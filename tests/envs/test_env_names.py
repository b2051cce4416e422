"""The table of names, and the one-line answers to wrong ones."""

import importlib.util
import subprocess
import sys

import pytest

from haepo_jax.envs import list_envs, make_env, names, resolve_name


def test_table_equals_gymnax_registry():
    registration = pytest.importorskip("gymnax.registration")
    available = [name for name in registration.registered_envs if name not in names.REFUSED]
    assert [name for name in list_envs() if "/" not in name] == available


def test_table_equals_brax_registry():
    pytest.importorskip("brax")
    from haepo_jax.envs.brax import _registry

    assert set(names.BRAX) == set(_registry("brax/ant"))
    assert set(f"brax/{name}" for name in names.BRAX) <= set(list_envs())


def test_table_equals_playground_registry():
    playground = pytest.importorskip("mujoco_playground")
    assert set(names.PLAYGROUND) == set(playground.registry.ALL_ENVS)


def test_names_need_no_jax():
    code = (
        "import sys; from haepo_jax.envs import list_envs, resolve_name; resolve_name('brax/ant'); assert list_envs();"
        "print([m for m in ('jax', 'gymnax', 'brax', 'mujoco', 'matplotlib') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_names_are_unique_and_resolve_to_themselves():
    assert len(set(names.ALL)) == len(names.ALL)
    assert all(resolve_name(name) == name for name in names.ALL)
    assert resolve_name("gymnax/CartPole-v1") == "CartPole-v1"


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole", "CartPole-v1"),
        ("gymnax/Acrobat-v1", "Acrobot-v1"),
        ("ant", "brax/ant"),
        ("brax/half_cheetah", "brax/halfcheetah"),
        ("haepo/randomwalk", "haepo/random_walk"),
    ],
)
def test_near_matches(wrong: str, meant: str):
    with pytest.raises(ValueError, match="unknown environment") as raised:
        resolve_name(wrong)
    assert repr(meant) in str(raised.value) and repr(wrong) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_names_that_are_refused():
    with pytest.raises(ValueError, match="downloads"):
        make_env("MNISTBandit-bsuite")
    with pytest.raises(ValueError, match="unknown environment"):
        make_env("qqqqqq")
    with pytest.raises(TypeError, match="is a string"):
        resolve_name(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="int is no environment"):
        make_env(3)


@pytest.mark.skipif(names.gymnax_is_modern(), reason="gymnax 1.x has them all")
@pytest.mark.skipif(importlib.util.find_spec("gymnax") is None, reason="gymnax is not installed")
@pytest.mark.parametrize("name", names.GYMNAX_1_ONLY)
def test_tasks_that_old_gymnax_lacks(name: str):
    assert name not in list_envs()
    with pytest.raises(ValueError, match="needs gymnax 1.x"):
        make_env(name)
