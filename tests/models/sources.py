"""Sources of weights, as ``models.weights`` has them, and all that one gives."""

import numpy as np

from kvflow_jax.models.loading.hf_tensors import NORM_OFFSETS
from kvflow_jax.models.loading.safetensors_folder import FolderTensors
from kvflow_jax.models.loading.weights import NamedWeights


class HostWeights:
    """Weights that are in memory already. Counts what is read of each."""

    def __init__(self, arrays):
        self.arrays, self.num_read = arrays, dict.fromkeys(arrays, 0)

    @classmethod
    def random(cls, model):
        rng = np.random.default_rng(0)
        return cls(
            {
                name: rng.standard_normal(spec.shape).astype(spec.dtype)
                for name, spec in model.stacked_specs.items()
            }
        )

    def read(self, name, index, out):
        out[...] = self.arrays[name][index]
        self.num_read[name] += out.size

    def finish(self):
        pass


class CountedTensors:
    """Tensors, and how many bytes were read of them."""

    def __init__(self, tensors):
        self.tensors, self.num_bytes = tensors, 0
        self.source, self.problems, self.headers = (
            tensors.source,
            tensors.problems,
            tensors.headers,
        )

    def read(self, key, index):
        part = self.tensors.read(key, index)
        self.num_bytes += part.nbytes
        return part


def folder_weights(model, folder):
    offset = NORM_OFFSETS.get(model.config.family, 0.0)
    return NamedWeights(model, FolderTensors(folder), norm_offset=offset)


def read_all(model, source):
    """Every weight, stacked."""
    stacked = {}
    for name, spec in model.stacked_specs.items():
        stacked[name] = np.empty(spec.shape, spec.dtype)
        source.read(name, tuple(slice(0, size) for size in spec.shape), stacked[name])
    source.finish()
    return stacked


def read_folder(model, folder):
    return read_all(model, folder_weights(model, folder))
