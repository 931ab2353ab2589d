"""Weight sources for tests, and functions that read all of a source."""

import numpy as np
import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.loading.safetensors_folder import FolderTensors
from kvflow_jax.models.loading.weights import NamedWeights


class HostWeights:
    """A ``WeightSource`` of arrays in memory; counts the elements read of each weight."""

    is_packed = False

    def __init__(self, arrays):
        self.arrays, self.num_read = arrays, dict.fromkeys(arrays, 0)

    @classmethod
    def random(cls, model):
        """Return standard normal weights in the dtype of ``model``."""
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

    def raise_problems(self):
        pass


class CountedTensors:
    """A ``Tensors`` that counts the bytes read."""

    def __init__(self, tensors):
        self.tensors, self.num_bytes = tensors, 0
        self.source, self.problems = tensors.source, tensors.problems
        self.headers = tensors.headers

    def read(self, key, index):
        values = self.tensors.read(key, index)
        self.num_bytes += values.nbytes
        return values


def folder_weights(model, folder):
    """Open the weights of a Hugging Face folder."""
    offset = FAMILIES[model.config.family].norm_offset
    return NamedWeights(model, FolderTensors(folder), norm_offset=offset)


def read_all(model, source):
    """Return every stacked weight of a source by name."""
    stacked = {}
    for name, spec in model.stacked_specs.items():
        stacked[name] = np.empty(spec.shape, spec.dtype)
        source.read(name, tuple(slice(0, size) for size in spec.shape), stacked[name])
    source.raise_problems()
    return stacked


def read_folder(model, folder):
    """Return every stacked weight of a Hugging Face folder by name."""
    return read_all(model, folder_weights(model, folder))


def read_problems(folder, model):
    """Return the message with which a Hugging Face folder is rejected."""
    with pytest.raises(ModelLoadError) as caught:
        read_folder(model, folder)
    return str(caught.value)
