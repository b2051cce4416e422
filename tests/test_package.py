"""The package as a whole: which layer may import which, and the commands by name."""

from __future__ import annotations

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "haepo_jax"

# Lowest first; a module is in the layer of the longest name that it begins with.
LAYERS = (
    ("messages", "counting", "unbatched", "spaces", "sharding", "normalization", "_callable_module"),
    ("losses",),
    ("distributions", "action_outputs", "networks", "sequence_networks"),
    ("envs",),
    ("rollout",),
    ("algorithms",),
    ("config",),
    ("training", "rendering"),
    ("sweeps",),
    ("train", "sweep", "compare", "evaluate", "render", "plot", "pretrain", "board", "llm"),
)


def layer(module: str) -> int:
    """Where a module stands, by its name without `haepo_jax.`."""
    found = [(len(name), index) for index, names in enumerate(LAYERS) for name in names if module.split(".")[0] == name]
    assert found, f"{module} is in no layer"
    return max(found)[1]


def imports(file: Path) -> set[str]:
    """The modules of this package that a file imports anywhere, below functions too; not those for type checkers."""
    tree = ast.parse(file.read_text())
    unused = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in unused:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "haepo_jax":
            found |= {f"haepo_jax.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name.removeprefix("haepo_jax.") for name in found if name.startswith("haepo_jax.")}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(file: Path) -> None:
    module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    if module == "__init__":
        return
    higher = [name for name in imports(file) if layer(name) > layer(module)]
    assert not higher, f"{module} imports {', '.join(higher)} from a higher layer"


def test_every_command_has_an_entry_point() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, target in scripts.items():
        module, _, function = target.partition(":")
        assert name == module.replace("haepo_jax.", "haepo-") and callable(
            getattr(importlib.import_module(module), function)
        )
    commands = {file.stem for file in PACKAGE.glob("*.py") if "__main__" in file.read_text()}
    assert {target.partition(":")[0].removeprefix("haepo_jax.") for target in scripts.values()} == commands


def test_an_entry_point_reads_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["haepo-pretrain", "env=CartPol-v1"])
    assert importlib.import_module("haepo_jax.pretrain").main() == 2
    assert "did you mean 'CartPole-v1'" in capsys.readouterr().err
