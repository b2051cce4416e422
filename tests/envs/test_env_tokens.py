"""Token tasks: what is forced, what ends, what is paid; and that their demonstrations are right."""

from __future__ import annotations

import operator as operators
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.envs import TokenTask, check_environment
from haepo_jax.envs.tokens import join, number

TASKS: list[tuple[str, dict[str, int]]] = [
    ("addition", {}), ("addition", {"digits": 1}), ("reverse", {"length": 3}), ("countdown", {}), ("countdown", {"numbers": 2}),
]  # fmt: skip


def play(task: TokenTask, key: jax.Array, actions: jax.Array | None = None) -> Any:
    """One episode of these actions, or of its demonstration: start, actions, and for each step reward, valid actions,
    observation and whether it was the last."""
    start, first = task.reset(key)
    actions = task.demonstration(start) if actions is None else actions

    def step(now: Any, action: jax.Array) -> Any:
        after = task.step(key, now[0], action)
        return (after.state, after.observation), (after.reward, task.action_mask(now[0]), now[1], after.terminated)

    (end, _), steps = jax.lax.scan(step, (start, first), actions)
    return start, actions, end.completion, *steps


def answer_of(name: str, prompt: str, completion: str) -> bool:
    """Whether a completion is right, from the text alone."""
    if name == "addition":
        left, right = prompt[:-1].split("+")
        return int(left) + int(right) == int(completion)
    if name == "reverse":
        return prompt[:-1] == completion[::-1]
    terms, target = prompt[:-1].split("=")
    total: Any = None
    for operator, digit in re.findall(r"([-+*]?)(\d)", completion):
        by = {"+": operators.add, "-": operators.sub, "*": operators.mul}
        total = int(digit) if total is None else by[operator](total, int(digit))
    return sorted(re.findall(r"\d", completion)) == sorted(terms) and total == int(target)


@pytest.mark.parametrize(("name", "settings"), TASKS)
def test_demonstrations_are_right_and_the_prompt_is_forced(name: str, settings: Any) -> None:
    task = hx.make_env(f"haepo/{name}", **settings)
    assert hx.make_env(f"haepo/{name}", **settings) is task
    check_environment(task)
    keys = jax.random.split(jax.random.key(0), 200)
    start, actions, _, reward, valid, observation, last = jax.tree.map(
        np.asarray, jax.jit(jax.vmap(lambda key: play(task, key)))(keys)
    )
    texts = [(task.decode(p), task.decode(a)) for p, a in zip(start.prompt, start.answer, strict=True)]
    assert len(set(texts)) > 50 or name == "reverse"
    for i, (prompt, completion) in enumerate(texts):
        assert answer_of(name, prompt, completion), (prompt, completion)
        end = len(prompt) - 1 + len(completion)
        text = prompt + completion
        assert task.decode(actions[i]) == text[1:] and task.decode(observation[i][: end + 1]) == text
        np.testing.assert_array_equal(np.flatnonzero(last[i])[0], end)
        np.testing.assert_array_equal(reward[i][: end + 1], np.eye(end + 1)[end])
        forced = valid[i][: len(prompt) - 1]
        np.testing.assert_array_equal(forced.argmax(-1), actions[i][: len(prompt) - 1])
        assert np.all(forced.sum(-1) == 1) and np.all(valid[i][len(prompt) - 1 : end + 1])


@pytest.mark.parametrize(
    ("name", "prompt", "completion", "reward"),
    [
        ("addition", "17+85=", "102", 1), ("addition", "17+85=", "103", 0), ("addition", "17+85=", "102+", 0),
        ("addition", "7+5=", "", 0), ("addition", "0+0=", "0", 1), ("reverse", "abc=", "cba", 1), ("reverse", "abc=", "abc", 0),
        ("countdown", "357=22:", "3*5+7", 1), ("countdown", "357=22:", "5*3+7", 1), ("countdown", "357=22:", "7+3*5", 0),
        ("countdown", "357=22:", "3*7+1", 0), ("countdown", "357=22:", "3*5+77", 0), ("countdown", "357=22:", "3*5", 0),
        ("countdown", "357=22:", "3=5+7", 0), ("countdown", "255=-8:", "2-5-5", 1),
    ],
)  # fmt: skip
def test_what_a_completion_earns(name: str, prompt: str, completion: str, reward: float) -> None:
    task = hx.make_env(f"haepo/{name}")
    tokens = task.encode(prompt, task.max_prompt)
    right = {"addition": "102", "reverse": "cba", "countdown": "2-5-5" if "-8" in prompt else "3*5+7"}[name]
    right = {"0+0=": "0", "7+5=": "12"}.get(prompt, right)
    answer = task.encode(right, task.max_completion)
    given = task.encode(completion, task.max_completion)
    assert task.reward(jnp.asarray(tokens), jnp.asarray(answer), jnp.asarray(given)) == reward


