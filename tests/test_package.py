"""The package as a whole: which layer may import which, the commands by name, and what is installed elsewhere."""

from __future__ import annotations

import ast
import collections
import importlib
import os
import re
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
from haepo_jax.__main__ import main as package_main
from haepo_jax.runner.commands import COMMANDS
from haepo_jax.runner.commands.sweep import main

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "haepo_jax"

# Lowest first; a module is in the layer of the longest name that it begins with.
LAYERS = (
    ("version", "messages", "counting", "unbatched", "spaces", "sharding", "normalization", "statistics"),
    ("losses",),
    ("distributions", "action_outputs", "networks", "sequence_networks"),
    ("envs",),
    ("rollout",),
    ("algorithms",),
    ("runner.config",),
    ("runner",),
    ("runner.sweeps",),
    ("runner.commands", "llm"),
    (*COMMANDS, "__main__"),
    ("haepo_jax",),  # the package itself, whose names are for users
)

# Modules of one name in different packages that are still to be renamed.
NAMES_ALLOWED = {"base", "physics"}


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


def name_of(file: Path) -> str:
    """A module's name without `haepo_jax.`; that of the package itself is `haepo_jax`."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix("__init__").removesuffix(".") or "haepo_jax"


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports(source: str) -> set[str]:
    """The modules of this package that source text imports anywhere, inside functions too, by their names without
    `haepo_jax.`; not those for type checkers. A name taken from the package itself counts as an import of the package."""
    tree = ast.parse(source)
    unused = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in (node for node in ast.walk(tree) if id(node) not in unused):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            # `from haepo_jax.envs import names` imports a module where there is one of that name.
            longer = {f"{node.module}.{name.name}" for name in node.names}
            modules = {name for name in longer if name.removeprefix("haepo_jax.") in FILES}
            found |= modules | ({node.module} if modules != longer else set())
    own = {name for name in found if name == "haepo_jax" or name.startswith("haepo_jax.")}
    return {name.removeprefix("haepo_jax.") for name in own}


GRAPH = {name: imports(file.read_text()) for name, file in FILES.items() if name != "haepo_jax"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import haepo_jax", {"haepo_jax"}),
        ("import haepo_jax as hx, jax", {"haepo_jax"}),
        ("from haepo_jax import HAEPO", {"haepo_jax"}),
        ("from haepo_jax import rollout, make_env", {"haepo_jax", "rollout"}),
        ("def f():\n    from haepo_jax.envs import names", {"envs.names"}),
        ("from haepo_jax.envs import make_env, names", {"envs", "envs.names"}),
        ("import haepo_jax.train", {"train"}),
        ("from haepo_jax.train import main", {"train"}),
        ("if TYPE_CHECKING:\n    import haepo_jax", set()),
        ("import haepo_jaxx", set()),
    ],
)
def test_every_form_of_import_is_seen(source: str, expected: set[str]) -> None:
    assert imports(source) == expected


@pytest.mark.parametrize("module", GRAPH)
def test_a_module_imports_only_what_lies_below_it(module: str) -> None:
    higher = {name for name in GRAPH[module] if layer(name) > layer(module)}
    assert not higher, f"{module} imports {', '.join(higher)} from a higher layer"


def test_importing_a_command_leaves_the_function_in_its_place() -> None:
    code = (
        "import haepo_jax.train, haepo_jax.sweep, haepo_jax as hx\n"
        "from haepo_jax.train import main\n"
        "for call in (lambda: hx.train(3), lambda: hx.sweep('CartPole-v1', 3)):\n"
        "    try: call()\n"
        "    except ValueError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert said[0].startswith("train takes an algorithm") and said[1].startswith("algo=3 must be the name")


def test_private_modules_are_imported_in_their_package_alone() -> None:
    for importer, names in GRAPH.items():
        for name in names:
            package, private, _ = f".{name}".partition("._")
            inside = f".{importer}.".startswith(f"{package}.")
            assert not private or inside or "__main__" in name, f"{importer} imports {name}"


def test_nothing_imports_the_command_stubs() -> None:
    """An import of `haepo_jax.train` would put that module in the place of the function `haepo_jax.train`."""
    assert not [(importer, name) for importer, names in GRAPH.items() for name in names & set(COMMANDS)]


def test_no_modules_import_each_other() -> None:
    """Neither at the top nor inside functions: what waits for the first call hides a circle, it does not open it."""
    circles = {frozenset(group) for group in _components(GRAPH) if len(group) > 1}
    assert not circles, [sorted(group) for group in circles]


def _components(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules of which each imports every other, by way of others (strongly connected components)."""
    reached = {name: _reachable(graph, name) for name in graph}
    return [{other for other in reached[name] if name in reached[other]} | {name} for name in graph]


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph.get(waiting.pop(), set()) - found:
            found.add(name)
            waiting.append(name)
    return found & graph.keys()


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}}
    assert {frozenset(group) for group in _components(graph)} == {frozenset("abc"), frozenset("d"), frozenset("e")}


