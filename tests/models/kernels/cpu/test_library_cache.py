"""Only libraries that this user has built, and nobody has changed, are loaded."""

import os
import stat

import pytest

from kvflow_jax.models.kernels.cpu.library_cache import cached_library, own_folder


def write(path):
    path.write_bytes(b"library")


def refuse(path):
    raise AssertionError("built again")


def test_a_library_is_built_once(tmp_path):
    path = cached_library(tmp_path, "key", write)
    assert path.read_bytes() == b"library"
    assert cached_library(tmp_path, "key", refuse) == path
    assert os.listdir(tmp_path) == [path.name]
    assert cached_library(tmp_path, "other", write) != path


@pytest.mark.parametrize("content", [b"", b"libra", b"library\0", b"foreign"])
def test_a_changed_library_is_built_again(tmp_path, caplog, content):
    path = cached_library(tmp_path, "key", write)
    path.write_bytes(content)
    assert cached_library(tmp_path, "key", write) == path
    assert path.read_bytes() == b"library"
    assert "is not as it was built" in caplog.text


def test_a_library_that_others_can_write_to_is_built_again(tmp_path):
    path = cached_library(tmp_path, "key", write)
    path.chmod(0o777)
    cached_library(tmp_path, "key", write)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_link_is_no_library(tmp_path):
    path = cached_library(tmp_path, "key", write)
    target = tmp_path / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    assert not cached_library(tmp_path, "key", write).is_symlink()
    assert target.exists()


def test_a_library_of_another_user_is_built_again(tmp_path, monkeypatch):
    path = cached_library(tmp_path, "key", write)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(AssertionError, match="built again"):
        cached_library(tmp_path, "key", refuse)


def test_another_process_never_sees_half_a_library(tmp_path):
    def build(path):
        assert path.parent == tmp_path
        assert not list(tmp_path.glob("key-*"))
        write(path)

    cached_library(tmp_path, "key", build)


def test_a_build_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(AssertionError):
        cached_library(tmp_path, "key", refuse)
    assert not os.listdir(tmp_path)


def test_a_folder_is_closed_to_others(tmp_path):
    new = own_folder(tmp_path / "a" / "native")
    assert stat.S_IMODE(new.stat().st_mode) == 0o700
    new.chmod(0o777)
    assert own_folder(new) == new
    assert stat.S_IMODE(new.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["link", "another user's"])
def test_a_folder_that_is_not_ones_own_is_not_used(tmp_path, monkeypatch, caplog, kind):
    folder = tmp_path / "native"
    folder.mkdir()
    if kind == "link":
        folder = tmp_path / "link"
        folder.symlink_to(tmp_path / "native")
    else:
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    used = own_folder(folder)
    assert used.parent == tmp_path
    assert used.name.startswith("kvflow-")
    assert "Choose another cache folder" in caplog.text
