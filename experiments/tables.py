"""Tables of stored results in documents: a script puts each below its mark, and a test puts it there again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; numbers stand right, the first column left."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def filled_in(text: str, name: str, table: str) -> str:
    """A document with the table below every `<!-- table: name -->`, up to the next empty line."""
    mark = f"<!-- table: {name} -->\n"
    return re.sub(rf"{re.escape(mark)}(?:.+\n)*", (mark + table + "\n").replace("\\", r"\\"), text)


def fill_in(document: Path, name: str, table: str) -> None:
    """The same to a file."""
    document.write_text(filled_in(document.read_text(encoding="utf-8"), name, table), encoding="utf-8")
