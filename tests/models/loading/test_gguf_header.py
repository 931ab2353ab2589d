"""Headers of .gguf files are checked before anything is allocated or computed from them."""

import struct

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from kvflow_jax.errors import ModelLoadError  # noqa: E402 (gguf may be missing)
from kvflow_jax.models.families import FAMILIES  # noqa: E402
from kvflow_jax.models.loading import gguf_header  # noqa: E402
from kvflow_jax.models.loading.gguf import GgufFile  # noqa: E402
from kvflow_jax.models.loading.gguf_header import read_header  # noqa: E402
from tests.models import tiny_gguf  # noqa: E402

HF = FAMILIES["llama"].tiny


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def head(num_tensors: int, num_fields: int, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_fields) + body


def field(kind: int, value: bytes, name: bytes = b"general.x") -> bytes:
    return head(0, 1, text(name) + struct.pack("<I", kind) + value)


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return field(9, struct.pack("<IQ", kind, count) + values)


def tensor(shape: tuple[int, ...], kind: int = 0, offset: int = 0, data: int = 0) -> bytes:
    header = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    body = head(1, 0, text(b"t") + header)
    return body + bytes(-len(body) % 32 + data)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "empty file"),
        (b"GGUF", "requires a buffer"),
        (b"GGML" + bytes(20), "does not begin with GGUF"),
        (head(0, 0, version=0), "version 0"),
        (head(0, 0, version=1 << 24), "version 16777216"),
        (head(0, 1 << 63), "9223372036854775808 fields"),
        (head((1 << 64) - 1, 0), "18446744073709551615 tensors"),
        (head(0, 1, struct.pack("<Q", (1 << 64) - 1) + bytes(20)), "bytes are announced"),
        (field(4, b"\0"), "requires a buffer"),
        (field(77, bytes(8)), "unknown type 77"),
        (field(8, struct.pack("<Q", 1 << 40)), "1099511627776 bytes are announced"),
        (field(8, text(b"\xff\xfe")), "utf-8"),
        (head(0, 1, text(b"\xff") + bytes(9)), "utf-8"),
        (array(0, 1 << 62), "4611686018427387904 values"),
        (array(12, 3, bytes(23)), "3 values"),
        (array(8, 1 << 40, bytes(64)), "1099511627776 values"),
        (array(9, 1, struct.pack("<IQ", 0, 0)), "values of type 9"),
        (head(0, 2, (text(b"a") + struct.pack("<IB", 0, 1)) * 2), "two fields are named 'a'"),
        (field(4, struct.pack("<I", 0), b"general.alignment"), "no power of 2"),
        (field(4, struct.pack("<I", 48), b"general.alignment"), "no power of 2"),
        (field(8, text(b"x" * 10**6), b"general.alignment"), "no power of 2"),
        (tensor((1 << 32, 1 << 32)), "ends behind the end"),
        (tensor((8,), offset=1 << 63, data=32), "ends behind the end"),
        (tensor((8, 2), data=60), "ends behind the end"),
        (tensor((0, 4), data=32), "has the shape [0, 4]"),
        (tensor((33,), kind=2, data=64), "has the shape [33]"),
        (tensor((1,) * 5, data=32), "has 5 axes"),
        (tensor((1,), kind=999, data=32), "999 is not a valid"),
        (head(1, 0, text(b"t") + struct.pack("<I", 1 << 31) + bytes(32)), "2147483648 axes"),
    ],
)
def test_a_header_that_contradicts_its_file_is_refused(tmp_path, data, part):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelLoadError, match=r"is truncated or not a GGUF file") as caught:
        GgufFile(path)
    assert part in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_header_has_a_limit_of_values(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    one = text(b"a") + struct.pack("<IIQ", 9, 0, 3) + bytes(3)
    other = text(b"b") + struct.pack("<IIQ", 9, 0, 3) + bytes(3)
    path.write_bytes(head(0, 2, one + other))
    monkeypatch.setattr(gguf_header, "MAX_VALUES", 5)
    with pytest.raises(ValueError, match="more than 5 values"):
        read_header(path)
    monkeypatch.setattr(gguf_header, "MAX_VALUES", 6)
    assert read_header(path).fields == {"a": [0, 0, 0], "b": [0, 0, 0]}


def test_a_header_has_a_limit_of_text(tmp_path, monkeypatch):
    """A damaged length may be that of gigabytes of weights, which would all be copied."""
    path = tmp_path / "model.gguf"
    path.write_bytes(field(8, text(b"word"), name=b"name"))
    monkeypatch.setattr(gguf_header, "MAX_TEXT_BYTES", 7)
    with pytest.raises(ValueError, match="4 bytes are announced"):
        read_header(path)
    monkeypatch.setattr(gguf_header, "MAX_TEXT_BYTES", 8)
    assert read_header(path).fields == {"name": "word"}


def test_a_header_is_read_as_the_package_gguf_reads_it(tmp_path):
    path = tiny_gguf.write(tmp_path / "model.gguf", HF)
    header, expected = read_header(path), gguf.GGUFReader(path)
    fields = {name: one.contents() for name, one in expected.fields.items()}
    assert header.fields == {k: v for k, v in fields.items() if not k.startswith("GGUF.")}
    assert [*header.tensors] == [one.name for one in expected.tensors]
    for one in expected.tensors:
        found = header.tensors[one.name]
        assert (found.tensor_type, found.shape) == (one.tensor_type, tuple(one.shape.tolist()))
        assert found.data.dtype == one.data.dtype
        np.testing.assert_array_equal(found.data, one.data)


@pytest.mark.parametrize(
    "fields",
    [
        {"general.architecture": ["llama"]},
        {"tokenizer.ggml.eos_token_id": 10**6},
        {"tokenizer.ggml.bos_token_id": "x"},
        {"tokenizer.ggml.unknown_token_id": 2**32 - 1},
        {"tokenizer.ggml.merges": ["no such"]},
        {"tokenizer.ggml.merges": 7},
        {"tokenizer.ggml.token_type": [float("inf")]},
        {"tokenizer.ggml.tokens": "x"},
        {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [1.0]},
        {"llama.block_count": 10**9},
        {"llama.embedding_length": 2**32 - 1},
        {"llama.attention.layer_norm_rms_epsilon": [1.0]},
        {"llama.rope.dimension_count": "x" * 10**6},
        {"tokenizer.ggml.model": "x" * 10**6},
        {"tokenizer.ggml.pre": "x" * 10**6},
    ],
)
def test_fields_of_a_wrong_kind_or_size_are_refused(tmp_path, fields):
    path = tiny_gguf.write(tmp_path / "model.gguf", HF, fields=fields)

    def read():
        file = GgufFile(path)
        file.config()
        file.tokenizer()

    with pytest.raises(ModelLoadError) as caught:
        read()
    assert len(str(caught.value)) < 3000


def test_a_long_token_of_sentencepiece_is_refused(tmp_path):
    tokens = ["<unk>", "a", "aa", "a" * 1000]
    tokenizer = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
    }
    path = tiny_gguf.write(tmp_path / "model.gguf", HF, tokenizer=tokenizer)
    with pytest.raises(ModelLoadError, match="a token has 1000 characters, the limit is 512"):
        GgufFile(path).tokenizer()
