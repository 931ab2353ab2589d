"""Weights of every family on two devices, from a folder and from a checkpoint, equal those on one.

In 8 bits, each device quantises its own shard.

test_placement runs this in another process: the number of devices is fixed when JAX starts.
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
from kvflow_jax.models.ops import XLA, XlaOps
from kvflow_jax.models.sharding import Shards, group_columns_by_device
from tests.models import tiny
from tests.models.families.cases import CONFIGS
from tests.models.sources import CountedTensors, folder_weights, read_folder

# Those whose KV heads two devices can share.
CASES = {name: hf for name, hf in CONFIGS.items() if read_config(hf).num_kv_heads % 2 == 0}


def check(params, stacked, model, shards):
    for name, weight in stacked.items():
        arranged = group_columns_by_device(name, weight, model.config, shards.num_shards)
        assert len(params[name].addressable_shards) == shards.num_shards
        for shard in params[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(arranged)[shard.index])
        assert params[name].sharding == shards.weight_shardings(model)[name]


def check_int8(folder, model, shards):
    """Compare each device's scales and values with those of its shard of the plain weights."""
    params = placement.place(model, folder_weights(model, folder), shards)
    for name, weight in read_folder(model, folder).items():
        arranged = group_columns_by_device(name, weight, model.config, shards.num_shards)
        sharding = shards.weight_shardings(model)[name]
        for device, index in sharding.devices_indices_map(arranged.shape).items():
            own = jax.tree.map(lambda array, device=device: _on(device, array), params[name])
            jax.tree.map(np.testing.assert_array_equal, own, model.pack(name, arranged[index]))


def _on(device, array):
    return next(shard.data for shard in array.addressable_shards if shard.device == device)


def main():
    root, shards = Path(sys.argv[1]), Shards.of_devices(2)
    for name, hf in CASES.items():
        folder = tiny.write_folder(root / name, hf, shards=2)
        model = Model.build(read_config(hf), ops=XLA)
        # Raises if two devices cannot share the model.
        shards.local_model(model)
        stacked = read_folder(model, folder)
        for discrete_memory, staging_bytes in ((False, 1 << 28), (True, 1 << 28), (True, 5000)):
            placement.STAGING_BYTES = staging_bytes
            source = folder_weights(model, folder)
            params = placement.place(model, source, shards, discrete_memory=discrete_memory)
            check(params, stacked, model, shards)
        tensors = CountedTensors(FolderTensors(folder))
        placement.place(model, NamedWeights(model, tensors), shards)
        assert tensors.num_bytes == sum(weight.nbytes for weight in stacked.values())
        store = CheckpointStore(root / "cache" / name)
        # The first round converts, the second restores.
        for _ in range(2):
            params, path = store.restore_or_convert(
                model,
                "a" * 64,
                lambda model=model, folder=folder: folder_weights(model, folder),
                partial(placement.place, model, shards=shards),
            )
            check(params, stacked, model, shards)
            assert path.exists()
    model = Model.build(read_config(CASES["llama"]), ops=XlaOps(quantize="int8"))
    check_int8(root / "llama", model, shards)


if __name__ == "__main__":
    assert len(jax.devices()) == 2
    sys.exit(main())
