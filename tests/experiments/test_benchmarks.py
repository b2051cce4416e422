"""The tables of the benchmark say what its stored results say."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_every_table_is_made_of_the_stored_results(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_report", EXPERIMENTS / "benchmarks" / "report.py")
    assert spec is not None and spec.loader is not None
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    text = (EXPERIMENTS / "benchmarks" / "README.md").read_text()
    assert "| haepo_jax_haepo | cold |" in text
    # Figures are drawn beside the results; the repository's own stay as they are.
    results = shutil.copytree(EXPERIMENTS / "benchmarks" / "results", tmp_path / "results")
    assert report.filled_in(text, results) == text
