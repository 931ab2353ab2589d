"""A model divided among several .gguf files loads as the whole file does."""

import os
import shutil

import numpy as np
import pytest

pytest.importorskip("gguf")

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.loading.gguf import GgufFile, read_sampling_fields
from kvflow_jax.models.loading.gguf_split import parts_of, read_parts
from kvflow_jax.models.loading.locate import find_local
from tests.models import tiny, tiny_gguf

HF = FAMILIES["llama"].tiny


def write_parts(folder, num_parts=3):
    """Write the parts of a model as llama-gguf-split does: the first has all fields."""
    tensors = tiny_gguf.tensors_of(HF)
    names = list(tensors)
    paths = parts_of(folder / f"m-00001-of-{num_parts:05}.gguf")
    for number, path in enumerate(paths):
        part = {name: tensors[name] for name in names[number::num_parts]}
        split = {"split.no": number, "split.count": num_parts, "split.tensors.count": len(names)}
        if number:
            without = tiny_gguf.model_fields(HF, tiny_gguf.form_of(HF))
            tiny_gguf.write(path, HF, tensors=part, fields=split, without=without, tokenizer={})
        else:
            split["general.sampling.top_k"] = 7
            tiny_gguf.write(path, HF, tensors=part, fields=split)
    return paths


def test_every_part_stands_for_the_whole_model(tmp_path):
    paths = write_parts(tmp_path / "parts")
    expected = tiny.logits_of(tiny_gguf.write(tmp_path / "whole.gguf", HF))
    np.testing.assert_array_equal(tiny.logits_of(paths[1]), expected)
    assert GgufFile(paths[2]).paths == paths
    assert read_sampling_fields(paths[2]) == {"top_k": 7}
    assert find_local(str(paths[0].parent)) == paths[0]


def test_a_missing_part_is_named(tmp_path):
    paths = write_parts(tmp_path)
    paths[1].unlink()
    with pytest.raises(ModelLoadError, match=r"m-00002-of-00003.gguf is missing \(1 of 3 files\)"):
        GgufFile(paths[0])


def test_a_part_of_another_name_says_how_parts_are_named(tmp_path):
    paths = write_parts(tmp_path)
    other = paths[1].rename(tmp_path / "other.gguf")
    with pytest.raises(ModelLoadError, match=r"one of 3 files of a split model.*llama-gguf-split"):
        GgufFile(other)


def test_exchanged_parts_are_refused(tmp_path):
    paths = write_parts(tmp_path)
    shutil.copy(paths[2], paths[1])
    with pytest.raises(ModelLoadError, match=r"m-00002-of-00003.gguf is one of 3"):
        read_parts(paths[0])


def test_a_tensor_of_two_parts_is_refused(tmp_path):
    paths = write_parts(tmp_path, 2)
    split = {"split.no": 1, "split.count": 2}
    tiny_gguf.write(paths[1], HF, fields=split)
    with pytest.raises(ModelLoadError, match="another part has tensor"):
        read_parts(paths[0])


@pytest.mark.parametrize("name", ["m.gguf", "m-00001-of-00000.gguf", "m-00001-of-99999.gguf"])
def test_other_names_are_those_of_whole_files(name, tmp_path):
    assert parts_of(tmp_path / name) == [tmp_path / name]


def test_a_part_that_is_no_regular_file_is_not_opened(tmp_path):
    paths = write_parts(tmp_path)
    paths[1].unlink()
    os.mkfifo(paths[1])
    with pytest.raises(ValueError, match="it is no regular file"):
        read_parts(paths[0])
