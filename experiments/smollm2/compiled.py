"""Compiles an update of a language model for an H100 and TPU v5e on a machine that has neither, without loading weights.

    python experiments/smollm2/compiled.py --model SmolLM2-135M [--targets h100 tpu tpu4] [--dtype bfloat16]

Needs the extra `llm` and the plugins of `experiments/benchmarks/accelerators/requirements.txt`. The update is that of `run.py`'s
experiment: HAEPO with a KL penalty on 32 completions of 5 tokens. Prints seconds of compilation and memory.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "benchmarks" / "accelerators")]

from worker import TARGETS, devices_of, prepare  # noqa: E402

PROMPT_TOKENS, COMPLETION_TOKENS = 16, 5


def compiled(model: str, target: str, dtype: str) -> tuple[Any, float]:
    """The compiled update, and the seconds that it took; `prepare` was called. Parameters are float32, and the model computes
    with them in `dtype`."""
    import jax
    import numpy as np
    import optax
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec

    from haepo_jax.llm.folder import Fixed, read_folder
    from haepo_jax.llm.learner import Batch, State, completions_per_prompt, make_update, token_log_probs
    from haepo_jax.llm.settings import LearnerConfig

    config = LearnerConfig(prompts_per_step=4, group_size=8, max_new_tokens=COMPLETION_TOKENS, kl_coef=0.001)
    mesh = jax.sharding.Mesh(np.array(devices_of(target)).reshape(-1, 1), ("fsdp", "tp"))
    whole, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("fsdp",)))
    module: Any = read_folder(model, dtype).abstract()
    for layer in module.layers:
        for name in ("q_bias", "k_bias", "v_bias"):
            setattr(layer.attn, name, Fixed(getattr(layer.attn, name).get_value()))

    def placed(tree: Any, shardings: Any, kind: Any = None) -> Any:
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, kind or x.dtype, sharding=s), tree, shardings)

    graph, *parts = nnx.split(module, nnx.Param, ...)
    params, rest = parts
    dtypes = jax.tree.map(lambda x: x.dtype, params)
    params = placed(params, nnx.get_named_sharding(params, mesh), np.float32)
    rest = placed(rest, nnx.get_named_sharding(rest, mesh))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-5))
    opt_state = jax.eval_shape(optimizer.init, params)
    moments = optax.tree_utils.tree_map_params(
        optimizer, lambda _, param: param.sharding, opt_state, params, transform_non_params=lambda _: whole
    )
    layout = State(jax.tree.map(lambda x: x.sharding, params), moments)
    count = config.prompts_per_step * config.group_size

    def array(kind: str, *more: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *more), np.dtype(kind), sharding=rows)

    tokens = COMPLETION_TOKENS
    batch = Batch(
        prompt_ids=array("int32", PROMPT_TOKENS), completion_ids=array("int32", tokens), mask=array("bool", tokens),
        rewards=array("float32"), behaviour=array("float32", tokens), reference=array("float32", tokens),
        fresh=array("bool"),
    )  # fmt: skip
    share = completions_per_prompt(config, PROMPT_TOKENS, count, mesh.size)
    of_tokens = functools.partial(token_log_probs, temperature=1.0, pad_id=2, share=share)
    update: Any = make_update(graph, dtypes, optimizer, config, of_tokens, (layout, rows, whole))
    begin = time.perf_counter()
    with mesh:
        traced = update.trace(params, placed(opt_state, moments), [rest], batch)
        program = traced.lower(lowering_platforms=(TARGETS[target]["platform"],)).compile()
    return program, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="SmolLM2-135M", help="the folder of examples/smollm2.py")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the model's computation"
    )
    options = parser.parse_args()
    if len(options.targets) > 1:  # jax is prepared for one
        for target in options.targets:
            same = ["--model", options.model, "--dtype", options.dtype]
            subprocess.run([sys.executable, __file__, *same, "--targets", target], check=True)
        return
    (target,) = options.targets
    prepare(target)
    program, seconds = compiled(options.model, target, options.dtype)
    memory = program.memory_analysis()
    sizes = {name: getattr(memory, f"{name}_size_in_bytes") / 1e9 for name in ("argument", "temp")}
    print(
        f"{target}, {options.dtype}: compiled in {seconds:.0f} s; {sizes['argument']:.2f} GB of state, {sizes['temp']:.2f} GB temporary"
    )


if __name__ == "__main__":
    main()
