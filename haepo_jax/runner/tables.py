"""Tables of statistics as text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from haepo_jax.messages import number


def interval_text(limits: Sequence[float]) -> str:
    """`low to high`; a dash where a limit is not known."""
    return "-" if np.isnan(limits).any() else f"{number(limits[0])} to {number(limits[1])}"


def aligned(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table that also reads well as plain text: names to the left, numbers to the right."""
    cells = [[*rows[0]], *([*row.values()] for row in rows)]
    first, *widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[row[0].ljust(first), *map(str.rjust, row[1:], widths)] for row in cells]
    lines.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in widths)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
