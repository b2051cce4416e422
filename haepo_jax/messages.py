"""Formatting of one-line messages."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from typing import Any


def one_line(text: str, limit: int = 400) -> str:
    """Text that is safe to print on one line of a terminal: no line breaks or control characters, limited length."""
    text = " ".join(text.split())
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return text if len(text) <= limit else f"{text[:limit]}..."


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0] if lines else type(error).__name__, 200)


def short(value: Any, limit: int = 80) -> str:
    """The beginning of `repr(value)`; of a huge or deeply nested value only the part shown is formatted."""
    text = ""
    for fragment in _fragments(value, limit):
        text += fragment
        if len(text) > limit:
            break
    return one_line(text, limit)


def number(value: float) -> str:
    """A number with at most four significant digits; a dash if it is not finite."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:.4g}"
    return f"{value:,.0f}" if abs(float(text)) >= 1000 else text


def duration(seconds: float) -> str:
    """A duration such as `45s`, `3m20s` or `2h05m`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def did_you_mean(name: object, names: Iterable[str], count: int = 1) -> str:
    """A hint to append to a message about an unknown name: `"; did you mean 'CartPole-v1'?"`, or "" if none is close.

    Args:
      name: the unknown name.
      names: the known names. The last component is matched too ("learning_rate" for "algo.learning_rate", "ant" for
        "brax/ant"), ignoring case.
      count: maximum number of suggestions, best first.
    """
    matches = near_matches(str(name), names, count)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def near_matches(word: str, names: Iterable[str], count: int) -> list[str]:
    """At most `count` of `names` that are similar to `word`, best first."""
    if len(word) > 100:  # the comparison would take seconds, and no name here is that long
        return []
    known = list(names)
    forms: dict[str, str] = {}
    for name in known:
        last = name.replace(".", "/").rpartition("/")[2]
        for form in (name, last, last.partition("-")[0]):
            forms.setdefault(form.lower(), name)
    found = difflib.get_close_matches(word.lower(), forms, n=2 * count)
    likeness = [difflib.SequenceMatcher(None, form, word.lower()).ratio() for form in found]
    # Next to a near match, weaker ones would only distract.
    matches = [forms[form] for form, ratio in zip(found, likeness, strict=True) if ratio > likeness[0] - 0.15]
    if len(word) >= 3:
        matches += [name for name in known if word.lower() in name.lower()]
    return list(dict.fromkeys(matches))[:count]


_BRACKETS: dict[type, str] = {list: "[]", tuple: "()", dict: "{}"}


def _fragments(value: Any, limit: int) -> Iterator[str]:
    # Every level yields its bracket first, so the recursion is never deeper than the text is long.
    brackets = _BRACKETS.get(type(value))
    if brackets is not None:
        yield brackets[0]
        for index, item in enumerate(value):
            if index:
                yield ", "
            yield from _fragments(item, limit)
            if isinstance(value, dict):
                yield ": "
                yield from _fragments(value[item], limit)
        yield ",)" if type(value) is tuple and len(value) == 1 else brackets[1]
    elif isinstance(value, str | bytes):
        yield repr(value if len(value) <= limit else value[: limit + 1])
    elif isinstance(value, int) and value.bit_length() > 10_000:  # Python refuses to convert such a number to decimal
        yield hex(value)
    else:
        yield repr(value)
