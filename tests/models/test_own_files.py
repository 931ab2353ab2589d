"""Files that another user may have written are found."""

import os
import stat

import pytest

from kvflow_jax.models.own_files import is_own, others_may_write, untrusted_file


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "xla"
    folder.mkdir(mode=0o755)
    (folder / "program").write_bytes(b"program")
    (folder / "program").chmod(0o644)
    return folder


def test_files_that_only_this_user_writes_are_safe(folder):
    assert untrusted_file(folder) is None
    assert is_own(folder, stat.S_ISDIR)
    assert not is_own(folder, stat.S_ISREG)


@pytest.mark.parametrize("mode", [0o775, 0o757])
@pytest.mark.parametrize("name", ["", "program"])
def test_what_others_can_write_is_found(folder, name, mode):
    (folder / name).chmod(mode)
    assert others_may_write(folder / name)
    assert untrusted_file(folder) == folder / name


def test_files_of_a_closed_folder_may_have_any_mode(folder):
    (folder / "program").chmod(0o664)
    assert untrusted_file(folder) == folder / "program"
    folder.chmod(0o700)
    assert untrusted_file(folder) is None


def test_links_are_found(folder):
    (folder / "link").symlink_to(folder / "program")
    assert untrusted_file(folder) == folder / "link"
    link = folder.with_name("elsewhere")
    link.symlink_to(folder)
    assert untrusted_file(link) == link


def test_files_of_another_user_are_found_but_those_of_root(folder, monkeypatch):
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert untrusted_file(folder) == (None if owner == 0 else folder)
    assert not is_own(folder, stat.S_ISDIR)
