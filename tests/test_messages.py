"""Hints about unknown names."""

import pytest

from haepo_jax.messages import did_you_mean

NAMES = ["CartPole-v1", "Acrobot-v1", "brax/ant", "algo.learning_rate", "total_steps"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CartPol-v1", "; did you mean 'CartPole-v1'?"),
        ("cartpole", "; did you mean 'CartPole-v1'?"),
        ("ant", "; did you mean 'brax/ant'?"),
        ("learning_rat", "; did you mean 'algo.learning_rate'?"),
        ("steps", "; did you mean 'total_steps'?"),
        ("qqqqqq", ""),
        ("x" * 10_000, ""),
        ("", ""),
        (3, ""),
    ],
)
def test_did_you_mean(name: object, hint: str):
    assert did_you_mean(name, NAMES) == hint


def test_several_names():
    assert did_you_mean("go", ["go_9x9", "go_19x19", "chess"], 3) == ""
    assert did_you_mean("go_", ["go_9x9", "go_19x19", "chess"], 3).count(" or ") == 1
