"""A name that means no model is refused in one line, whatever it is made of."""

import contextlib
import os

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading.load import load_model
from kvflow_jax.models.loading.locate import find_local


def refusal(name, **how):
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(name), progress=False, **how)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


@contextlib.contextmanager
def nobody():
    """As a user who may do what all may do."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize("random_weights", [False, True])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("m" * 5000, "cannot be opened: File name too long"),
        ("owner/" + "m" * 5000, "cannot be opened: File name too long"),
        ("m" * 5000 + ".gguf", "cannot be opened: File name too long"),
        ("mo\0del", r"'mo\x00del' cannot be opened"),
        ("owner/mo\ndel", r"'owner/mo\ndel'"),
        ("mo\ndel.gguf", r"there is no file 'mo\ndel.gguf'"),
        ("~nobody-of-this-name/model", "cannot be opened"),
        ("/dev/zero", "neither a folder nor a file"),
    ],
)
def test_names_that_cannot_be(name, why, random_weights):
    assert why in refusal(name, random_weights=random_weights)


def test_what_is_no_file(tmp_path):
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    device = tmp_path / "device.gguf"
    device.symlink_to("/dev/zero")
    text = tmp_path / "model.txt"
    text.touch()
    for path in (fifo, device, text):
        assert "is neither a folder nor a" in refusal(path)
    device.unlink()
    assert "is neither a folder nor a" in refusal(tmp_path)  # whose only model is the FIFO


def test_a_link_to_nothing(tmp_path):
    link = tmp_path / "model.gguf"
    link.symlink_to(tmp_path / "gone")
    assert f"is a link to '{tmp_path / 'gone'}', which is not there" in refusal(link)
    link.rename(tmp_path / "model")
    assert "which is not there" in refusal(tmp_path / "model")


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_folder_that_may_not_be_read(tmp_path, mode):
    for part in (tmp_path, *tmp_path.parents[:2]):
        part.chmod(0o755)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    folder.chmod(mode)
    with nobody():
        assert "cannot be opened: Permission denied" in refusal(folder)
    folder.chmod(0o755)
    assert find_local(str(folder)) == folder


def test_a_file_that_may_not_be_read(tmp_path):
    for part in (tmp_path, *tmp_path.parents[:2]):
        part.chmod(0o755)
    path = tmp_path / "model.gguf"
    path.write_text("GGUF")
    path.chmod(0)
    with nobody():
        assert "cannot be opened: Permission denied" in refusal(path)
        assert "cannot be opened: Permission denied" in refusal(tmp_path)