def test_no_two_modules_have_one_name() -> None:
    """But for the stubs of commands, the `__main__` of packages, and a loss, which is named after its algorithm."""
    modules = [name for name in FILES if name not in COMMANDS and not name.endswith("__main__")]
    modules = [
        name for name in modules if name.replace("losses.", "algorithms.") not in modules or "losses" not in name
    ]
    counted = collections.Counter(name.rpartition(".")[2] for name in modules)
    assert not {name for name, count in counted.items() if count > 1} - NAMES_ALLOWED


def test_train_and_sweep_are_functions() -> None:
    """Also after everything has been imported that the package imports; `help` shows their arguments."""
    code = (
        "import importlib, inspect, pydoc, haepo_jax as hx\n"
        f"for name in {[name for name in FILES if name not in COMMANDS and not name.startswith('llm')]!r}:\n"
        "    importlib.import_module('haepo_jax' if name == 'haepo_jax' else f'haepo_jax.{name}')\n"
        "for function in (hx.train, hx.sweep):\n"
        "    assert inspect.isfunction(function), function\n"
        "    assert 'function ' + function.__name__ in pydoc.render_doc(function)\n"
        "assert {'train', 'sweep'} <= {*dir(hx)} & {*hx.__all__}\n"
        "assert 'run_dir' in inspect.signature(hx.train).parameters\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_module_and_an_entry_point(command: str) -> None:
    """The module hands over, and does nothing else: `haepo_jax.train` and `haepo_jax.sweep` are functions in Python."""
    home = f"haepo_jax.runner.commands.{command}"
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts[f"haepo-{command}"] == f"{home}:main"
    assert callable(importlib.import_module(home).main)
    names = [type(node).__name__ for node in ast.parse((PACKAGE / f"{command}.py").read_text()).body]
    assert names == ["Expr", "Import", "ImportFrom", "If"]
    assert len(scripts) == len(COMMANDS) + 1 and scripts["haepo"] == "haepo_jax.__main__:main"


def test_an_entry_point_reads_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["haepo-train", "env=CartPol-v1"])
    assert importlib.import_module("haepo_jax.runner.commands.train").main() == 2
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
    """A mistyped setting is answered without jax."""
    code = (
        "import sys, haepo_jax.__main__, haepo_jax.runner.commands.completion; "
        "print(*{'jax', 'optuna', 'matplotlib'} & {*sys.modules})"
    )
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
    assert {"haepo_jax/py.typed", "haepo_jax/runner/rendering/board.html"} <= files
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("haepo_jax/")} == files
    with tarfile.open(sdist) as archive:
        assert {f"{sdist.name.removesuffix('.tar.gz')}/{name}" for name in files} <= set(archive.getnames())


def test_the_commands_are_listed_and_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert package_main([]) == 0
    listed = capsys.readouterr().out
    for name in (*COMMANDS, "llm", "completion"):
        assert f"\n  {name} " in listed
    assert package_main(["--help"]) == 0 and capsys.readouterr().out == listed
    assert package_main(["train", "env=CartPol-v1"]) == 2
    assert "did you mean 'CartPole-v1'" in capsys.readouterr().err
    assert package_main(["trian"]) == 2
    assert "unknown command 'trian'; did you mean 'train'?" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["train", "--version"], ["plot", "--version"]):
        assert package_main(arguments) == 0
        assert capsys.readouterr().out == f"haepo_jax {hx.__version__}\n"


def test_a_backend_of_matplotlib_that_is_not_installed(tmp_path: Path) -> None:
    """Jupyter hands its backend down to a command that a cell starts, in an environment that may not have it."""
    code = (
        "import os, haepo_jax as hx; hx.make_env('CartPole-v1')\n"
        "from matplotlib.figure import Figure; Figure().savefig('x.png'); print(os.environ.get('MPLBACKEND'))\n"
    )
    for backend, kept in (
        ("module://not_installed.backend", "None"),
        ("module://matplotlib.backends.backend_svg",) * 2,
    ):
        environment = os.environ | {"MPLBACKEND": backend, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.stdout == f"{kept}\n", done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shell_completion(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert package_main(["completion", shell]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    assert package_main(["completion", "fish"]) == 2
    assert "bash or zsh, not 'fish'" in capsys.readouterr().err
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    start = "autoload -U compinit && compinit -u -D; " if shell == "zsh" else ""
    assert subprocess.run([shell, "-c", f"{start}source {script}"], capture_output=True, check=True).stderr == b""
    lists = {line.split()[-1]: re.split("[ ']+", line) for line in script.read_text().splitlines()[1:]}
    key = "env=" if shell == "zsh" else ""  # it completes whole words, bash what follows an equal sign
    assert {"env=", f"{key}CartPole-v1", "algo.learning_rate=", "--help"} <= {*lists["haepo-train"]} & {*lists["haepo"]}
    assert "halving_rungs=" in lists["haepo-sweep"] and "evaluate" in lists["haepo"]
    assert not any(word.startswith("algo") for word in lists["haepo-plot"])
