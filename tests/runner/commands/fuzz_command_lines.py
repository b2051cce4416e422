"""Random command lines for every command, and what must hold of each: never a traceback, a hang or a trace on the disk.

    python tests/runner/commands/fuzz_command_lines.py --count 2000 --seed 7 --processes 50

Keys and good values come from the commands' own dataclasses, so the fuzzer follows them. Where it is certain, a line
says how it must end: 0 for one made of good settings alone, 2 for one with a misspelt key or a value out of range.
Nothing is trained: `dry_run=true` stands last, and what `evaluate`, `render` and `plot` are given is no usable run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import itertools
import math
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

import haepo_jax
from haepo_jax.algorithms import declared
from haepo_jax.algorithms.other_names import ELSEWHERE, RENAMED
from haepo_jax.envs import names
from haepo_jax.runner.commands.evaluate import EvaluateConfig
from haepo_jax.runner.commands.plot import PlotConfig
from haepo_jax.runner.commands.render import RenderConfig
from haepo_jax.runner.config import ALGORITHM_NAMES, RunConfig, hyperparameter_fields
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.sweeps.plan import SweepConfig

TRAINING = {"train": RunConfig, "compare": RunConfig, "sweep": SweepConfig}
READING = {"evaluate": EvaluateConfig, "render": RenderConfig, "plot": PlotConfig}
SCHEMAS: dict[str, type] = TRAINING | READING
SECONDS = 30.0
"""How long a line may take in a process that has everything imported."""
MEGABYTES = 1500.0
"""By how much a line may raise the most memory that the process ever had."""
LONGEST = 1100
"""Characters of an error."""


# --- Command lines ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Line:
    """A command line, with the exit status it must end with where that is certain."""

    command: str
    arguments: tuple[str, ...]
    status: int | None

    def __str__(self) -> str:
        return shlex.join(["python", "-m", f"haepo_jax.{self.command}", *self.arguments])


NUMBERS = (
    "0", "1", "-1", "-0.0", "0.5", "2", "1e3", "-1e3", "1e18", "1e309", "-1e309", "1e-400", "nan", "-nan", "inf", "-inf",
    "1_000", "007", "0x10", "1e5.5", ".5", "5.", "2147483647", "2147483648", "-2147483649", "9223372036854775807",
    "9223372036854775808", "18446744073709551616", "1000000000", "9" * 400, "-" + "9" * 400, "9" * 5000,
)  # fmt: skip
WORDS = (
    "", " ", "''", '""', "null", "None", "true", "false", "yes", "abc", "a/b", "'a b'", "환경", "'환경'", "'\x00'", "\x00",
    "'\x1b[31mred'", "'\u202eright to left'", "'🎲'", "'line\nbreak'", "a\nb", "\t", "\udcff", "'\\'", "it's", "'", '"',
    "a=b", "a:b", "a;b", "$(id)", "`id`", "%s%n", "{}", "../../etc/passwd", "~", "#", "a#b", "!", "-", "--", "x" * 10_000,
    "auto", "last", "???", "_self_", "hydra", "1,", ",1", ",", "a,,b", "[1,2", "1]", "(1)", "\\", "a\\,b", "'a,b'",
)  # fmt: skip
NESTED = (
    "[]", "[[]]", "{a:1}", "{}", "{a:{b:[1,{c:2}]}}", "[1,2,3]", "[1,[2,[3]]]", "[nan]", "{1:2}", "{null:1}", "{a:null}",
    "[a,b]", "[true,false]", "['',1]", "{a b: 1}", "{'a':1}", "{a:1,a:2}", "[null]", "[64,64]", "[0.01,0]", "[-1,1]",
    "[" * 40 + "]" * 40, "[" * 300 + "]" * 300, "[" * 2000, "{a:" * 200 + "1" + "}" * 200, "[" + "1," * 3000 + "1]",
)  # fmt: skip
INTERPOLATIONS = (
    "${seed}", "${nothing}", "${", "${}", "$", "${.}", "${..seed}", "${algo}", "${algo.name}", "${env}", "${run_dir}",
    "${env_kwargs}", "${${seed}}", "${oc.env:HOME}", "${oc.env:NO_SUCH_VARIABLE}", "${oc.env:NO_SUCH_VARIABLE,3}",
    "${oc.env:PATH}", "${oc.decode:'[1,2'}", "${oc.decode:'!!python/object:os.system {}'}", "${oc.create:{a:1}}",
    "${oc.select:nothing,5}", "${oc.dict.keys:algo}", "${oc.dict.values:algo}", "${oc.deprecated:seed}",
    "${hydra:runtime.cwd}", "${now:%Y}", "${python:1}", "a${seed}b", "'${seed}'", "\\${seed}", "[${seed},${seed}]",
    "${seed}${seed}", "${oc.env:${env}}", "${algo.learning_rate}", "{a:${seed}}", "${algo.hidden_sizes}", "${title}",
)  # fmt: skip
FUNCTIONS = (
    "choice(1,2)", "choice()", "choice(a)", "choice(1,a,null)", "choice([1],[2])", "choice({a:1},2)", "range(3)",
    "range(0)", "range(0,10,0)", "range(10,0,-3)", "range(0,1e300)", "range(1000000000)", "range(0,1,1e-12)",
    "range(nan)", "range(inf)", "range(a)", "interval(0,1)", "interval(1,0)", "interval(1,1)", "interval(nan,1)",
    "interval(0,inf)", "interval(a,b)", "interval(1)", "int(interval(1,5))", "interval(1,5)", "interval(-1e300,1e300)",
    "tag(log,interval(1e-4,1e-2))", "tag(log,interval(0,1))", "tag(log,int(interval(1,64)))", "tag(a,b,choice(1,2))",
    "tag(x,interval(0,1))", "tag(log,1)", "tag()", "glob(*)", "glob([a,b],exclude=c)", "glob(**)", "shuffle(1,2)",
    "shuffle(range(3))", "shuffle(range(1000000000))", "shuffle([1,2])", "sort(3,1,2)", "sort(choice(b,a),reverse=true)",
    "sort([1,a])", "sort(1,a)", "int(3.7)", "int(nan)", "int(1e400)", "int(a)", "float(a)", "float(3)", "str(1)",
    "bool(x)", "bool(1)", "int([1.5,{a:2}])", "float(" + "9" * 400 + ")", "json_str({a:1})", "extend_list(1,2)",
    "extend_list(a,[b],{c:1})", "extend_list()", "foo(1)", "choice(1 2)", "choice(1", "1,2,3", "a,b", "1,1,1",
    "true,false", "nan,1", "'',a", "0.1,1e-3", "[1],[2,3]", "null,1", "float(range(1,4))", "int(choice(1.5,2.5))",
    "choice(choice(1,2),3)", "interval(interval(0,1),2)", "shuffle(interval(0,1))", "int(tag(log,interval(1,9)))",
    "str(range(1000000000))",
    f"interval(0,{'9' * 400})", f"range({'9' * 400})",
    f"range(0,{'9' * 400},{'9' * 399})", "range(1,2,nan)", "range(0,1,inf)", "range(-inf,0)", "interval(-1,1)",
    "int(range(0,1,1e-12))", "sort(range(1000000000))", "choice(" + "1," * 20_000 + "1)",
)  # fmt: skip
OPTIONS = (
    "--help", "-h", "--list-envs", "--cfg", "--cfg=job", "--cfg=hydra", "-c", "--multirun", "-m", "--seed=3", "--", "-",
    "---", "--config-path=/", "--version", "-x" * 500, "--환경",
)  # fmt: skip
ODDITIES = (
    "", "=", "==", "=5", "env", "seed", ".=1", "..=1", "env_kwargs.=1", "env_kwargs..a=1", ".seed=1", "seed.=1", "a b=1",
    "größe=1", "\u202eseed=1", "\x00=1", "\udcff=1", "algo.hidden_sizes.0=1", "algo.name=ppo", "algo.total_steps=5",
    "algo/other=ppo", "algo@other=ppo", "algo@:=ppo", "hydra.run.dir=x", "hydra/launcher=x", "hydra=x", "defaults=[]",
    "_target_=os.system", "algo._target_=os.system", "env_kwargs._target_=os.system", "env_kwargs.a.b=1", "seed:=3",
    "env_kwargs" + ".a" * 400 + "=1", "x" * 10_000 + "=1", "seed =3", "seed= 3", " seed=3", "algo.=1", "ppo.=1", "name=x",
    "algo.learning_rate.a=1", "run_dir.a=1", "env_kwargs.self=1", "env_kwargs.kwargs={a:1}", "env_kwargs.name=x",
    "env_kwargs.1=2", "env_kwargs.a-b=1", "env_kwargs.params=1", "env_kwargs.__class__=1", "check=1", "0=0", "null=null",
)  # fmt: skip
WILD = (NUMBERS, WORDS, NESTED, INTERPOLATIONS, FUNCTIONS)


@functools.cache
def env_settings(env: str) -> dict[str, Any]:
    """The names that `env_kwargs` may have for an environment, and their defaults."""
    from haepo_jax.envs import brax, gymnax, tasks
    from haepo_jax.envs.kwargs import constructor_settings

    library, _, task = env.rpartition("/")
    if library == "haepo":
        return constructor_settings(tasks.TASKS[task])
    if library == "brax":
        return {"episode_length": 1000, **constructor_settings(brax._registry(env)[task].__init__)}
    inner = gymnax._build(env, ())
    params = inner.default_params
    fields = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    return constructor_settings(type(inner).__init__) | fields


def good_values(field: dataclasses.Field[Any]) -> list[str]:
    """Values of a setting that fit whatever the others are; none for one that has rules with others."""
    meta, kind = field.metadata, field.metadata["kind"]
    if field.name in (
        "num_envs",
        "num_minibatches",
        "group_size",
        "num_steps",
        "replay_batches",
        "score",
        "normalize",
        "squash_actions",
        "state_dependent_std",
        "total_steps",
        "seed",
    ):
        # Sizes must divide each other, score and normalize need their credit, some want continuous actions, and a seed leaves room
        # for the others.
        return {"seed": ["0", "17"], "total_steps": ["1e6", "123456"]}.get(field.name, [])
    if field.name in (
        "halving",
        "seeds",
        "cohort",
        "search",
        "resume",
        "run_dir",
        "wandb",
        "credit",
        "network",
    ):
        return []
    values = {bool: ["true", "false"], tuple: ["[32]", "[64,16]", "[]"]}.get(kind, list(meta.get("choices") or ()))
    if (within := meta.get("within")) is not None:
        low = 1 if math.isinf(within.low) else within.low + (0.5 if within.low_open else 0)
        values = [f"{low:g}", "1" if within.high == 1 else "2"]
    if meta.get("scheduled"):
        values += ["[1,0.5]"]
    if meta.get("word"):
        values += [meta["word"]]
    return values + (["null"] if meta["optional"] and values else [])


def bad_values(field: dataclasses.Field[Any]) -> list[str]:
    """Values that are of the wrong type or out of range, whatever the other settings are."""
    meta, kind = field.metadata, field.metadata["kind"]
    if kind not in (int, float, bool, tuple) and not meta.get("choices"):
        return []
    values = ["{a:1}", "[[1]]", "word", "'two words'", "[a,b]"] + ([] if meta["optional"] else ["null"])
    values += {int: ["1.5", "nan", "true", "[1]"], float: ["true", "nan", "inf", "-inf", "1e999", "[1,2,3]"]}.get(
        kind, []
    )
    values += {bool: ["2", "maybe", "1.5"], tuple: ["64", "[0]", "[-3]", "[1.5]"]}.get(kind, [])
    if (within := meta.get("within")) is not None:
        values += [f"{within.low:g}" if within.low_open else f"{within.low - 1:g}", "-" + "9" * 30]
        values += [] if math.isinf(within.high) else [f"{within.high * 4 + 4:.0f}", "9" * 30]
    return values


def misspelt(draw: random.Random, key: str) -> str:
    """The key with one letter of its last part lost, doubled, swapped or changed."""
    head, dot, word = key.rpartition(".")
    place = draw.randrange(len(word))
    letter = draw.choice("abcdefghijklmnopqrstuvwxyz_")
    edits = (
        word[:place] + word[place + 1 :],
        word[:place] + letter + word[place:],
        word[:place] + letter + word[place + 1 :],
        word[: place + 1] + word[place:],
        word[:place] + word[place + 1 : place + 2] + word[place : place + 1] + word[place + 2 :],
    )
    return head + dot + draw.choice(edits)


class Writer:
    """Writes command lines for the directories of `make_places`; the same ones for the same seed."""

    def __init__(self, seed: int, places: Sequence[str]) -> None:
        self.draw = random.Random(seed)
        self.places = places
        everything = [hyperparameter for name in declared.ALGORITHMS for hyperparameter in hyperparameter_fields(name)]
        self.words = {field.name for schema in SCHEMAS.values() for field in dataclasses.fields(schema)} | {*everything}

    def lines(self) -> Iterator[Line]:
        """Without end."""
        while True:
            command = self.draw.choices([*SCHEMAS], [35, 14, 25, 9, 9, 8])[0]
            yield self.training(command) if command in TRAINING else self.reading(command)

    def training(self, command: str) -> Line:
        """Of `train`, `compare` or `sweep`."""
        draw = self.draw
        plan = draw.choices(["good", "one bad", "wild"], [25, 30, 45])[0]
        algo = draw.choice(ALGORITHM_NAMES)
        algos = [algo]
        if command == "compare" and draw.random() < 0.3:
            algos.append(draw.choice([name for name in ALGORITHM_NAMES if name != algo]))
        # Only a few environments have demonstrations.
        env = "haepo/reverse" if "supervised" in algos else self.environment()
        arguments = [f"env={env}", f"algo={','.join(algos)}"]
        swept: set[str] = set()
        if command == "sweep":
            swept.add("algo.learning_rate")
            values = ("1e-3,1e-2", "interval(0,1)", "tag(log,interval(1e-4,1e-2))", "choice(0.1)", "range(1,4)")
            arguments.append(f"algo.learning_rate={draw.choice(values)}")
        for _ in range(draw.randrange(5)):
            if good := self.good(command, algo, swept):
                arguments.append(good)
        statuses: list[int | None] = [0]
        if plan == "one bad":
            # Last, because of an environment or algorithm that is given twice the last one counts.
            arguments.append(self.bad(command, algo, env, swept))
            statuses.append(2)
        elif plan == "wild":
            if draw.random() < 0.3:
                arguments = arguments[: draw.randrange(3)]
            for _ in range(draw.choice([1, 1, 1, 2, 3])):
                arguments.insert(draw.randrange(len(arguments) + 1), self.wild(command, algo, env))
            statuses.append(None)
        return Line(
            command, (*arguments, "dry_run=true"), None if None in statuses else max(filter(None, statuses), default=0)
        )

    def reading(self, command: str) -> Line:
        """Of `evaluate`, `render` or `plot`, on what is no usable run."""
        draw, fields = self.draw, dataclasses.fields(SCHEMAS[command])
        key = draw.choice(["run_dir=", "run_dir=", ""])  # a directory may be named without its key
        arguments = [f"{key}{draw.choice(self.places)}"] if draw.random() < 0.9 else []
        if not key and draw.random() < 0.3:
            arguments.append(draw.choice(self.places))
        for _ in range(draw.choice([0, 0, 1, 2, 3])):
            field = draw.choice(fields)
            values = [*good_values(field), *bad_values(field), *draw.choice(WILD)]
            kinds = [f"{field.name}={draw.choice(values)}", f"{misspelt(draw, field.name)}={draw.choice(values)}"]
            arguments.append(draw.choices([*kinds, draw.choice(ODDITIES), draw.choice(OPTIONS)], [6, 2, 1, 1])[0])
        draw.shuffle(arguments)
        answered = {"--help", "-h", "--version", "--list-envs"} & {*arguments}
        return Line(command, tuple(arguments), None if answered else 2)

    def environment(self) -> str:
        draw = self.draw
        pick = draw.random()
        if pick < 0.6:
            return draw.choice(
                ["CartPole-v1", "Pendulum-v1", "haepo/bandit", "haepo/random_walk", "gymnax/CartPole-v1"]
            )
        if pick < 0.99:
            return draw.choice([name for name in names.list_envs() if "/" not in name])
        return "brax/" + draw.choice(["fast", "inverted_pendulum", "reacher"])

    def fields(self, command: str, algo: str) -> dict[str, dataclasses.Field[Any]]:
        """Every key with its field, but for those that stand for several settings."""
        found = {field.name: field for field in dataclasses.fields(SCHEMAS[command])}
        found = {key: field for key, field in found.items() if key not in ("algo", "env", "env_kwargs", "dry_run")}
        own = hyperparameter_fields(algo)
        heads = ["algo", algo] if command == "compare" else ["algo"]
        return found | {f"{head}.{key}": field for head in heads for key, field in own.items()}

    def good(self, command: str, algo: str, swept: set[str]) -> str | None:
        fields = self.fields(command, algo)
        key = self.draw.choice([key for key in fields if key not in swept])
        values = good_values(fields[key])
        return f"{key}={self.draw.choice(values)}" if values else None

    def bad(self, command: str, algo: str, env: str, swept: set[str]) -> str:
        """One argument that makes a line of good ones wrong for certain."""
        draw, fields = self.draw, self.fields(command, algo)
        kind = draw.randrange(7)
        if kind == 6:
            foreign = [
                name for name in (*ELSEWHERE, *RENAMED) if f"algo.{name}" not in fields and name not in self.words
            ]
            return f"{draw.choice(['', 'algo.'])}{draw.choice(foreign)}={draw.choice(['1', 'true', 'a', '[1,2]'])}"
        if kind == 0:
            key = draw.choice([*fields, "env", "algo", "env_kwargs"])
            while (
                (word := misspelt(draw, key)) == key
                or word.rpartition(".")[2] in self.words
                or not word.rpartition(".")[2]
            ):
                pass
            return f"{word}={draw.choice(['1', 'true', 'a', '[1,2]'])}"
        if kind == 1:
            setting = draw.choice([*env_settings(env.removeprefix("gymnax/"))])
            while (word := misspelt(draw, setting)) in env_settings(
                env.removeprefix("gymnax/")
            ) or not word.isidentifier():
                pass
            return f"env_kwargs.{word}={draw.choice(['1', 'true', 'a', '[1,2]'])}"
        if kind == 2:
            key, value = draw.choice(
                [("env", misspelt(draw, "CartPole-v1") + "x"), ("algo", misspelt(draw, "haepo") + "x")]
            )
            return f"{key}={value}"
        if kind == 3:
            return draw.choice(["+", "++", "~", "+~"]) + f"{draw.choice([*fields])}=1"
        keys = [key for key, field in fields.items() if bad_values(field) and key not in swept]
        key = draw.choice(keys)
        return f"{key}={draw.choice(bad_values(fields[key]))}"

    def wild(self, command: str, algo: str, env: str) -> str:
        """One argument of which anything may be wrong, or nothing."""
        draw, fields = self.draw, self.fields(command, algo)
        value = draw.choice(draw.choice(WILD))
        pick = draw.random()
        if pick < 0.35:
            return f"{draw.choice([*fields])}={value}"
        if pick < 0.55:
            known = env_settings(env.removeprefix("gymnax/"))
            return f"env_kwargs.{draw.choice([*known])}={value}" if known else f"env_kwargs={value}"
        if pick < 0.65:
            return f"{draw.choice(['env', 'algo', 'env_kwargs', 'run_dir', 'resume'])}={value}"
        if pick < 0.75:
            return draw.choice(
                [f"run_dir={draw.choice(self.places)}", f"resume={draw.choice(['true', 'auto', value])}"]
            )
        if pick < 0.85:
            key = draw.choice([*fields, *(f"env_kwargs.{key}" for key in env_settings("CartPole-v1"))])
            return f"{misspelt(draw, key)}={value}"
        if pick < 0.9:
            return draw.choice(["+", "++", "~", "", "@", "/"]) + f"{draw.choice([*fields])}={value}"
        return draw.choice(ODDITIES) if pick < 0.97 else draw.choice(OPTIONS)


# --- Directories ------------------------------------------------------------------------------------------------------

YAML_VALUES = (
    "", "~", "1", "-1", "1.5", ".nan", "-.inf", "1e999", "0x" + "f" * 5000, "9" * 5000, "1" + ":59" * 3000, "true", "word",
    "'quoted'", "[]", "{}", "[1, [2, {a: b}]]", "{1: 2}", "{[1]: 2}", "? [a]", "2024-01-01", "2024-01-01T00:00:00Z",
    "9999-99-99", "!!binary aGVsbG8=", "!!binary '='", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!int word",
    "!!float word", "!!python/object:os.system {}", "!!python/object/apply:os.system ['touch pwned']", "!!nothing 1",
    "!!python/name:os.system", "*undefined", "<<: 1", "{<<: [1]}", "[" * 300 + "]" * 300,
    "[" * 5000, "{a: " * 300 + "}" * 300, "x" * 100_000, "'환경'", "'\\0'", '"\\0\\e[31m"', "\t", "%", "@", "`", "'", "[",
    "${seed}", "${oc.env:HOME}", "[" + "1, " * 20_000 + "1]", "!!str 5", "!!null x", "0o17", "1_000", "yes", "=",
)  # fmt: skip
WHOLE_FILES = (
    b"", b"\x00", b"\xff\xfe", b"[", b"word", b"1", b"[1, 2]", b"{}", b"{1: 2}", b"env: CartPole-v1\nenv: x\n", b"--- a\n--- b\n",
    b"!!python/object/apply:os.system ['touch pwned']", b"&a {env: *a}", b"a: " * 500, b"%YAML 9.9\n---\nenv: x\n",
    b"env: CartPole-v1\nalgo: haepo\n", b"algo: {name: haepo, name: ppo}\nenv: x\n", b"\xef\xbb\xbfenv: CartPole-v1\n",
    b"env: CartPole-v1\nalgo: {name: haepo, learning_rate: -1}\n", b"- " * 2000, b"{" * 2000, b"? " * 2000, b"\x85", b"env",
)  # fmt: skip


def make_places(folder: Path, seed: int, count: int = 150) -> list[str]:
    """Makes what `run_dir=` is to meet in a folder; returns the values to write behind it. None is a usable run."""
    draw = random.Random(seed)
    places = [
        "missing",
        "missing/below",
        "file",
        "file/below",
        "empty",
        "loop",
        "/dev/null",
        "/proc/self",
        "''",
        ".",
        "config",
    ]
    (folder / "file").write_text("")
    (folder / "loop").symlink_to("loop")
    for name in ("empty", "config/config.yaml", "환경 'a'", "sane"):
        (folder / name).mkdir(parents=True)
    places += ["'환경 \\'a\\''", "sane", "[empty,sane]", "sane,empty"]
    usable = compose(read_arguments(["env=CartPole-v1"]).overrides, RunConfig).to_dict()
    (folder / "sane" / "config.yaml").write_text(yaml.safe_dump(usable))
    for number in range(count):
        directory = folder / f"damaged{number}"
        directory.mkdir()
        places.append(directory.name)
        if draw.random() < 0.2:
            content = draw.choice(WHOLE_FILES)
        else:
            lines = {key: yaml.safe_dump({key: value}, default_flow_style=True)[1:-2] for key, value in usable.items()}
            key = draw.choice([*lines, "sed", "env_kwargs", "algo"])
            value = draw.choice(YAML_VALUES)
            inside = {
                "env_kwargs": f"{{{draw.choice(['gravity', 'max_steps_in_episode', 'a'])}: {value}}}",
                "algo": f"{{name: ppo, {draw.choice(['learning_rate', 'num_envs', 'hidden_sizes', 'x'])}: {value}}}",
            }
            lines[key] = f"{key}: {inside.get(key, value) if draw.random() < 0.7 else value}"
            content = "\n".join(lines.values()).encode()
        (directory / "config.yaml").write_bytes(content)
        if draw.random() < 0.3:
            (directory / "metrics.jsonl").write_bytes(draw.choice([*WHOLE_FILES, b'{"row": 0}\n', b"[1]\n", b"NaN\n"]))
    return places


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies in a folder: size and time of change of everything."""
    found = {}
    for parent, directories, files in os.walk(folder):
        for name in (*directories, *files):
            stat = os.lstat(path := os.path.join(parent, name))
            found[os.path.relpath(path, folder)] = (stat.st_size, stat.st_mtime_ns)
    return found


