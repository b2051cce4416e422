"""From a command line to checked settings.

`read_arguments` parses `key=value` with Hydra's grammar, and `compose` puts them over the defaults with Hydra's compose
API.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import shlex
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from haepo_jax.config import (
    ALGORITHM_NAMES,
    DEFAULT_ALGORITHM,
    ConfigError,
    RunConfig,
    algorithm_class,
    default_of,
    has_hyperparameters,
    hyperparameter_defaults,
    hyperparameter_fields,
)
from haepo_jax.config.values import Settings, checked_value, find_field, from_dict
from haepo_jax.messages import one_line, short

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

NOT_FROM_FILE = ("run_dir", "resume", "distributed", "dry_run")
"""Settings of one start of the command, which another does not take over from its `config.yaml`."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A command line taken apart: `overrides` in the order given, and the options among them.

    Attributes:
      file: the settings in the file of `--config`, to be taken before the overrides; None: there is no file.
    """

    overrides: tuple[Override, ...]
    file: SettingsFile | None = None
    help: bool = False
    show_config: bool = False
    list_envs: bool = False


def read_arguments(argv: Sequence[str], *, takes_file: bool = False) -> Arguments:
    """Parses a command line with Hydra's grammar; raises ConfigError. Sweeps are left for the command to judge, and
    `--config` is an option where `takes_file`."""
    options: dict[str, Any] = {}
    overrides = []
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("--help", "-h"):
            options["help"] = True
        elif argument == "--list-envs":
            options["list_envs"] = True
        elif argument in ("--cfg", "-c") or argument.startswith("--cfg="):
            what = argument.partition("=")[2] or next(arguments, "")
            if what != "job":
                raise ConfigError(f"--cfg takes the word job, not {what!r}")
            options["show_config"] = True
        elif argument in ("-m", "--multirun"):
            others = shlex.join(["python", "-m", "haepo_jax.sweep", *(a for a in argv if a != argument)])
            raise ConfigError(f"{argument} is Hydra's: several configurations are trained by {others}")
        elif takes_file and (argument == "--config" or argument.startswith("--config=")):
            options["file"] = SettingsFile.read(argument.partition("=")[2] or next(arguments, ""))
        elif argument.startswith("-"):
            name = argument.lstrip("-").partition("=")[0]
            raise ConfigError(
                f"unknown option {short(argument)}; settings are written {name or 'key'}=value (see --help)"
            )
        else:
            overrides.append(_parse(argument))
    return Arguments(tuple(overrides), **options)


@dataclasses.dataclass(frozen=True)
class SettingsFile:
    """The settings in a file of YAML, such as the `config.yaml` that a run leaves; what belongs to that run is left out.

    Attributes:
      name: of the file.
      values: by key, not checked; a hyperparameter is below `algo`, whose own name is its `name`.
    """

    name: str
    values: dict[str, Any]

    @classmethod
    def read(cls, name: str) -> SettingsFile:
        """Raises ConfigError, in one line, where the file cannot be read or holds no settings."""
        import yaml

        class Loader(yaml.SafeLoader):
            pass

        # YAML 1.1 takes 1e-3 for a word: its numbers have a point.
        exponent = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
        Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789"))
        place = f"--config {short(name)}"
        if not name:
            raise ConfigError("--config needs the name of a file")
        try:
            values = yaml.load(Path(name).read_text(encoding="utf-8"), Loader)
        except OSError as error:
            raise ConfigError(f"{place} cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            raise ConfigError(f"{place} is not YAML: {one_line(str(error), 160)}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{place} holds no settings: lines such as env: CartPole-v1 are wanted")
        if "objects" in values:
            raise ConfigError(f"{place} is of a run of a program's own objects, which cannot be made from it")
        if isinstance(values.get("algo"), str):
            values["algo"] = {"name": values["algo"]}
        return cls(name, {key: value for key, value in values.items() if key not in NOT_FROM_FILE})


@functools.cache
def _parser() -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _parse(argument: str) -> Override:
    if "=" not in argument:
        raise ConfigError(f"cannot read {short(argument)}: settings are written key=value")
    try:
        argument.encode()
        override: Override = _parser().parse_override(argument)
    except RecursionError:
        raise ConfigError(f"cannot read {short(argument)}: nested too deeply") from None
    except Exception as error:  # Hydra's grammar raises its own errors, ValueError, and whatever its functions raise
        reason = "not valid UTF-8" if isinstance(error, UnicodeEncodeError) else _first_line(error)
        key = argument.partition("=")[0]
        quote = f"; a value with special characters must be quoted: '{key}=\"...\"'" if key.isascii() else ""
        raise ConfigError(f"cannot read {short(argument)}: {reason}{quote}") from None
    return override


def choices(override: Override) -> list[str]:
    """The values of `key=a,b`, or the only one of `key=a`, as text; raises ConfigError for what lists no names."""
    value: Any = override.value()
    if not override.is_sweep_override():
        return [str(value)]
    if not hasattr(value, "list"):  # a range, which may be endless, an interval or a glob
        raise ConfigError(f"cannot use {short(_text(override))}: write {override.key_or_group}=a,b")
    return [str(getattr(item, "text", item)) for item in value.list]


def compose(overrides: Iterable[Override], schema: type[Settings]) -> Settings:
    """The settings that the overrides make of the schema's defaults; raises ConfigError at the first that is wrong.

    `schema` is a dataclass of `setting` fields: `RunConfig`, or the settings of another command. A field of kind `list`
    accepts `key=a,b` beside `key=[a,b]`; any other list of values is refused, because only a sweep or a comparison
    can use one: such a command takes its sweeps out of the overrides first.
    """
    overrides = list(overrides)
    fields = {f.name: f for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    algo = _algorithm_name(overrides) if has_hyperparameters(fields) else None
    for override in overrides:
        _check_form(override)
    lines = [] if algo is None else [f"{_GROUP}={algo}"]
    for override in overrides:
        key = override.key_or_group
        if key != "algo" or algo is None:
            lines.append(_checked_line(override, find_field(key, algo, fields)))
    return from_dict(_compose(lines, schema, algo), schema)


def peek(overrides: Sequence[Override], schema: type, key: str) -> Any:
    """The value that the overrides give one key, before the others are looked at; raises ConfigError."""
    field = next(f for f in dataclasses.fields(schema) if f.name == key)
    value = default_of(field)
    for override in overrides:
        if override.key_or_group == key:
            _refuse_sweep(override)
            value = checked_value(key, field, override.value())
    return value


def changed(settings: Mapping[str, Any], overrides: Sequence[Override], place: str = "") -> RunConfig:
    """Settings, as `RunConfig.to_dict` gives them or some of those, with those that are given changed; raises ConfigError,
    which begins with the `place` of the settings where it is not the overrides that are wrong.

    Another algorithm comes with its own defaults. Values that refer to others (`${...}`) are not resolved here.
    """
    fields = {f.name: f for f in dataclasses.fields(RunConfig)}
    values: dict[str, Any] = copy.deepcopy({"algo": {}, **settings})
    if isinstance(values["algo"], dict):
        values["algo"] = {"name": DEFAULT_ALGORITHM} | values["algo"]
    before = values["algo"]["name"] if isinstance(values["algo"], dict) else DEFAULT_ALGORITHM
    if not isinstance(before, str):
        raise ConfigError(f"{place}algo.name={short(before)} must be the name of an algorithm")
    algo = _algorithm_name([o for o in overrides if o.key_or_group == "algo"], before)
    if algo != before:
        values["algo"] = {"name": algo}
    for override in overrides:
        _check_form(override)
        _refuse_sweep(override)
        key = override.key_or_group
        if key == "algo":
            continue
        field = find_field(key, algo, fields)
        if field.metadata["kind"] is not dict:
            checked_value(key, field, override.value())
        node = values
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else {}
        if not isinstance(node, dict):
            raise ConfigError(f"cannot use {short(_text(override))}: {'.'.join(parents)} is no group of settings")
        node[leaf] = override.value()
    try:
        return from_dict(values, RunConfig)
    except ConfigError as error:
        raise ConfigError(f"{place}{error}") from None


def _check_form(override: Override) -> None:
    text = _text(override)
    if text[0] in "+~":
        raise ConfigError(f"cannot use {short(text)}: write key=value, without {text[0]!r}")
    if override.package is not None:
        raise ConfigError(f"cannot use {short(text)}: a key has no '@'")


def _algorithm_name(overrides: list[Override], name: str = DEFAULT_ALGORITHM) -> str:
    for override in overrides:
        if override.key_or_group == "algo":
            _refuse_sweep(override)
            value = override.value()
            if not isinstance(value, str) or not value:
                raise ConfigError(f"algo={short(value)} must be the name of an algorithm: {', '.join(ALGORITHM_NAMES)}")
            algorithm_class(value)
            name = value
    return name


def _text(override: Override) -> str:
    """The argument as it was given."""
    return override.input_line or ""


def _refuse_sweep(override: Override) -> None:
    if override.is_sweep_override():
        raise ConfigError(
            f"{short(_text(override))}: several values belong to haepo_jax.compare or haepo_jax.sweep; "
            "here a key takes one (a pair or list is written [a,b])"
        )


def _checked_line(override: Override, field: dataclasses.Field[Any]) -> str:
    """The override as Hydra composes it, its value checked where it is known already (not an interpolation's)."""
    key, kind, text = override.key_or_group, field.metadata["kind"], _text(override)
    if kind is list and override.is_sweep_override():
        names = text.partition("=")[2]
        if re.match(r"\s*\w+\(", names):
            raise ConfigError(f"cannot use {short(text)}: write {key}=a,b")
        return f"{key}=[{names}]"
    _refuse_sweep(override)
    if kind is dict:
        # These keys are the environment's, so the schema cannot know them: `++` lets Hydra add them.
        if not key.partition(".")[2]:
            checked_value(key, field, override.value())
        return f"++{text}"
    value = override.value()
    if isinstance(value, str) and "${" in value:
        return text
    checked = checked_value(key, field, value)
    return f"{key}={checked}" if type(checked) is int else text


def _compose(lines: list[str], schema: type, algo: str | None) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize
    from omegaconf import OmegaConf

    _register(schema)
    try:
        with warnings.catch_warnings(), initialize(version_base="1.3", config_path=None):
            warnings.simplefilter("ignore")  # the resolver oc.deprecated warns, in two lines
            config = hydra_compose(schema.__name__, overrides=lines)
            values = OmegaConf.to_container(config, resolve=True)
    except Exception as error:  # Hydra, OmegaConf and their resolvers share no base class
        raise ConfigError(_first_line(error.__cause__ or error)) from None
    return cast(dict[str, Any], values)


_GROUP = "algorithms"
"""Hydra's name for the group of algorithms, which fills the key `algo`. Groups belong to the process, not to a schema: by
the name of the key, this one would be taken for a plain setting `algo` of another command."""


@functools.cache
def _register(schema: type) -> None:
    """Gives Hydra the typed schema of a command, with the algorithms as a config group."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    fields = {f.name: f for f in dataclasses.fields(schema)}
    has_algo = has_hyperparameters(fields)
    node = _structured(schema.__name__, {k: f for k, f in fields.items() if not has_algo or k != "algo"}, {}, has_algo)
    store.store(name=schema.__name__, node=node)
    if has_algo:
        for name in ALGORITHM_NAMES:
            group = _structured(
                name, hyperparameter_fields(name), hyperparameter_defaults(name) | {"name": name}, False
            )
            store.store(group=_GROUP, package="algo", name=name, node=group)


def _structured(
    name: str, fields: Mapping[str, dataclasses.Field[Any]], values: dict[str, Any], has_algo: bool
) -> type:
    """A dataclass that OmegaConf understands, with its types where OmegaConf has them."""
    from omegaconf import MISSING

    columns: list[Any] = []
    if "name" in values:
        columns.append(("name", str, values["name"]))
    for key, field in fields.items():
        kind = field.metadata["kind"]
        annotation: Any = kind if kind in (int, bool, str) else dict[str, Any] if kind is dict else Any
        if kind in (int, bool, str) and field.metadata["optional"]:
            annotation = annotation | None
        default = values.get(key, default_of(field))
        default = list(default) if isinstance(default, tuple) else {} if kind is dict else default
        columns.append((key, annotation, dataclasses.field(default_factory=functools.partial(copy.copy, default))))
    if has_algo:
        order = [{_GROUP: DEFAULT_ALGORITHM}, "_self_"]
        columns.append(("algo", Any, MISSING))
        columns.append(("defaults", list[Any], dataclasses.field(default_factory=lambda: order)))
    return dataclasses.make_dataclass(f"{name}_schema", columns)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return one_line(lines[0] if lines else type(error).__name__, 200)
