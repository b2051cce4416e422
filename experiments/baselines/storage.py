"""Results of other libraries' runs in a JSON file. It imports nothing of this library, which their environments lack."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any


def runs_of(file: Path) -> dict[str, Any]:
    """The runs that are stored, by name."""
    runs: dict[str, Any] = json.loads(file.read_text())["runs"] if file.exists() else {}
    return runs


def add(file: Path, runs: dict[str, Any], command: str, versions: dict[str, str]) -> None:
    """Stores further runs, replacing the file in one step."""
    results = {
        "runs": runs_of(file) | runs,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "versions": versions,
    }
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, separators=(",", ":")) + "\n")
    temporary.replace(file)
