"""One of two processes that share a model and read their parts; test_placement starts both."""

import sys

import jax
import numpy as np

from kvflow_jax.models.loading import placement
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA
from kvflow_jax.models.sharding import Shards, group_columns_by_device
from tests.models.families.cases import CONFIGS
from tests.models.sources import HostWeights


def main():
    port, process_id = sys.argv[1:]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process_id))
    shards = Shards.of_devices(2)
    model = Model.build(read_config(CONFIGS["llama-untied-mha"]), ops=XLA)
    source = HostWeights.random(model)
    params = placement.place(model, source, shards)
    for name, weight in source.arrays.items():
        (shard,) = params[name].addressable_shards
        assert shard.device.process_index == int(process_id)
        arranged = group_columns_by_device(name, weight, model.config, shards.num_shards)
        np.testing.assert_array_equal(shard.data, np.asarray(arranged)[shard.index])
        # Of a weight that is divided, each process reads one half.
        assert source.num_read[name] == shard.data.size
        is_whole = params[name].sharding.is_fully_replicated
        assert shard.data.size == weight.size // (1 if is_whole else 2)


if __name__ == "__main__":
    sys.exit(main())
