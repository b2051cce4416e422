"""Model folders in Hugging Face format: checked in full, loaded by Tunix, and written back in the format they came in.

A folder holds `config.json`, one or more `*.safetensors` and `tokenizer.json`. Tunix reads the weights; it has no
reader for `config.json` and no writer for anything but merged LoRA weights, so both are here. What its loader would
meet with a traceback, or would not notice, is refused before with one line.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.flax
from flax import nnx
from safetensors import SafetensorError, safe_open
from tunix.utils.torch_utils import torch_key_to_jax_key

from haepo_jax.messages import first_line, short
from haepo_jax.runner.config import ConfigError

FAMILIES = {"qwen2": ("qwen2", "Qwen2"), "qwen3": ("qwen3", "Qwen3"), "llama": ("llama3", "Llama3")}
"""The `model_type`s of `config.json`, with the module of `tunix.models` and the class that serve them."""

FIXED_THETA = ("qwen3", "llama")
"""Those whose rotary embeddings Tunix 0.1.7 computes with its own theta, whatever its configuration says."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A folder whose files are there, are readable and go together.

    Attributes:
      path: of the folder.
      model_type: a key of `FAMILIES`.
      config: Tunix's `ModelConfig`.
      context: the largest number of tokens that the model was made for.
      tensors: the weight files by name, each with its tensors' names and shapes.
      uniform: whether the tensors of every file share one dtype, as Tunix's fast loader takes for granted.
    """

    path: Path
    model_type: str
    config: Any
    context: int
    tensors: dict[str, dict[str, tuple[int, ...]]]
    uniform: bool

    @property
    def key_of(self) -> Callable[[str], tuple[str, Any]]:
        """Maps a tensor's name to its path in the Tunix model and what was done to it: (permutation, shape) or None.

        Raises ValueError for a tensor that the model does not have.
        """
        mapping = _module(self.model_type, "params")._get_key_and_transform_mapping(self.config)
        return lambda name: torch_key_to_jax_key(mapping, name)


def read_folder(name: str, dtype: str = "float32") -> ModelFolder:
    """Checks a model folder without loading its weights; raises ConfigError.

    Args:
      name: of the folder.
      dtype: "float32" or "bfloat16", in which the model is to be held and to compute.
    """
    path = Path(name)
    if not os.path.isdir(name):
        raise ConfigError(f"model={short(name)} is no folder: name one with config.json, *.safetensors, tokenizer.json")
    values = _read_json(path, "config.json")
    model_type = values.get("model_type")
    if model_type not in FAMILIES:
        raise ConfigError(
            f"model={short(name)}: config.json has model_type={short(model_type)}; there are: {', '.join(FAMILIES)}"
        )
    config, context = _model_config(name, values, dtype)
    tensors, uniform = _read_headers(path)
    folder = ModelFolder(path, model_type, config, context, tensors, uniform)
    _check_shapes(folder)
    return folder


def load_model(folder: ModelFolder, mesh: jax.sharding.Mesh) -> nnx.Module:
    """The model with the folder's weights, in the dtype that `read_folder` was given."""
    model: nnx.Module = _module(folder.model_type, "params").create_model_from_safe_tensors(
        str(folder.path),
        folder.config,
        mesh,
        dtype=getattr(folder.config, "param_dtype", None) or jnp.float32,
        mode="auto" if folder.uniform else "original",
    )
    return model


def load_tokenizer(folder: ModelFolder) -> Any:
    """The folder's tokenizer, as `transformers` loads it; raises ConfigError where it does not fit the model."""
    import transformers

    name = str(folder.path)
    if not (folder.path / "tokenizer.json").is_file():
        raise ConfigError(f"model={short(name)} has no tokenizer.json")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=True)
        largest = max(tokenizer.get_vocab().values())
    except Exception as error:  # its parsers share no base class, and the Rust one raises Exception itself
        raise ConfigError(f"model={short(name)}: its tokenizer cannot be read: {first_line(error)}") from None
    vocabulary = folder.config.vocab_size
    if largest >= vocabulary:
        raise ConfigError(
            f"model={short(name)}: the tokenizer does not fit: its tokens go up to {largest}, "
            f"but the model has {vocabulary} (vocab_size in config.json)"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"model={short(name)}: the tokenizer has no eos_token, so no completion could end")
    return tokenizer


