"""Text for one-line messages, whatever the values in it are."""

from __future__ import annotations

from collections.abc import Iterator
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
