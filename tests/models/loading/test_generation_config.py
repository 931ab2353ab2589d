"""The generation_config.json of a folder."""

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading.generation_config import (
    GENERATION_CONFIG_FILE,
    read_generation_config,
)


def test_null_is_absent(tmp_path):
    (tmp_path / GENERATION_CONFIG_FILE).write_text('{"top_k": null, "top_p": 0.5}')
    assert read_generation_config(tmp_path) == {"top_p": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file.*--generation-config"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not a JSON object"),
        (b"\xff", "is not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, text, message):
    path = tmp_path / GENERATION_CONFIG_FILE
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelLoadError, match=f"{path}.*{message}"):
        read_generation_config(tmp_path)
