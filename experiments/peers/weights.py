"""The embedded model in the peers' formats, so that every engine computes the same weights.

<cache>/peers/weights-<digest>/hf/          Hugging Face folder, float32
                               F32.gguf     and F16.gguf, Q8_0.gguf
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.loading import embedded
from kvflow_jax.models.loading.gguf import GgufFile
from kvflow_jax.models.loading.safetensors_folder import WEIGHTS_FILE
from kvflow_jax.models.model import Model

GGUF_TYPES = ("F32", "F16", "Q8_0")
FORMAT = 1  # of the folder; counts up if what is written changes


@dataclass(frozen=True)
class PeerWeights:
    """The folder of converted weights."""

    folder: Path

    @classmethod
    def of(cls, cache_dir: Path) -> PeerWeights:
        """Return the folder of the embedded model, written or not."""
        return cls(cache_dir / "peers" / f"weights-{embedded.SHA256[:12]}-{FORMAT}")

    @property
    def hf(self) -> Path:
        """The Hugging Face folder."""
        return self.folder / "hf"

    def gguf(self, kind: str) -> Path:
        """Return the .gguf file whose matrices have this type of ``GGUF_TYPES``."""
        return self.folder / f"{kind}.gguf"

    def ensure(self) -> None:
        """Write the folder unless that was done before, in about half a minute.

        Raises:
            ModelLoadError: the embedded model is not installed.
        """
        if self.folder.exists():
            return
        source = embedded.locate()
        print(f"writing {self.folder}, which is done once", flush=True)
        # Complete under its name, whenever the process is killed.
        partial = PeerWeights(self.folder.with_suffix(".partial"))
        shutil.rmtree(partial.folder, ignore_errors=True)
        partial.folder.mkdir(parents=True)
        write_hf_folder(partial.hf, source, embedded.CONFIG)
        for kind in GGUF_TYPES:
            write_gguf(partial.gguf(kind), source, kind)
        partial.folder.rename(self.folder)


def write_hf_folder(folder: Path, source: Path, config: ModelConfig) -> None:
    """Write the model of a .gguf file, of the family llama, as a Hugging Face folder in float32."""
    folder.mkdir()
    file = GgufFile(source)
    tensors = file.tensors(Model.build(config))
    weights = {
        name: np.ascontiguousarray(tensors.read(name, tuple(slice(0, size) for size in shape)))
        for name, shape, _ in tensors.headers
    }
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(llama_config(config), indent=1))
    file.tokenizer().save_pretrained(folder)


def llama_config(config: ModelConfig) -> dict[str, object]:
    """Return the config.json of a model of the family llama without variants."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_model_len,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": config.activation,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "dtype": "float32",
    }


def write_gguf(path: Path, source: Path, kind: str) -> None:
    """Write a copy of a .gguf file whose matrices have the type ``kind``, its vectors float32."""
    import gguf

    reader = gguf.GGUFReader(source)
    matrices = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, str(reader.fields["general.architecture"].contents()))
    own = ("general.architecture", "general.file_type", "general.quantization_version")
    for name, entry in reader.fields.items():
        # Of the file itself, which the writer adds.
        if name.startswith("GGUF.") or name in own:
            continue
        if entry.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, entry.contents())
        else:
            writer.add_key_value(name, entry.contents(), entry.types[0])
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}" if kind != "F32" else "ALL_F32"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, gguf.quantize(values, matrices), raw_dtype=matrices)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
