"""Another revision of a model has another digest, though only samples of it are read."""

import numpy as np

from kvflow_jax.models.loading.weights_digest import weights_digest


def test_another_revision_of_the_same_size_has_another_digest(tmp_path):
    content = np.random.default_rng(0).bytes(3_000_000)
    path = tmp_path / "model.safetensors"

    def digest(data):
        path.write_bytes(data)
        return weights_digest([path])

    middle = len(content) // 2
    revised = content[:middle] + bytes(100_000) + content[middle + 100_000 :]
    digests = [digest(data) for data in (content, revised, content[:-1], b"", content)]
    assert digests[0] == digests[-1]
    assert len(set(digests)) == 4


def test_names_and_order_of_files_count(tmp_path):
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_bytes(b"content")
    assert weights_digest(files[:1]) != weights_digest(files[1:])
    assert weights_digest(files) != weights_digest(files[::-1])