# --- Running them -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command line ended; `crash` is the traceback of what it let through."""

    status: int | None
    out: str
    err: str
    seconds: float = 0.0
    crash: str = ""


class Hang(BaseException):
    """The time is up. No `Exception`, so that nothing under test takes it for its own."""


def call(main: Callable[[list[str]], int], arguments: Sequence[str], seconds: float = SECONDS) -> Outcome:
    """Runs a command's `main` in this process, in the main thread."""

    def ring(signum: int, frame: Any) -> None:
        raise Hang

    out, err, crash, status = io.StringIO(), io.StringIO(), "", None
    before, begin = signal.signal(signal.SIGALRM, ring), time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(list(arguments))
    except BaseException:  # whatever a command lets through is what is looked for
        crash = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return Outcome(status, out.getvalue(), err.getvalue(), time.perf_counter() - begin, crash)


def spawn(line: Line, folder: Path, seconds: float = 300) -> Outcome:
    """Runs a command line as a process."""
    environment = os.environ | {"PYTHONPATH": str(Path(haepo_jax.__file__).parents[1])}
    command = [sys.executable, "-m", f"haepo_jax.{line.command}", *line.arguments]
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Outcome(None, "", "", seconds, "Hang")
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    return Outcome(done.returncode, out, err, time.perf_counter() - begin)


