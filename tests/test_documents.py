"""What the README tells people to type works."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(marker: str) -> list[str]:
    found = re.search(rf"<!-- {re.escape(marker)} -->\s*```bash\n(.*?)```", README, re.DOTALL)
    assert found, f"README.md has no block marked {marker}"
    return found.group(1).splitlines()


@pytest.mark.slow
def test_python_blocks_run_in_order() -> None:
    namespace: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    for source in blocks:
        exec(compile(source, "README.md", "exec"), namespace)


@pytest.mark.slow
def test_commands_run(tmp_path: Path) -> None:
    for line in [*block("commands"), *block("sweep"), "python -m haepo_jax.train env=CartPole-v1 total_steps=50_000"]:
        words = shlex.split(line)
        assert words[0] == "python"
        done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_several_processes_train_one_run(tmp_path: Path) -> None:
    """As typed, but at a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        script = (
            "\n".join(block("hosts")).replace(":9911", f":{free.getsockname()[1]}").replace("python", sys.executable)
        )
    done = subprocess.run(
        ["bash", "-c", f"{script}\nwait $!"], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs" / "hosts" / "summary.json").exists()


def test_every_command_is_run_by_a_test_or_by_ci() -> None:
    blocks = re.findall(r"<!-- ([^>]+?) -->\s*```bash", README)
    assert set(blocks) == {"ci: train", "ci: test", "commands", "hosts", "reinforce", "sweep"}
    assert README.count("```bash") == len(blocks)


def test_every_local_link_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
