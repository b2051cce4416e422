"""The table of names, and the one-line answers to wrong ones."""

import subprocess
import sys

import pytest

from haepo_jax.envs import list_envs, make_env, names, resolve_name


def test_gymnax_tasks_are_those_of_its_registry():
    registration = pytest.importorskip("gymnax.registration")
    available = [name for name in registration.registered_envs if name not in names.REFUSED]
    assert [name for name in list_envs() if "/" not in name] == available


def test_brax_tasks_are_those_of_its_registry():
    envs = pytest.importorskip("brax.envs")
    assert set(names.tasks_of("brax")) == set(envs._envs)
    assert set(f"brax/{name}" for name in names.tasks_of("brax")) <= set(list_envs())


def test_playground_tasks_are_those_of_its_registry():
    playground = pytest.importorskip("mujoco_playground")
    assert set(names.tasks_of("playground")) == set(playground.registry.ALL_ENVS)


def test_own_tasks_are_those_that_are_built():
    from haepo_jax.envs.tasks import TASKS

    assert list(names.HAEPO) == list(TASKS)


def test_names_need_no_jax():
    code = (
        "import sys; from haepo_jax.envs import list_envs, resolve_name; resolve_name('brax/ant'); assert list_envs();"
        "print([m for m in ('jax', 'gymnax', 'brax', 'mujoco', 'matplotlib') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_names_are_unique_and_resolve_to_themselves():
    assert len(set(list_envs())) == len(list_envs())
    assert all(resolve_name(name) == name for name in list_envs())
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
    with pytest.raises(TypeError, match="must be a string"):
        resolve_name(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="int is not an environment"):
        make_env(3)


def test_hints_name_what_is_installed_and_what_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(names, "is_installed", lambda prefix: prefix != "jumanji")
    monkeypatch.setattr(
        names, "tasks_of", lambda prefix: {"gymnax": ("CartPole-v1",), "brax": ("ant",)}.get(prefix, ())
    )
    with pytest.raises(ValueError, match="did you mean 'CartPole-v1'") as raised:
        resolve_name("CartPol-v1")
    assert "; not installed: jumanji)" in str(raised.value)
    with pytest.raises(ValueError) as raised:
        resolve_name("Snake-v1")  # of jumanji
    assert "did you mean" not in str(raised.value) and "not installed: jumanji" in str(raised.value)
    assert resolve_name("jumanji/Snake-v1") == "jumanji/Snake-v1"  # make_env says what to install


def test_of_a_library_that_is_missing_nothing_is_listed():
    code = (
        "import importlib.util as u; real = u.find_spec;"
        "u.find_spec = lambda name, *rest: None if name == 'brax' else real(name, *rest);"
        "from haepo_jax.envs import list_envs, make_env; assert not any('brax/' in name for name in list_envs());"
        "import sys; sys.modules['brax'] = None\n"
        "try: make_env('brax/ant')\nexcept ImportError as error: print(error)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "brax/ant requires Brax, but brax is not installed: pip install brax"