def can_be_spawned(line: Line) -> bool:
    """Whether the operating system can be given these arguments."""
    try:
        return not any(b"\0" in os.fsencode(argument) for argument in line.arguments)
    except UnicodeEncodeError:
        return False


def complaints(line: Line, outcome: Outcome) -> list[str]:
    """What is wrong with how a line ended."""
    status, out, err = outcome.status, outcome.out, outcome.err
    found = []
    if "Hang" in outcome.crash[-200:]:
        found.append("hangs")
    elif outcome.crash or "Traceback" in out + err:
        found.append("traceback")
    elif status not in (0, 2):
        found.append(f"exit status {status}")
    elif line.status not in (None, status):
        found.append(f"exit status {status}, not {line.status}")
    if status == 2:
        if out:
            found.append("refused, but wrote to stdout")
        if not (err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1):
            found.append("refused, but not in one line")
        elif not err[:-1].isprintable():
            found.append("refused with what cannot be printed")
        if len(err) > LONGEST:
            found.append(f"an error of {len(err)} characters")
    return found


@dataclasses.dataclass
class Report:
    """What came of many lines."""

    lines: int = 0
    statuses: collections.Counter[int | None] = dataclasses.field(default_factory=collections.Counter)
    certain: int = 0
    slowest: tuple[float, str] = (0.0, "")
    defects: list[str] = dataclasses.field(default_factory=list)

    def add(self, line: Line, outcome: Outcome, found: Sequence[str]) -> None:
        self.lines += 1
        self.statuses[outcome.status] += 1
        self.certain += line.status is not None
        self.slowest = max(self.slowest, (outcome.seconds, str(line)))
        if found:
            told = outcome.crash[-1500:] or (outcome.err + outcome.out)[-600:]
            self.defects.append(f"{'; '.join(found)}\n  {str(line)[:1500]!r}\n  {told}")

    def __str__(self) -> str:
        ended = ", ".join(f"{count} with {status}" for status, count in self.statuses.most_common())
        slow = f"slowest {self.slowest[0]:.1f} s: {self.slowest[1][:200]!r}"
        head = f"{self.lines} lines ended: {ended}; {self.certain} had to end so; {slow}; {len(self.defects)} defects"
        return "\n\n".join([head, *self.defects])


