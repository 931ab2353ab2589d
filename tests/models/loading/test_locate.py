"""A name without a model is rejected with a message of one line, whatever its characters."""

import contextlib
import os

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading.load import load_model
from kvflow_jax.models.loading.locate import find_local


def rejection(name, **load_args):
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(name), progress=False, **load_args)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


@contextlib.contextmanager
def unprivileged():
    """Run as a user without root's permissions."""
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
    ("name", "reason"),
    [
        ("m" * 5000, "cannot be opened: File name too long"),
        ("owner/" + "m" * 5000, "cannot be opened: File name too long"),
        ("m" * 5000 + ".gguf", "cannot be opened: File name too long"),
        ("mo\0del", r"'mo\x00del' cannot be opened"),
        ("owner/mo\ndel", r"'owner/mo\ndel'"),
        ("mo\ndel.gguf", r"no file 'mo\ndel.gguf'; check the path"),
        ("~nobody-of-this-name/model", "cannot be opened"),
        ("/dev/zero", "neither a folder nor a file"),
    ],
)
def test_a_name_that_no_file_can_have_is_rejected(name, reason, random_weights):
    assert reason in rejection(name, random_weights=random_weights)


def test_fifos_devices_and_other_files_are_rejected(tmp_path):
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    device = tmp_path / "device.gguf"
    device.symlink_to("/dev/zero")
    text = tmp_path / "model.txt"
    text.touch()
    for path in (fifo, device, text):
        assert "is neither a folder nor a" in rejection(path)
    device.unlink()
    # The FIFO is now the folder's only .gguf file.
    assert "is neither a folder nor a" in rejection(tmp_path)


def test_a_broken_link_is_named_with_its_target(tmp_path):
    link = tmp_path / "model.gguf"
    link.symlink_to(tmp_path / "gone")
    assert f"is a broken link: '{tmp_path / 'gone'}' does not exist" in rejection(link)
    link.rename(tmp_path / "model")
    assert "is a broken link" in rejection(tmp_path / "model")


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_folder_without_permission_is_rejected(tmp_path, mode):
    for part in (tmp_path, *tmp_path.parents[:2]):
        part.chmod(0o755)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    folder.chmod(mode)
    with unprivileged():
        assert "cannot be opened: Permission denied" in rejection(folder)
    folder.chmod(0o755)
    assert find_local(str(folder)) == folder


def test_a_file_without_permission_is_rejected(tmp_path):
    for part in (tmp_path, *tmp_path.parents[:2]):
        part.chmod(0o755)
    path = tmp_path / "model.gguf"
    path.write_text("GGUF")
    path.chmod(0)
    with unprivileged():
        assert "cannot be opened: Permission denied" in rejection(path)
        assert "cannot be opened: Permission denied" in rejection(tmp_path)


@pytest.mark.parametrize("inner", ["checkpoint-100", "snapshots/0123abc"])
def test_a_folder_around_that_of_the_model_names_it(tmp_path, inner):
    model = tmp_path / inner
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    expected = f"{tmp_path} has no config.json; give the folder that has it: {model}"
    assert rejection(tmp_path) == expected
    # It has the model itself, and what it lacks is told with its other faults.
    (tmp_path / "model.safetensors").touch()
    assert find_local(str(tmp_path)) == tmp_path


def test_of_many_folders_of_models_some_are_named(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "config.json").write_text("{}")
    assert rejection(tmp_path).endswith(", ".join(str(tmp_path / f"{n}") for n in range(4)))
