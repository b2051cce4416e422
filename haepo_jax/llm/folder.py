"""Model folders in Hugging Face format: checked, loaded into Tunix's models, and written back in the same layout.

A folder holds `config.json`, one or more `*.safetensors` and `tokenizer.json`. Tunix's models are public; how
it maps a file's tensors to them is not, so that is here. Whatever does not fit is refused in one line before it is loaded.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.flax
from flax import nnx
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError, safe_open

from haepo_jax.messages import first_line, short
from haepo_jax.runner.config import ConfigError

FAMILIES = {"qwen2": ("qwen2", "Qwen2"), "qwen3": ("qwen3", "Qwen3"), "llama": ("qwen2", "Qwen2")}
"""The `model_type`s of `config.json`, with the module of `tunix.models` and the class that compute them. A Llama is a
Qwen 2 without attention biases; Tunix's own Llama 3 has a fixed `rope_theta`."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
LAYER = r"model\.layers\.(\d+)\."
NAMES = {
    r"model\.embed_tokens\.weight": "embedder.input_embedding",
    r"model\.norm\.weight": "final_norm.w",
    r"lm_head\.weight": "lm_head.w",
    LAYER + r"self_attn\.([qkvo]_proj)\.weight": r"layers.\1.attn.\2.w",
    LAYER + r"self_attn\.([qkv])_proj\.bias": r"layers.\1.attn.\2_bias",
    LAYER + r"self_attn\.([qk]_norm)\.weight": r"layers.\1.attn.\2.w",
    LAYER + r"mlp\.((?:gate|up|down)_proj)\.weight": r"layers.\1.mlp.\2.kernel",
    LAYER + r"(input_layernorm|post_attention_layernorm)\.weight": r"layers.\1.\2.w",
}
"""Patterns of a tensor's name in the file, and its path in Tunix's model."""
FIELDS = {
    "num_layers": "num_hidden_layers", "vocab_size": "vocab_size", "embed_dim": "hidden_size",
    "hidden_dim": "intermediate_size", "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads",
    "rope_theta": "rope_theta", "norm_eps": "rms_norm_eps",
}  # fmt: skip
"""Numbers of Tunix's `ModelConfig`, and their keys in `config.json`."""


