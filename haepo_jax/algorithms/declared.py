"""The registered algorithms and their hyperparameters, read from source code without importing JAX.

Importing JAX would make `--help` and the rejection of a misspelt key slow. So this module parses the source of an
algorithm's class and its base classes, keeps the fields made by `static` and `leaf` and the `check` methods, and
evaluates them in the namespace of `fields`, which does not import JAX.
"""

from __future__ import annotations
import __future__

import ast
import copy
import dataclasses
import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol, cast

from haepo_jax.algorithms import fields

ALGORITHMS: dict[str, str] = {
    "haepo": "haepo_jax.algorithms.haepo:HAEPO",
    "haepo_episodic": "haepo_jax.algorithms.episodic:EpisodicHAEPO",
    "ppo": "haepo_jax.algorithms.ppo:PPO",
    "grpo": "haepo_jax.algorithms.grpo:GRPO",
    "dpo": "haepo_jax.algorithms.dpo:DPO",
    "supervised": "haepo_jax.algorithms.supervised:Supervised",
}
"""Algorithm names and their `module:Class`; a custom algorithm is given as `module:Class` directly."""

LARGE_BATCHES = {"num_envs": 32, "num_steps": 128, "gae_lambda": 0.95, "clip_eps": 0.2}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "haepo_explore": ("haepo", {"surprisal_bonus": 0.01, "normalize_rewards": False}),
    "haepo_minatar": (
        "haepo",
        {
            "num_envs": 64, "num_steps": 128, "replay_batches": 1, "num_epochs": 4, "num_minibatches": 8,
            "learning_rate": 5e-3, "max_grad_norm": 0.5,
        },
    ),
    "haepo_paper": (
        "haepo_episodic",
        {"credit": "trajectory", "score": "likelihood", "temperature": 1.0, "normalize": "standardize"},
    ),
    "ppo_continuous": (
        "ppo",
        {
            **LARGE_BATCHES,
            "num_epochs": 10, "num_minibatches": 8, "learning_rate": 1e-3, "discount": 0.95, "entropy_coef": 0.0,
        },
    ),
    "ppo_minatar": (
        "ppo",
        {
            **LARGE_BATCHES,
            "num_envs": 64, "num_epochs": 4, "num_minibatches": 8, "learning_rate": 5e-3, "entropy_coef": 0.01,
        },
    ),
}  # fmt: skip
"""Preset names: the algorithm, and the defaults that the preset changes."""


class Declaration(Protocol):
    """The hyperparameters of an algorithm class: a frozen dataclass with its name, docstring and `check` method."""

    __dataclass_fields__: dict[str, dataclasses.Field[Any]]

    def __init__(self, **hyperparameters: Any) -> None: ...

    def check(self) -> None:
        """Raises HyperparameterError for the first invalid hyperparameter."""


def declaration(name: str) -> type[Declaration]:
    """The declared hyperparameters of an algorithm class, without importing JAX.

    Args:
      name: an algorithm, a preset, or `module:Class`.

    Raises:
      KeyError: the name is unknown.
      ImportError: the module or the class does not exist, or the class is not an algorithm.
      HyperparameterError: a declaration uses a name that `fields` does not define.
    """
    module, cls = _place(name)
    found = _declared(module, cls)
    if found is object:
        raise ImportError(f"there is no class {cls} in {module}")
    if not issubclass(found, _declared("haepo_jax.algorithms.base", "Algorithm")):
        # Checked before the module is imported, so an algorithm name in a file cannot execute unrelated code.
        raise ImportError(f"{module}:{cls} is not a subclass of haepo_jax.algorithms.base.Algorithm")
    return cast(type[Declaration], found)


def hyperparameters(name: str) -> dict[str, dataclasses.Field[Any]]:
    """The hyperparameters of an algorithm or preset: dataclass fields with type, range and help text in `metadata`."""
    found = {}
    for field in dataclasses.fields(declaration(name)):  # type: ignore[arg-type]
        if "kind" in field.metadata:
            found[field.name] = copy.copy(field)
            found[field.name].default = PRESETS.get(name, ("", {}))[1].get(field.name, field.default)
    return found


