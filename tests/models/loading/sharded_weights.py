"""Weights of every family, read from a folder and from a checkpoint, over two devices beside the
same on one; run by test_placing, in a process of its own: devices are counted out when JAX starts.
"""

import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np

from kvflow_jax.models.loading import placement
from kvflow_jax.models.loading.checkpoint import CheckpointStore
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.safetensors_folder import FolderTensors
from kvflow_jax.models.loading.weights import NamedWeights
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA
from kvflow_jax.models.sharding import Shards, arranged
from tests.models import tiny
from tests.models.sources import CountedTensors, folder_weights, read_folder

FAMILIES = {  # with KV heads for two
    "llama": tiny.CONFIGS["untied-mha"],
    "biased": tiny.CONFIGS["linear-rope-biased"] | {"num_key_value_heads": 2},
    "gemma3": tiny.CONFIGS["gemma3"],
    "phi3": tiny.CONFIGS["phi3"],
    "qwen3-moe": tiny.CONFIGS["qwen3-moe"],
}
FAMILIES["biased"] |= {"num_attention_heads": 4, "head_dim": 24}


def check(params, stacked, model, shards):
    for name, weight in stacked.items():
        laid = np.asarray(arranged(name, weight, model.config, shards.num))
        assert len(params[name].addressable_shards) == shards.num
        for shard in params[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, laid[shard.index])
        assert params[name].sharding == shards.weights(model)[name]


def main():
    place, shards = Path(sys.argv[1]), Shards.over(2)
    for name, hf in FAMILIES.items():
        folder = tiny.write_folder(place / name, hf, shards=2)
        model = Model.build(read_config(hf), ops=XLA)
        shards.part(model)  # it can be cut
        stacked = read_folder(model, folder)
        for in_copies, piece_bytes in ((False, 1 << 28), (True, 1 << 28), (True, 5000)):
            placement.PIECE_BYTES = piece_bytes
            source = folder_weights(model, folder)
            check(
                placement.place(model, source, shards, in_copies=in_copies), stacked, model, shards
            )
        tensors = CountedTensors(FolderTensors(folder))
        placement.place(model, NamedWeights(model, tensors), shards)
        assert tensors.num_bytes == sum(weight.nbytes for weight in stacked.values())
        store = CheckpointStore(place / "cache" / name)
        for _ in range(2):  # converted, restored
            params, path = store.restore_or_convert(
                model,
                "a" * 64,
                lambda model=model, folder=folder: folder_weights(model, folder),
                partial(placement.place, model, shards=shards),
            )
            check(params, stacked, model, shards)
            assert path.exists()


if __name__ == "__main__":
    assert len(jax.devices()) == 2
    sys.exit(main())
