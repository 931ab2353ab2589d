"""How fast a model is loaded, first and again, and how much host memory that takes.

    python -m experiments.load_bench --json FILE

Each load runs in a process of its own. Peak memory is that of a made-up checkpoint of 2 GB, float32
in two shards, above what importing takes, over the checkpoint's size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.measure import arguments, report

HF = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
NUM_SHARDS = 2
TARGETS = {"restore_speedup": ">= 3", "load_peak_ratio": "<= 1.3"}


def main() -> int:
    if len(sys.argv) > 2 and sys.argv[1] == "--child":
        return _child(sys.argv[2], sys.argv[3])
    options = arguments(__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = _load("smollm2-135m", folder / "cache")
        again = [_load("smollm2-135m", folder / "cache") for _ in range(3)]
        nbytes = _write_checkpoint(folder / "model")
        importing = _load("", folder / "cache")
        loading = _load(str(folder / "model"), folder / "cache")
    restore_s = min(one["load_s"] for one in again)
    figures = {
        "first_load_s": first["load_s"],
        "restore_s": restore_s,
        "restore_speedup": first["load_s"] / restore_s,
        "checkpoint_gb": nbytes / 1e9,
        "checkpoint_load_s": loading["load_s"],
        "load_peak_ratio": (loading["peak_bytes"] - importing["peak_bytes"]) / nbytes,
    }
    report(figures, TARGETS, options.json)
    return 0


def _load(model: str, cache_dir: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "experiments.load_bench", "--child", model, str(cache_dir)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _child(model: str, cache_dir: str) -> int:
    import jax

    from kvflow_jax.models import embedded
    from kvflow_jax.models.loading import load_model
    from kvflow_jax.models.native.ops import native_ops

    jax.block_until_ready(jax.numpy.zeros(1))  # whatever starting the device takes
    native_ops(embedded.CONFIG, "float32", Path(cache_dir))  # and building the kernels
    start = time.perf_counter()
    if model:
        loaded = load_model(model, cache_dir=Path(cache_dir), progress=False)
        jax.block_until_ready(loaded.params)
    figures = {
        "load_s": time.perf_counter() - start,
        "peak_bytes": _peak_bytes(),
    }
    print(json.dumps(figures))
    return 0


def _peak_bytes() -> int:
    """Most memory this process has had. What getrusage says may be its parent's."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def _write_checkpoint(folder: Path) -> int:
    """A Hugging Face folder of random weights; bytes of its tensors."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(HF))
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    words.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    rng, nbytes = np.random.default_rng(0), 0
    d, f, kv = 2048, 5632, 512
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (32_000, d),
        "model.norm.weight": (d,),
    }
    for i in range(8):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}self_attn.q_proj.weight": (d, d),
            f"{layer}self_attn.k_proj.weight": (kv, d),
            f"{layer}self_attn.v_proj.weight": (kv, d),
            f"{layer}self_attn.o_proj.weight": (d, d),
            f"{layer}mlp.gate_proj.weight": (f, d),
            f"{layer}mlp.up_proj.weight": (f, d),
            f"{layer}mlp.down_proj.weight": (d, f),
            f"{layer}input_layernorm.weight": (d,),
            f"{layer}post_attention_layernorm.weight": (d,),
        }
    names, weight_map = list(shapes), {}
    for shard in range(NUM_SHARDS):
        file = f"model-{shard + 1:05}-of-{NUM_SHARDS:05}.safetensors"
        part: dict[str, Any] = {
            name: rng.standard_normal(shapes[name], dtype=np.float32)
            for name in names[shard::NUM_SHARDS]
        }
        nbytes += sum(tensor.nbytes for tensor in part.values())
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return nbytes


if __name__ == "__main__":
    sys.exit(main())