def most_megabytes() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(folder: Path, seed: int, count: int, processes: int = 0) -> Report:
    """Runs `count` lines in this process, whose working directory becomes `folder`, and others as processes."""
    report = Report()
    lines = Writer(seed, make_places(folder, seed)).lines()
    before = snapshot(folder)
    with contextlib.chdir(folder):
        for number in range(count + processes):
            line = next(lines)
            memory = most_megabytes()
            if number < count:
                outcome = call(
                    importlib.import_module(f"haepo_jax.runner.commands.{line.command}").main, line.arguments
                )
            else:
                line = next(one for one in itertools.chain([line], lines) if can_be_spawned(one))
                outcome = spawn(line, folder)
            found = complaints(line, outcome)
            if (grown := most_megabytes() - memory) > MEGABYTES:
                found.append(f"took {grown:.0f} MB")
            if (after := snapshot(folder)) != before:
                found.append(f"left {sorted(key for key in after if after.get(key) != before.get(key))} behind")
                before = after
            report.add(line, outcome, found)
    return report


def _main() -> int:
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[__name__]))
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0, help="how many more lines are run as processes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(Path(folder), arguments.seed, arguments.count, arguments.processes)
    print(report)
    return 1 if report.defects else 0


if __name__ == "__main__":
    sys.exit(_main())
