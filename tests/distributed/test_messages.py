"""Messages survive the wire, and other bytes are refused."""

import numpy as np
import pytest

from kvflow_jax.distributed.messages import (
    Close,
    Copied,
    Drop,
    Gathered,
    Hello,
    SetSequenceState,
    SetTokenMasks,
    Submit,
    decode,
    encode,
)

TABLE = np.arange(6, dtype=np.int32).reshape(2, 3)


@pytest.mark.parametrize(
    "message",
    [
        Hello(1, 2, "there", {"--dtype": "float32"}),
        Submit(3, TABLE[0], TABLE, np.ones((2, 1), np.float32)),
        SetSequenceState({"seq_slot": np.int32(1), "tokens": TABLE[0]}),
        SetTokenMasks(TABLE[0], TABLE),
        Gathered([{"free": 3}, None, [1.5]]),
        Copied(7, ""),
        Close(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_decoded_message_is_the_encoded_one(message):
    decoded = decode(encode(message))
    assert type(decoded) is type(message)
    assert encode(decoded) == encode(message)


def test_arrays_keep_dtype_and_shape():
    decoded = decode(encode(Submit(0, TABLE[0], TABLE, np.zeros((2, 6), np.float32))))
    np.testing.assert_array_equal(decoded.ints, TABLE)
    assert (decoded.ints.dtype, decoded.floats.dtype) == (np.int32, np.float32)


@pytest.mark.parametrize("data", [b"", b"\x00", encode(Drop([1]))[:-1], b"\x92\xa4Evil\x80"])
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(ValueError, match="no message"):
        decode(data)