def test_a_completion_that_does_not_end_is_cut_off_and_judged() -> None:
    task = hx.make_env("haepo/reverse", letters=2, length=2)
    longest = jnp.full(task.horizon, 1)
    start, _, completion, reward, _, _, last = play(task, jax.random.key(1), longest)
    said = len(task.decode(start.prompt))
    assert np.flatnonzero(last)[0] == said - 1 + task.max_completion - 1
    assert np.all(completion == 1) and not np.any(reward)


def test_numbers_and_parts() -> None:
    task = hx.make_env("haepo/addition")
    for value, text in ((0, "0"), (7, "7"), (70, "70"), (907, "907"), (1000, "000")):
        assert task.decode(number(jnp.int32(value), 3)) == text
    np.testing.assert_array_equal(join([1, 0, 2], 3, [0, 4], length=8), [1, 2, 3, 4, 0, 0, 0, 0])


@pytest.mark.slow
def test_an_own_task_trains() -> None:
    """Without a prompt, and with an answer that is no completion but what the reward is judged by."""

    def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(1, jnp.int32), jax.random.uniform(key)

    def reward(prompt: jax.Array, answer: jax.Array, completion: jax.Array) -> jax.Array:
        return jnp.sum(completion == 2) + 0 * answer

    task = TokenTask("own", "ab", 1, 3, sample, reward)
    algo = hx.EpisodicHAEPO(
        task,
        network="gru",
        hidden_sizes=(8,),
        total_steps=20_000,
        num_envs=32,
        group_size=8,
        log_points=1,
        num_epochs=4,
    )
    _, history = jax.jit(algo.train)(jax.random.key(0))
    assert history["eval_return"][-1] > 2.8
    with pytest.raises(TypeError, match="own has no demonstrations: its answers are not tokens"):
        task.demonstration(task.reset(jax.random.key(0))[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: hx.make_env("haepo/addition", digits=9), "haepo/addition: digits must be at most 8, got 9"),
        (lambda: hx.make_env("haepo/addition", digits=1.5), "digits must be an integer"),
        (lambda: hx.make_env("haepo/reverse", leters=3), "did you mean 'letters'"),
        (lambda: hx.make_env("haepo/countdown", numbers=1), "numbers must be at least 2"),
        (lambda: hx.make_env("haepo/hidden_cartpole", gravty=1.0), "did you mean 'gravity'"),
        (lambda: hx.make_env("haepo/addition").encode("1x", 3), "haepo/addition has no character 'x'"),
        (lambda: hx.make_env("haepo/addition").encode("1234", 3), "takes at most 3 tokens here"),
        (lambda: check_environment(TokenTask("own", "a", 3, 2, lambda key: (jnp.zeros(2, int), 0))), "prompt of shape"),
        (
            lambda: check_environment(
                TokenTask("own", "a", 2, 2, lambda key: (jnp.zeros(2, int), 0), lambda p, a, c: c * 1.0)
            ),
            "reward must return a scalar",
        ),
        (lambda: hx.Supervised("CartPole-v1"), "CartPole-v1 has no demonstrations"),
    ],
)
def test_what_cannot_be_used(build: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        build()


def test_a_hidden_cartpole_shows_positions_alone() -> None:
    env, whole = hx.make_env("haepo/hidden_cartpole"), hx.make_env("CartPole-v1")
    check_environment(env)
    key = jax.random.key(0)
    (state, seen), (_, all_of_it) = env.reset(key), whole.reset(key)
    np.testing.assert_array_equal(seen, all_of_it[jnp.array([0, 2])])
    after, after_all = env.step(key, state, jnp.int32(1)), whole.step(key, state, jnp.int32(1))
    np.testing.assert_array_equal(after.observation, after_all.observation[jnp.array([0, 2])])