def save_model(model: nnx.Module, folder: ModelFolder, out: Path, lora_scale: float = 0.0) -> None:
    """Writes a trained model as a copy of the folder that it came from: the same files, tensors and dtypes.

    Args:
      model: what `load_model` returned, trained; its LoRA parameters, if any, are added to the weights.
      folder: that it was loaded from.
      out: the folder to write; it appears, or replaces the one of that name, when it is complete.
      lora_scale: alpha / rank.
    """
    values = {_dotted(path): variable[...] for path, variable in nnx.to_flat_state(nnx.state(model))}

    def weight(key: str) -> jax.Array:
        if key == "lm_head.w" and key not in values:  # tied, and in the file nevertheless
            return values["embedder.input_embedding"].T
        if f"{key}_lora_a" in values:
            low_rank = jnp.tensordot(values[f"{key}_lora_a"], values[f"{key}_lora_b"], axes=1)
            return values[key] + lora_scale * low_rank.reshape(values[key].shape)
        return values[key]

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for file in folder.path.iterdir():
            if file.is_file() and file.suffix != ".safetensors":
                shutil.copy(file, temporary / file.name)
        for shard in folder.tensors:
            before = safetensors.flax.load_file(folder.path / shard)
            after = {}
            for name, tensor in before.items():
                try:
                    key, transform = folder.key_of(name)
                except ValueError:
                    after[name] = tensor  # not a weight of the model
                    continue
                after[name] = _undo(np.asarray(weight(key)), transform, tensor.shape).astype(tensor.dtype)
            with safe_open(folder.path / shard, "np") as opened:
                metadata = opened.metadata()
            safetensors.flax.save_file(after, temporary / shard, metadata)
        temporary.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _undo(value: np.ndarray[Any, Any], transform: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The tensor of `shape` that `transform` made `value` of."""
    permutation = transform[0] if transform is not None else None
    if permutation is None:
        return np.ascontiguousarray(value.reshape(shape))
    permuted = value.reshape([shape[axis] for axis in permutation])
    return np.ascontiguousarray(permuted.transpose(np.argsort(permutation)))


def _module(model_type: str, which: str) -> Any:
    return importlib.import_module(f"tunix.models.{FAMILIES[model_type][0]}.{which}")


def _model_config(name: str, values: dict[str, Any], dtype: str) -> tuple[Any, int]:
    """Tunix's configuration of the model that config.json describes, and its context; raises ConfigError for what Tunix
    would compute otherwise."""
    where = f"model={short(name)}: config.json"

    def number(key: str, kind: type = int, default: Any = None) -> Any:
        value: Any = values.get(key)
        value = default if value is None else value
        usable = isinstance(value, kind | int) and not isinstance(value, bool)
        if not usable or value <= 0:
            raise ConfigError(f"{where} has {key}={short(value)}, which must be a positive number")
        return value

    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    values = {"rope_theta": 10_000, **values, **rope}
    values["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    computed = {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "rope_type": "default",
    }
    if values["model_type"] in FIXED_THETA:
        computed["rope_theta"] = 1_000_000
    for key, only in computed.items():
        if values.get(key, only) != only:
            raise ConfigError(
                f"{where} has {key}={short(values[key])}, but Tunix computes {values['model_type']} with {key}={only}"
            )
    heads, width = number("num_attention_heads"), number("hidden_size")
    tied = bool(values.get("tie_word_embeddings", False))
    fields = {
        "num_layers": number("num_hidden_layers"),
        "vocab_size": number("vocab_size"),
        "embed_dim": width,
        "hidden_dim": number("intermediate_size"),
        "num_heads": heads,
        "head_dim": number("head_dim", default=width // heads),
        "num_kv_heads": number("num_key_value_heads", default=heads),
        "rope_theta": number("rope_theta", float),
        "norm_eps": number("rms_norm_eps", float, 1e-6),
        "use_tied_embedding": tied,
        "weight_tying": tied,
        "dtype": DTYPES[dtype],
        "param_dtype": DTYPES[dtype],
    }
    cls = _module(values["model_type"], "model").ModelConfig
    known = {field.name for field in dataclasses.fields(cls)}
    config = cls(**{key: value for key, value in fields.items() if key in known})
    return config, number("max_position_embeddings", default=2048)


def _read_json(path: Path, file: str) -> dict[str, Any]:
    try:
        values = json.loads((path / file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"model={short(str(path))} has no readable {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"model={short(str(path))}: {file} is not JSON: {first_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"model={short(str(path))}: {file} holds no settings")
    return values


def _read_headers(path: Path) -> tuple[dict[str, dict[str, tuple[int, ...]]], bool]:
    """The names and shapes of every weight file's tensors, and whether each file has one dtype."""
    tensors, uniform = {}, True
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "np") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
                tensors[file.name] = {name: tuple(part.get_shape()) for name, part in slices.items()}
                uniform &= len({part.get_dtype() for part in slices.values()}) <= 1
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"model={short(str(path))}: {file.name} cannot be read: {first_line(error)}") from None
    if not tensors:
        raise ConfigError(f"model={short(str(path))} has no weights: there is no *.safetensors in it")
    return tensors, uniform


def _check_shapes(folder: ModelFolder) -> None:
    """Raises ConfigError where the weights are not those of the model that config.json describes."""
    cls = getattr(_module(folder.model_type, "model"), FAMILIES[folder.model_type][1])
    abstract = nnx.eval_shape(lambda: cls(folder.config, rngs=nnx.Rngs(params=0)))
    missing = {_dotted(path): variable.shape for path, variable in nnx.to_flat_state(nnx.state(abstract))}
    where = f"model={short(str(folder.path))}"
    for name, shape in (item for file in folder.tensors.values() for item in file.items()):
        try:
            key, transform = folder.key_of(name)
        except ValueError:
            continue
        wanted = missing.pop(key, None)
        if wanted is None:
            continue
        permutation, reshape = transform or (None, None)
        got = tuple(shape[axis] for axis in permutation) if permutation and len(shape) == len(permutation) else shape
        if reshape is not None and int(np.prod(got)) == int(np.prod(reshape)):
            got = tuple(reshape)
        if got != tuple(wanted):
            raise ConfigError(f"{where}: {name} has shape {shape}, which is not what config.json describes")
    if missing:
        raise ConfigError(f"{where}: the weights lack {len(missing)} tensors of the model, first {min(missing)}")


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