def load(name: str) -> type[Any]:
    """The class of an algorithm, a preset or `module:Class`; imports JAX."""
    declaration(name)
    module, cls = _place(name)
    return cast(type[Any], getattr(importlib.import_module(module), cls))


def _place(name: str) -> tuple[str, str]:
    """The module and the class that an algorithm, a preset or `module:Class` names; raises KeyError."""
    name = PRESETS[name][0] if name in PRESETS else name
    module, _, cls = (name if ":" in name else ALGORITHMS[name]).partition(":")
    return module, cls


@functools.cache
def _declared(module: str, name: str) -> type:
    """The declaration of a class, given its module and name; `object` if there is no such class in a Python file."""
    if module == "haepo_jax":  # its names are loaded on first use
        module = next((where.partition(":")[0] for where in ALGORITHMS.values() if where.endswith(f":{name}")), module)
    tree = _tree(module)
    if tree is None:
        return object
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    if not classes:
        return _declared(*imported) if (imported := _imports(tree, module).get(name)) else object
    node = classes[-1]
    bases = tuple(base for base in (_base(expression, tree, module) for expression in node.bases) if base is not object)
    body: list[ast.stmt] = [statement for statement in node.body if _is_declaration(statement)]
    stub = ast.ClassDef(
        name, [ast.Name(f"_base{i}", ast.Load()) for i in range(len(bases))], [], body or [ast.Pass()], []
    )
    source = ast.fix_missing_locations(ast.Module([stub], []))
    namespace = {**vars(fields), **{f"_base{i}": base for i, base in enumerate(bases)}}
    try:
        exec(compile(source, module, "exec", __future__.annotations.compiler_flag), namespace)
    except NameError as error:
        raise fields.HyperparameterError(
            f"{module}:{name} cannot be read without importing it: {error}; a declaration may only use names from "
            "haepo_jax.algorithms.fields"
        ) from None
    found = cast(type, namespace[name])
    found.__doc__ = ast.get_docstring(node)
    return dataclasses.dataclass(frozen=True, kw_only=True)(found)


def _is_declaration(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.AnnAssign):
        return isinstance(statement.value, ast.Call)
    if isinstance(statement, ast.Assign):  # a class constant, which `check` may read
        return isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.FunctionDef) and statement.name == "check"


def _base(expression: ast.expr, tree: ast.Module, module: str) -> type:
    """The declaration of a base class written as `Base` or `package.Base`."""
    imports = _imports(tree, module)
    if isinstance(expression, ast.Name):
        defined_here = any(isinstance(node, ast.ClassDef) and node.name == expression.id for node in tree.body)
        return _declared(module, expression.id) if defined_here or expression.id in imports else object
    if isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name):
        package = ".".join(filter(None, imports.get(expression.value.id, ("", ""))))
        return _declared(package, expression.attr) if package else object
    return object


def _imports(tree: ast.Module, module: str) -> dict[str, tuple[str, str]]:
    """Top-level imports of a module: local name -> (module, name in that module, or "" for the module itself)."""
    found: dict[str, tuple[str, str]] = {}
    spec = importlib.util.find_spec(module)
    package = module if spec and spec.submodule_search_locations else module.rpartition(".")[0]
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: (alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = "." * node.level + (node.module or "")
            source = importlib.util.resolve_name(parent, package) if node.level else parent
            found |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
    return found


@functools.cache
def _tree(module: str) -> ast.Module | None:
    """The syntax tree of a module, or None if it is not a Python file; raises ImportError if it does not exist."""
    if "/" in module:
        dotted = module.removesuffix(".py").strip("./").replace("/", ".")
        raise ImportError(f"there is no module {module!r}; did you mean {dotted!r}?")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise ImportError(f"there is no module {module!r}: {error}") from None
    if spec is None:
        raise ImportError(f"there is no module {module!r}")
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
