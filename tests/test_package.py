"""The package as a whole: which layer may import which, the commands by name, and what is installed elsewhere."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import util
from pathlib import Path

import pytest

import haepo_jax as hx
from haepo_jax.runner.commands.sweep import main

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "haepo_jax"

# Lowest first; a module is in the layer of the longest name that it begins with.
COMMANDS = ("train", "sweep", "compare", "evaluate", "render", "plot", "pretrain", "board")
LAYERS = (
    ("messages", "counting", "unbatched", "spaces", "sharding", "normalization"),
    ("losses",),
    ("distributions", "action_outputs", "networks", "sequence_networks"),
    ("envs",),
    ("rollout",),
    ("algorithms",),
    ("runner.config",),
    ("runner",),
    ("runner.sweeps",),
    ("runner.commands", "llm"),
    COMMANDS,
)


def layer(module: str) -> int:
    """Where a module stands, by its name without `haepo_jax.`."""
    found = [
        (len(name), index)
        for index, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
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


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_module_and_an_entry_point(command: str) -> None:
    """The module hands over, and does nothing else: `haepo_jax.train` and `haepo_jax.sweep` are functions in Python."""
    home = f"haepo_jax.runner.commands.{command}"
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts[f"haepo-{command}"] == f"{home}:main"
    assert callable(importlib.import_module(home).main)
    names = [type(node).__name__ for node in ast.parse((PACKAGE / f"{command}.py").read_text()).body]
    assert names == ["Expr", "Import", "ImportFrom", "If"]
    assert len(scripts) == len(COMMANDS)


def test_an_entry_point_reads_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["haepo-pretrain", "env=CartPol-v1"])
    assert importlib.import_module("haepo_jax.runner.commands.pretrain").main() == 2
    assert "did you mean 'CartPole-v1'" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["optuna", "cmaes"])
def test_a_sweep_without_its_extra(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    line = f"{missing} is not installed: pip install 'haepo_jax[sweep]'"
    assert main(["env=CartPole-v1", "algo.learning_rate=1e-3,1e-2"]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    with pytest.raises(ValueError, match="is not installed"):
        hx.sweep("CartPole-v1", "haepo", {"learning_rate": [1e-3, 1e-2]})
    assert main(["--help"]) == 0


def test_what_a_command_line_loads_before_it_reads_its_settings() -> None:
    """A mistyped setting is answered without jax, and the function of a sweep is there without Optuna."""
    code = "import sys, haepo_jax as hx, haepo_jax.sweep; hx.sweep; print(*{'jax', 'optuna'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "haepo_jax", source / "haepo_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('..'); build_meta.build_sdist('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "haepo_jax").rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert {"haepo_jax/py.typed", "haepo_jax/runner/rendering/viewer.html"} <= files
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("haepo_jax/")} == files
    with tarfile.open(sdist) as archive:
        assert {f"{sdist.name.removesuffix('.tar.gz')}/{name}" for name in files} <= set(archive.getnames())
