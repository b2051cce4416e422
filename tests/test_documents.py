"""What the README, the site and the examples tell people to type works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {page.name: page for page in (*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")))}
BLOCK = re.compile(r"(?:<!-- ([^>]+?) -->\s*)?^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
ELSEWHERE = {
    "ci: test": "this is it",
    "hosts": "tests/test_sharding.py",
    "a2c": "tests/test_a2c_example.py",
    "reinforce": "tests/test_reinforce.py",
    "llm": "tests/llm/test_language_page.py",
}
"""Marked blocks that are not run where they stand, and what runs them."""


def trains(page: str) -> bool:
    return "total_steps=" in PAGES[page].read_text(encoding="utf-8")


def run(command: str, directory: Path) -> None:
    words = shlex.split(command)
    if words[1:3] == ["-m", "venv"]:
        return
    assert words[0] in ("python", ".venv/bin/python"), command
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=directory, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if trains(page) else page for page in PAGES]
)
def test_the_blocks_of_a_page_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page}
    for marker, language, source in BLOCK.findall(PAGES[page].read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(source, page, "exec", dont_inherit=True), namespace)
        elif marker not in ELSEWHERE:
            for command in source.splitlines():
                run(command, tmp_path)


EXAMPLES = {path.name for path in (ROOT / "examples").glob("*.py")}
TESTED = {
    "a2c.py": "test_a2c_example.py",
    "reinforce.py": "test_reinforce.py",
    "several_hosts.py": "test_sharding.py",
    "smollm2.py": "llm/test_smollm2.py",
    "sweep_workers.py": "test_sweep_workers.py",
}
"""Examples with a test of their own: they train for long, or need what is not installed here."""


@pytest.mark.parametrize("example", sorted(TESTED))
def test_an_example_has_its_own_test(example: str) -> None:
    assert example in EXAMPLES and example.removesuffix(".py") in (ROOT / "tests" / TESTED[example]).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(EXAMPLES - {*TESTED}))
def test_an_example_runs(example: str, tmp_path: Path) -> None:
    lines = (ROOT / "examples" / example).read_text().splitlines()
    assert len(lines) <= 50
    run(f"python {ROOT / 'examples' / example}", tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_another_librarys(page: str) -> None:
    """Another library's has its name as title; it is not run, since none of them is a dependency."""
    text = PAGES[page].read_text(encoding="utf-8")
    fences = re.findall(r"^```(.*)$", text, re.MULTILINE)[::2]
    run_here = sum(fence in ("python", "bash") for fence in fences)
    assert run_here == len(BLOCK.findall(text))
    others = {fence.partition(" title=")[2].strip('"').split()[0].strip(":") for fence in fences if "title=" in fence}
    assert others <= {"PureJaxRL", "rejax", "Stable-Baselines3", "Stoix"}
    assert all(fence in ("python", "bash", "console", "") or " title=" in fence for fence in fences)


def test_no_merge_was_left_half_done() -> None:
    for name, page in PAGES.items():
        assert not re.search(r"^(<{7}|={7}|>{7})( |$)", page.read_text(encoding="utf-8"), re.MULTILINE), name


def test_every_local_link_exists() -> None:
    for page in PAGES.values():
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
