"""The cache folder: what it lists, what is removed first, and what is never removed."""

import fcntl
import os

import pytest

from kvflow_jax.models.loading import cache_folder
from kvflow_jax.models.loading.cache_folder import (
    LOCK_FILE,
    CacheFolder,
    CacheInUseError,
    default_cache_dir,
    mark_used,
)


@pytest.fixture
def folder(tmp_path):
    """A model of 300 bytes used at 10 s, a kernel of 20 at 20 s, programs of 50 at 30 and 40 s."""
    path = tmp_path / "cache"
    (path / "models" / "old" / "weights").mkdir(parents=True)
    (path / "models" / "old" / "weights" / "ends").write_bytes(bytes(300))
    (path / "models" / "new.tmp-x").mkdir()  # being written
    for name, num_bytes in {"native/a.so": 20, "xla/p-cache": 50, "xla/q-cache": 50}.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(bytes(num_bytes))
    use(path / "models" / "old", 10)
    use(path / "native" / "a.so", 20)
    use(path / "xla" / "p-cache", 30)
    use(path / "xla" / "q-cache", 40)
    return CacheFolder(path)


def use(path, time_s):
    os.utime(path, (time_s, time_s))


def names(entries):
    return [entry.path.name for entry in entries]


def test_entries_are_listed_by_their_last_use(folder):
    entries = folder.entries()
    assert names(entries) == ["old", "a.so", "p-cache", "q-cache"]
    assert [entry.kind for entry in entries] == ["models", "kernels", "programs", "programs"]
    assert [entry.last_used_s for entry in entries] == [10, 20, 30, 40]
    assert [entry.num_bytes for entry in entries][1:] == [20, 50, 50]
    assert entries[0].num_bytes >= 300  # with its folders
    assert CacheFolder(folder.path / "none").entries() == []


def test_a_read_counts_as_a_use_of_a_program(folder):
    os.utime(folder.path / "xla" / "p-cache", (50, 30))
    assert names(folder.entries())[-1] == "p-cache"


def test_an_entry_that_is_marked_is_the_last_to_go(folder):
    mark_used(folder.path / "models" / "old")
    assert names(folder.entries())[-1] == "old"
    mark_used(folder.path / "none")  # gone meanwhile


def test_the_least_recently_used_go_until_the_rest_fits(folder):
    assert folder.trim(10_000) == []
    assert names(folder.trim(119)) == ["old", "a.so"]
    assert names(folder.entries()) == ["p-cache", "q-cache"]
    assert not (folder.path / "models" / "old").exists()
    assert (folder.path / "models" / "new.tmp-x").is_dir()
    assert names(folder.trim(50)) == ["p-cache"]


def test_what_a_start_has_used_stays_whatever_the_limit(folder):
    assert names(folder.trim(0, keep_since_s=30)) == ["old", "a.so"]
    assert names(folder.entries()) == ["p-cache", "q-cache"]


def test_a_kind_or_everything_is_cleared(folder):
    assert names(folder.clear("programs")) == ["p-cache", "q-cache"]
    assert names(folder.clear()) == ["old", "a.so"]
    assert folder.entries() == []
    assert CacheFolder(folder.path / "none").clear() == []


def test_nothing_is_removed_while_any_start_uses_the_folder(folder):
    with folder.in_use(), folder.in_use():
        for remove in (folder.clear, lambda: folder.trim(0)):
            with pytest.raises(CacheInUseError, match="try again when it is ready"):
                remove()
    assert len(folder.entries()) == 4
    assert len(folder.clear()) == 4


def test_a_start_waits_for_a_removal(folder, monkeypatch):
    locks = []
    monkeypatch.setattr(cache_folder.fcntl, "flock", lambda file, kind: locks.append(kind))
    with folder.in_use():
        assert locks == [fcntl.LOCK_SH]  # without LOCK_NB, so blocking
    folder.trim(0)
    assert locks[1:] == [fcntl.LOCK_EX | fcntl.LOCK_NB]


def test_a_start_works_without_locks_and_then_nothing_is_removed(folder, monkeypatch):
    def fail(file, kind):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(cache_folder.fcntl, "flock", fail)
    with folder.in_use():
        pass
    with pytest.raises(CacheInUseError, match="cannot be locked: Operation not supported"):
        folder.trim(0)


def test_a_start_works_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with CacheFolder(tmp_path / "file" / "cache").in_use():
        pass
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_checkpoint_that_a_killed_removal_has_left_is_no_obstacle(folder):
    left = folder.path / "models" / "old.tmp-removed"
    left.mkdir()
    (left / "file").write_text("")
    assert names(folder.trim(119)) == ["old", "a.so"]
    assert not (folder.path / "models" / "old").exists()


def test_the_default_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "kvflow-jax"
