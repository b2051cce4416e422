"""Names of other libraries, earlier names and misspelt ones: each gets a hint that names the right one."""

from __future__ import annotations

import dataclasses
import inspect

import jax
import pytest

import haepo_jax as hx
from haepo_jax.algorithms import other_names
from haepo_jax.algorithms.fields import COUNT, NOT_NEGATIVE, leaf, static
from haepo_jax.algorithms.other_names import ELSEWHERE, RENAMED, check_keywords, hint
from haepo_jax.runner.config import ALGORITHM_NAMES, RunConfig, hyperparameter_fields


@pytest.mark.parametrize(
    ("keyword", "ours"),
    [
        ("learning_rat", "learning_rate"), ("lr", "learning_rate"), ("gamma", "discount"), ("ent_coef", "entropy_coef"),
        ("clip_range", "clip_eps"), ("clip_coef", "clip_eps"), ("n_steps", "num_steps"), ("update_epochs", "num_epochs"),
        ("num_updates", "total_steps"), ("total_timesteps", "total_steps"), ("vf_coef", "value_coef"), ("GAMMA", "discount"),
    ],
)  # fmt: skip
def test_an_unknown_keyword_names_the_right_one(keyword: str, ours: str) -> None:
    with pytest.raises(TypeError) as error:
        hx.PPO("CartPole-v1", **{keyword: 1})
    assert str(error.value) == f"PPO has no hyperparameter {keyword!r}; did you mean {ours!r}?"
    with pytest.raises(TypeError, match=f"did you mean '{ours}'"):
        hx.PPO("CartPole-v1").replace(**{keyword: 1})


def test_a_keyword_like_nothing_and_one_of_another_algorithm() -> None:
    with pytest.raises(TypeError, match="^PPO has no hyperparameter 'zzzz'$"):
        hx.PPO("CartPole-v1", zzzz=1)
    with pytest.raises(TypeError, match="^HAEPO has no hyperparameter 'clip_range'"):
        hx.HAEPO("CartPole-v1", clip_range=0.2)


def test_the_signature_is_still_that_of_the_constructor() -> None:
    parameters = inspect.signature(hx.PPO).parameters
    assert next(iter(parameters)) == "env" and parameters["clip_eps"].default == 0.1
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def test_a_subclass_may_have_a_constructor_of_its_own() -> None:
    class Mine(hx.PPO):
        def __init__(self, size: int) -> None:
            super().__init__("CartPole-v1", num_envs=size)

    assert Mine(size=8).num_envs == 8
    with pytest.raises(TypeError, match="Mine has no hyperparameter 'sise'; did you mean 'size'"):
        Mine(sise=8)  # type: ignore[call-arg]


def test_a_subclass_without_decorators_cannot_have_other_values() -> None:
    class Assigned(hx.PPO):
        num_epochs = 4

    class Annotated(hx.PPO):
        warmth: float = leaf(0.5, "how warm it is", within=NOT_NEGATIVE)

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Unannotated(hx.PPO):
        num_epochs = 4

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Right(hx.PPO):
        num_epochs: int = static(4, int, "epochs", within=COUNT)

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Slotted(hx.PPO):
        num_epochs: int = static(4, int, "epochs", within=COUNT)

    class Inherits(Right):
        """With another method at most."""

    for wrong, name in ((Assigned, "num_epochs"), (Annotated, "warmth"), (Unannotated, "num_epochs")):
        with pytest.raises(
            TypeError, match=rf"^{wrong.__name__}\.{name} has no effect: write it as {name}: <type> = st"
        ):
            wrong("CartPole-v1")
    assert all(right("CartPole-v1").num_epochs == 4 for right in (Right, Slotted, Inherits))


def test_a_renamed_setting_gives_its_new_name() -> None:
    assert hint("history_batches", ["seed", "algo.replay_batches"]) == "; it is now named 'algo.replay_batches'"
    with pytest.raises(TypeError, match="no hyperparameter 'history_batches'; it is now named 'replay_batches'$"):
        hx.HAEPO("CartPole-v1", history_batches=1)


def test_the_tables_name_what_there_is() -> None:
    """Every name leads to a setting, and none is a setting itself, except of another algorithm (as `beta` of DPO)."""
    algorithms = {name: {*hyperparameter_fields(name)} for name in ALGORITHM_NAMES}
    settings = {field.name for field in dataclasses.fields(RunConfig)}
    known = settings.union(*algorithms.values())
    assert {*ELSEWHERE.values()} <= known
    for name, ours in ELSEWHERE.items():
        assert name not in settings and all(not {name, ours} <= fields for fields in algorithms.values()), name
    for old, new in RENAMED.items():
        assert (old in known) != (new in known), "one of the two"
    assert len(ELSEWHERE) == sum(len(names.split()) for names in other_names._ELSEWHERE.values()), "none is there twice"


def test_a_class_that_takes_any_keyword_is_left_alone() -> None:
    class Any:
        def __init__(self, **keywords: int) -> None:
            pass

    check_keywords(Any, ["whatever"])
