"""Token tasks: a prompt, a completion with one token per action, and a verifiable reward at its end.

The prompt is part of the episode: its tokens are forced, that is, the only valid actions until the prompt is complete.
So the observation is just the last token, a recurrent policy is a language model, a forced token has probability one
and no gradient, and every algorithm applies. Forced tokens without reward do not count in means over steps; see
`haepo_jax.rollout.Trajectory.decisions`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.envs.base import Array, Discrete, Replaceable, TimeStep, static_field
from haepo_jax.envs.kwargs import check_range

END = 0
"""The token that ends a completion, and pads prompts, answers and completions."""

Sample: TypeAlias = Callable[[Array], tuple[Array, Any]]
Reward: TypeAlias = Callable[[Array, Any, Array], Array]


def exact_match(prompt: Array, answer: Array, completion: Array) -> Array:
    """1 if the completion equals the answer, including its end; else 0."""
    return jnp.all(completion == answer).astype(jnp.float32)


class TokenState(NamedTuple):
    """prompt: (P,) int32; answer: passed to the reward; completion: (C,) int32, so far; time: () int32, steps so
    far."""

    prompt: Array
    answer: Any
    completion: Array
    time: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TokenTask(Replaceable):
    """A token task, defined by a prompt sampler and a reward, both pure JAX functions.

    Attributes:
      name: name of the task.
      alphabet: one character per token except `END`; token i is `alphabet[i - 1]`.
      max_prompt: P, maximum prompt length in tokens.
      max_completion: C, maximum completion length in tokens, including `END`; longer completions are cut off.
      sample: key -> prompt (P,) int32 and answer, both padded with `END`. The answer can be anything that the reward
        needs; for learning from demonstrations (`algo=supervised`) it must be a correct completion (C,).
      reward: prompt (P,), answer, completion (C,) -> () float32, evaluated at the end of the completion.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from haepo_jax.envs import TokenTask
      >>> def sample(key):
      ...     prompt = jax.random.randint(key, (5,), 1, 3)  # of a and b
      ...     return prompt, jnp.array([1 + jnp.sum(prompt == 2) % 2, 0])  # b if the number of b is odd
      >>> task = TokenTask("parity", alphabet="ab", max_prompt=5, max_completion=2, sample=sample)
      >>> task.decode([1, 2, 2, 0, 0])
      'abb'
    """

    name: str = static_field()
    alphabet: str = static_field()
    max_prompt: int = static_field()
    max_completion: int = static_field()
    sample: Sample = static_field()
    reward: Reward = static_field(default=exact_match)

    @property
    def horizon(self) -> int:
        return self.max_prompt - 1 + self.max_completion

    @property
    def observation_space(self) -> Discrete:
        return Discrete(len(self.alphabet) + 1)

    @property
    def action_space(self) -> Discrete:
        return Discrete(len(self.alphabet) + 1)

    def reset(self, key: Array) -> tuple[TokenState, Array]:
        """Samples a prompt; its first token is the first observation."""
        prompt, answer = self.sample(key)
        if jnp.shape(prompt) != (self.max_prompt,):
            raise TypeError(
                f"{self.name}: sample must return a prompt of shape ({self.max_prompt},), got {jnp.shape(prompt)}"
            )
        prompt = jnp.asarray(prompt, jnp.int32)
        state = TokenState(
            prompt, jax.tree.map(jnp.asarray, answer), jnp.zeros(self.max_completion, jnp.int32), jnp.int32(0)
        )
        return state, prompt[0]

    def step(self, key: Array, state: TokenState, action: Array) -> TimeStep:
        """Appends a token to the completion, or the next forced token of the prompt."""
        forced, place = self._forced(state), state.time + 1 - self._prompt_length(state)
        token = jnp.where(forced, self._next_of_prompt(state), action)
        completion = jnp.where(jnp.arange(self.max_completion) == place, token, state.completion)
        ended = ~forced & ((token == END) | (place >= self.max_completion - 1))
        reward = jnp.asarray(self.reward(state.prompt, state.answer, completion), jnp.float32)
        if reward.shape != ():
            raise TypeError(f"{self.name}: reward must return a scalar, got shape {reward.shape}")
        state = TokenState(state.prompt, state.answer, completion, state.time + 1)
        return TimeStep(state, token, jnp.where(ended, reward, 0.0), ended, jnp.zeros((), bool))

    def action_mask(self, state: TokenState) -> Array:
        """All tokens, or only the next token of an unfinished prompt."""
        tokens = jnp.arange(self.action_space.n)
        return jnp.where(self._forced(state), tokens == self._next_of_prompt(state), True)

    def demonstration(self, state: TokenState) -> Array:
        """The actions of an expert from an initial state, (horizon,) int32: the rest of the prompt, then the answer.

        Raises:
          TypeError: the answer is not a completion.
        """
        answer = state.answer
        if jnp.shape(answer) != (self.max_completion,) or not jnp.issubdtype(jnp.asarray(answer).dtype, jnp.integer):
            raise TypeError(
                f"{self.name} has no demonstrations: its answers are not tokens of shape ({self.max_completion},)"
            )
        return join(state.prompt[1:], answer, length=self.horizon)

    def encode(self, text: str, length: int) -> np.ndarray[Any, Any]:
        """Encodes text as tokens (length,) int32, padded with `END`; raises ValueError for an unknown character."""
        unknown = sorted(set(text) - set(self.alphabet))
        if unknown or len(text) > length:
            what = f"has no character {unknown[0]!r}" if unknown else f"takes at most {length} tokens here"
            raise ValueError(f"{self.name} {what}, got {text!r}")
        return np.array([self.alphabet.index(c) + 1 for c in text] + [END] * (length - len(text)), np.int32)

    def decode(self, tokens: Any) -> str:
        """Decodes tokens to text, up to the first `END`."""
        ids = np.asarray(tokens).tolist()
        return "".join(self.alphabet[i - 1] for i in ids[: ids.index(END) if END in ids else None])

    def _prompt_length(self, state: TokenState) -> Array:
        # A task without a prompt starts from `END`.
        return jnp.maximum(jnp.sum(state.prompt != END, dtype=jnp.int32), 1)

    def _forced(self, state: TokenState) -> Array:
        return state.time + 1 < self._prompt_length(state)

    def _next_of_prompt(self, state: TokenState) -> Array:
        return state.prompt[jnp.minimum(state.time + 1, self.max_prompt - 1)]


def join(*parts: Any, length: int) -> Array:
    """Concatenates padded sequences or single tokens; the result is padded with `END` to (length,) int32."""
    tokens = jnp.concatenate([jnp.atleast_1d(jnp.asarray(part, jnp.int32)) for part in parts])
    tokens = tokens[jnp.argsort(tokens == END, stable=True)]
    return jnp.pad(tokens, (0, max(0, length - len(tokens))))[:length]


def number(value: Array, digits: int) -> Array:
    """A number below 10^digits as tokens (digits,), padded, leading digit first; "0" to "9" are the tokens 1 to 10."""
    powers = jnp.array([10**i for i in reversed(range(digits))])
    leading = (value < powers) & (powers > 1)
    return join(jnp.where(leading, END, value // powers % 10 + 1), length=digits)


@functools.cache
def make_addition(*, digits: int = 2) -> TokenTask:
    """Addition of two numbers: the answer to "17+85=" is "102". The reward of a correct answer is 1.

    Args:
        digits: maximum number of digits, 1 to 8.

    Raises:
        ValueError: out of range.
    """
    check_range("haepo/addition: digits", digits, 1, 8)
    alphabet = "0123456789+="
    plus, equals = 11, 12
    longest = 2 * digits + 2

    def sample(key: Array) -> tuple[Array, Array]:
        terms = jax.random.randint(key, (2,), 0, 10**digits)
        prompt = join(number(terms[0], digits), plus, number(terms[1], digits), equals, length=longest)
        return prompt, join(number(terms[0] + terms[1], digits + 1), length=digits + 2)

    return TokenTask("haepo/addition", alphabet, longest, digits + 2, sample)


@functools.cache
def make_reverse(*, letters: int = 10, length: int = 6) -> TokenTask:
    """Reversal of a word: the answer to "face=" is "ecaf". The reward of a correct answer is 1.

    Args:
        letters: size of the alphabet, 2 to 26.
        length: maximum word length, 1 to 1000; lengths are uniformly distributed.

    Raises:
        ValueError: out of range.
    """
    check_range("haepo/reverse: letters", letters, 2, 26)
    check_range("haepo/reverse: length", length, 1, 1000)
    equals = letters + 1

    def sample(key: Array) -> tuple[Array, Array]:
        word_key, length_key = jax.random.split(key)
        size = jax.random.randint(length_key, (), 1, length + 1)
        word = jnp.where(jnp.arange(length) < size, jax.random.randint(word_key, (length,), 1, letters + 1), END)
        return join(word, equals, length=length + 1), join(word[::-1], length=length + 1)

    alphabet = "abcdefghijklmnopqrstuvwxyz"[:letters] + "="
    return TokenTask("haepo/reverse", alphabet, length + 1, length + 1, sample)


@functools.cache
def make_countdown(*, numbers: int = 3) -> TokenTask:
    """Numbers from 1 to 9 must be combined to a target with +, - and *, evaluated from left to right.

    An answer to "357=22:" is "3*5+7"; the reward is 1 for any expression that uses each number once and evaluates to
    22. Every target is reachable.

    Args:
        numbers: how many numbers, 2 to 6.

    Raises:
        ValueError: out of range.
    """
    check_range("haepo/countdown: numbers", numbers, 2, 6)
    alphabet = "0123456789+-*=:"
    first_operator, minus, equals, colon = 11, 12, 14, 15
    longest, completed = 2 * numbers + 3, 2 * numbers

    def value(terms: Array, operators: Array) -> Array:
        total = terms[0]
        for term, operator in zip(terms[1:], operators, strict=True):
            total = jnp.select([operator == 0, operator == 1], [total + term, total - term], total * term)
        return total

    def sample(key: Array) -> tuple[Array, Array]:
        term_key, operator_key, order_key = jax.random.split(key, 3)
        terms = jax.random.randint(term_key, (numbers,), 1, 10)
        operators = jax.random.randint(operator_key, (numbers - 1,), 0, 3)
        target = value(terms, operators)
        expression = jnp.zeros(completed, jnp.int32).at[:-1:2].set(terms + 1)
        expression = expression.at[1:-2:2].set(operators + first_operator)
        shown = jax.random.permutation(order_key, terms) + 1
        sign = jnp.where(target < 0, minus, END)
        return join(shown, equals, sign, number(jnp.abs(target), numbers), colon, length=longest), expression

    def reward(prompt: Array, answer: Array, completion: Array) -> Array:
        terms, operators = completion[:-1:2] - 1, completion[1:-2:2] - first_operator
        same = jnp.all(jnp.sort(terms) == jnp.sort(answer[:-1:2] - 1))
        valid = same & jnp.all((operators >= 0) & (operators <= 2)) & (completion[-1] == END)
        right = value(terms, operators) == value(answer[:-1:2] - 1, answer[1:-2:2] - first_operator)
        return (valid & right).astype(jnp.float32)

    return TokenTask("haepo/countdown", alphabet, longest, completed, sample, reward)