class Fixed(nnx.Variable):  # type: ignore[type-arg]
    """A variable that is neither trained nor written: the biases that a Llama does not have, which are 0."""


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model folder that has been checked: its files are readable and fit together.

    Attributes:
      path: the folder.
      model_type: a key of `FAMILIES`.
      config: Tunix's `ModelConfig`.
      context: the largest number of tokens that the model was made for.
      tensors: the weight files by name, each with its tensors' names and shapes.
    """

    path: Path
    model_type: str
    config: Any
    context: int
    tensors: dict[str, dict[str, tuple[int, ...]]]

    def key_of(self, name: str) -> str | None:
        """The path in the model of a tensor; None where the model has none of that name."""
        if self.model_type == "llama" and name.endswith(".bias"):
            return None
        return next((re.sub(p, path, name) for p, path in NAMES.items() if re.fullmatch(p, name)), None)

    def abstract(self) -> nnx.Module:
        """The model without its weights."""
        cls = getattr(_module(self.model_type), FAMILIES[self.model_type][1])
        return nnx.eval_shape(lambda: cls(self.config, rngs=nnx.Rngs(params=0)))


def read_folder(name: str, dtype: str = "float32") -> ModelFolder:
    """Checks a model folder without loading its weights; raises ConfigError.

    Args:
      name: path of the folder.
      dtype: of the weights and the computation, "float32" or "bfloat16".
    """
    path, where = Path(name), f"model={short(name)}"
    if not os.path.isdir(name):
        raise ConfigError(f"{where} is not a directory: name one with config.json, *.safetensors, tokenizer.json")
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{where} has no readable config.json: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: config.json is not JSON: {first_line(error)}") from None
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type not in FAMILIES:
        raise ConfigError(f"{where}: config.json has model_type={short(model_type)}; there are: {', '.join(FAMILIES)}")
    folder = ModelFolder(path, model_type, *_model_config(name, values, dtype), _read_headers(path))
    _check_shapes(folder)
    return folder


def load_model(folder: ModelFolder, mesh: jax.sharding.Mesh) -> nnx.Module:
    """The model with the folder's weights, in the dtype that `read_folder` was given, laid out over the mesh as the model
    says."""
    model = folder.abstract()
    variables = {_dotted(path): variable for path, variable in nnx.to_flat_state(nnx.state(model))}
    placed = nnx.to_pure_dict(nnx.get_named_sharding(nnx.state(model), mesh))
    shardings = {_dotted(path): sharding for path, sharding in flatten_dict(placed).items()}
    for shard in folder.tensors:
        with safe_open(folder.path / shard, "flax") as opened:
            for name in folder.tensors[shard]:
                if (key := folder.key_of(name)) in variables:
                    value, variable = np.asarray(opened.get_tensor(name)), variables[key]
                    value = (value.T if _flips(name, value.ndim) else value).reshape(variable.shape)
                    variable.set_value(jax.device_put(value.astype(variable.dtype), shardings[key]))
    if folder.model_type == "llama":
        for layer in model.layers:  # type: ignore[attr-defined]
            for name in ("q_bias", "k_bias", "v_bias"):
                bias = getattr(layer.attn, name)
                setattr(layer.attn, name, Fixed(jnp.zeros(bias.shape, bias.dtype)))
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
    # Tunix takes every token equal to the padding for padding, so it must be none that prompts begin with or chats hold.
    used = f"{tokenizer.bos_token}{tokenizer.eos_token}{tokenizer.chat_template}"
    if (tokenizer.pad_token or tokenizer.eos_token) in used:
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        unused = [token for token in (*added, *tokenizer.all_special_tokens) if token not in used]
        tokenizer.pad_token = unused[-1] if unused else tokenizer.eos_token
    return tokenizer


def save_model(model: nnx.Module, folder: ModelFolder, out: Path) -> None:
    """Writes a trained model as a copy of the folder that it was loaded from: the same files, tensors and dtypes.

    Args:
      model: from `load_model`, trained; its LoRA parameters, if any, are added to the weights.
      folder: the one that it was loaded from.
      out: the folder to write. It appears, or replaces the one of that name, when it is complete.
    """
    values = {_dotted(path): variable[...] for path, variable in nnx.to_flat_state(nnx.state(model))}

    def weight(key: str) -> jax.Array:
        if key == "lm_head.w" and key not in values:  # tied, and in the file nevertheless
            return values["embedder.input_embedding"].T
        if f"{key}_lora_a" in values:
            low_rank = jnp.tensordot(values[f"{key}_lora_a"], values[f"{key}_lora_b"], axes=1)
            return values[key] + low_rank.reshape(values[key].shape)
        return values[key]

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for file in folder.path.iterdir():
            if file.is_file() and file.suffix != ".safetensors":
                shutil.copy(file, temporary / file.name)
        for shard in folder.tensors:
            tensors: dict[str, Any] = dict(safetensors.flax.load_file(folder.path / shard))
            for name, before in tensors.items():
                if (key := folder.key_of(name)) is not None:  # else not a weight of the model
                    after = np.asarray(weight(key))
                    after = after.reshape(before.shape[::-1]).T if _flips(name, before.ndim) else after
                    tensors[name] = np.ascontiguousarray(after).astype(before.dtype)
            safetensors.flax.save_file(tensors, temporary / shard, {"format": "pt"})  # transformers asks for it
        temporary.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flips(name: str, ndim: int) -> bool:
    """Whether a tensor is (out, in) in the file and (in, out) in the model."""
    return ndim == 2 and not name.endswith("embed_tokens.weight")


def _module(model_type: str) -> Any:
    return importlib.import_module(f"tunix.models.{FAMILIES[model_type][0]}.model")


def _model_config(name: str, values: dict[str, Any], dtype: str) -> tuple[Any, int]:
    """Tunix's configuration of the model that config.json describes, and its context; raises ConfigError where Tunix would
    compute something else."""
    where, family = f"model={short(name)}: config.json", values["model_type"]
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    defaults = {
        "num_key_value_heads": values.get("num_attention_heads"), "rope_theta": 10_000, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048, "rope_type": rope.get("type", "default"),
    }  # fmt: skip
    values = defaults | {key: value for key, value in values.items() if value is not None} | rope
    computed = {
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False,
        "rope_type": "default",
    }  # fmt: skip
    if family == "qwen3":  # Tunix 0.1.7 has it as a constant there
        computed["rope_theta"] = 1_000_000
    for key, only in computed.items():
        if values.get(key, only) != only:
            raise ConfigError(f"{where} has {key}={short(values[key])}, but Tunix computes {family} with {key}={only}")
    for key in (*FIELDS.values(), "max_position_embeddings"):
        if not isinstance(values.get(key), int | float) or values[key] <= 0:
            raise ConfigError(f"{where} has {key}={short(values.get(key))}, which must be a positive number")
    config = _module(family).ModelConfig(
        **{ours: values[theirs] for ours, theirs in FIELDS.items()},
        head_dim=values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"],
        use_tied_embedding=bool(values.get("tie_word_embeddings", False)),
        dtype=DTYPES[dtype],
        param_dtype=DTYPES[dtype],
    )
    return config, values["max_position_embeddings"]


def _read_headers(path: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """The names and shapes of every weight file's tensors."""
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "np") as opened:
                tensors[file.name] = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"model={short(str(path))}: {file.name} cannot be read: {first_line(error)}") from None
    if not tensors:
        raise ConfigError(f"model={short(str(path))} has no weights: there is no *.safetensors in it")
    return tensors


def _check_shapes(folder: ModelFolder) -> None:
    """Raises ConfigError where the weights are not those of the model that config.json describes."""
    missing = {
        _dotted(path): tuple(variable.shape) for path, variable in nnx.to_flat_state(nnx.state(folder.abstract()))
    }
    if folder.model_type == "llama":
        missing = {key: shape for key, shape in missing.items() if not key.endswith("_bias")}
    where = f"model={short(str(folder.path))}"
    for name, shape in (item for file in folder.tensors.values() for item in file.items()):
        wanted = missing.pop(folder.key_of(name) or "", shape)
        if math.prod(shape) != math.prod(wanted):  # in the model, heads are an axis of their own
            raise ConfigError(f"{where}: {name} has shape {shape}, which is not what config.json describes")
    if missing:
        raise ConfigError(f"{where}: the weights lack {len(missing)} tensors of the model, first {min(missing)}")


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
