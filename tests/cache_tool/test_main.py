"""The command that lists and clears the cache folder."""

import os

import pytest

from kvflow_jax import __main__ as command_line
from kvflow_jax.cache_tool.__main__ import main
from kvflow_jax.models.loading.cache_folder import CacheFolder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "models" / "tiny-v4-float32").mkdir(parents=True)
    (tmp_path / "models" / "tiny-v4-float32" / "weights").write_bytes(bytes(3 << 20))
    (tmp_path / "xla").mkdir()
    for name in ("a-cache", "b-cache"):
        (tmp_path / "xla" / name).write_bytes(bytes(1 << 20))
    os.utime(tmp_path / "models" / "tiny-v4-float32", (0, 0))
    return tmp_path


def test_models_are_listed_and_other_kinds_summed(folder, capsys):
    assert main(["--cache-dir", str(folder)]) == 0
    head, model, programs = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{folder}: 3 entries, 5.0 MiB")
    assert model.split()[:3] == ["model", "3.0", "MiB"]
    assert model.split()[-1] == "tiny-v4-float32"
    assert programs.split()[:3] == ["programs", "2.0", "MiB"]
    assert programs.split()[-1] == "2"


def test_the_folder_of_the_environment_is_the_default(folder, monkeypatch, capsys):
    monkeypatch.setenv("KVFLOW_CACHE_DIR", str(folder))
    assert command_line.main(["cache"]) == 0
    assert str(folder) in capsys.readouterr().out
    monkeypatch.setenv("KVFLOW_CACHE_DIR", str(folder / "none"))
    assert main([]) == 0
    assert "0 entries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--clear"], []),
        (["--clear", "models"], ["a-cache", "b-cache"]),
        (["--clear", "programs"], ["tiny-v4-float32"]),
        (["--max-gib", "0.003"], ["a-cache", "b-cache"]),
        (["--max-gib", "1"], ["a-cache", "b-cache", "tiny-v4-float32"]),
    ],
)
def test_entries_are_removed(folder, capsys, flags, kept):
    assert main(["--cache-dir", str(folder), *flags]) == 0
    assert capsys.readouterr().out.startswith(f"removed {3 - len(kept)} entries")
    assert sorted(entry.path.name for entry in CacheFolder(folder).entries()) == kept


def test_a_start_is_not_disturbed(folder, capsys):
    with CacheFolder(folder).in_use():
        assert main(["--cache-dir", str(folder), "--clear"]) == 1
    assert "try again" in capsys.readouterr().err
    assert len(CacheFolder(folder).entries()) == 3


@pytest.mark.parametrize("flags", [["--max-gib", "0"], ["--clear", "logs"], ["--clear", "--max"]])
def test_a_wrong_flag_exits_with_code_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2
