"""Text for one-line messages, whatever the values in it are."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from typing import Any


def one_line(text: str, limit: int = 400) -> str:
    """Text that is safe to print on one line of a terminal: no line breaks, no control characters, not endless."""
    text = " ".join(text.split())
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return text if len(text) <= limit else f"{text[:limit]}..."


def first_line(error: BaseException) -> str:
    """What an exception says, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0] if lines else type(error).__name__, 200)


def short(value: Any, limit: int = 80) -> str:
    """The beginning of `repr(value)`; of a huge or deeply nested value no more is looked at than is shown."""
    text = ""
    for piece in _pieces(value, limit):
        text += piece
        if len(text) > limit:
            break
    return one_line(text, limit)


def number(value: float) -> str:
    """Four significant digits at most; a dash where there is no value."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Such as `45s`, `3m20s` or `2h05m`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def did_you_mean(name: object, names: Iterable[str], count: int = 1) -> str:
    """A hint to append to a message about an unknown name: `"; did you mean 'CartPole-v1'?"`, or "" if none is close.

    Args:
      name: what was given.
      names: what is known. A last part will do ("learning_rate" for "algo.learning_rate", "ant" for "brax/ant"), and case
        does not matter.
      count: how many names the hint may hold, best first.
    """
    matches = near_matches(str(name), names, count)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def near_matches(word: str, names: Iterable[str], count: int) -> list[str]:
    """At most `count` of `names` that look like `word`, best first."""
    if len(word) > 100:  # the comparison takes seconds, and nothing here is as long
        return []
    known = list(names)
    forms: dict[str, str] = {}
    for name in known:
        last = name.replace(".", "/").rpartition("/")[2]
        for form in (name, last, last.partition("-")[0]):
            forms.setdefault(form.lower(), name)
    found = difflib.get_close_matches(word.lower(), forms, n=2 * count)
    likeness = [difflib.SequenceMatcher(None, form, word.lower()).ratio() for form in found]
    # Beside a name that is nearly the word, those that share a few letters with it only distract.
    matches = [forms[form] for form, ratio in zip(found, likeness, strict=True) if ratio > likeness[0] - 0.15]
    if len(word) >= 3:
        matches += [name for name in known if word.lower() in name.lower()]
    return list(dict.fromkeys(matches))[:count]


_BRACKETS: dict[type, str] = {list: "[]", tuple: "()", dict: "{}"}


def _pieces(value: Any, limit: int) -> Iterator[str]:
    # Every level yields its bracket first, so the nesting that is followed is no deeper than the text is long.
    brackets = _BRACKETS.get(type(value))
    if brackets is not None:
        yield brackets[0]
        for index, item in enumerate(value):
            if index:
                yield ", "
            yield from _pieces(item, limit)
            if isinstance(value, dict):
                yield ": "
                yield from _pieces(value[item], limit)
        yield ",)" if type(value) is tuple and len(value) == 1 else brackets[1]
    elif isinstance(value, str | bytes):
        yield repr(value if len(value) <= limit else value[: limit + 1])
    elif isinstance(value, int) and value.bit_length() > 10_000:  # Python does not write out such a number
        yield hex(value)
    else:
        yield repr(value)
