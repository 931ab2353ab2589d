"""The checkpoint of an experiment's results."""

import pytest

from experiments.compare.result_cache import ResultCache, ResultCacheError, content_version


def test_an_interrupted_experiment_resumes(tmp_path):
    path = tmp_path / "results.json"
    first = ResultCache(path, {"seed": 0})
    first.put("a", {"x": 1})
    first.put("b", (1, 2))
    kept = path.with_name("results.json.partial")
    kept.write_text(kept.read_text() + '["c", {"x"')  # the process ended here
    again = ResultCache(path, {"seed": 0})
    assert again.results == {"a": {"x": 1}, "b": [1, 2]}
    again.put("c", 3)
    assert ResultCache(path, {"seed": 0}).results["c"] == 3
    with pytest.raises(ResultCacheError, match="other options"):
        ResultCache(path, {"seed": 1})
    again.close()
    assert not kept.exists()
    ResultCache(None, {}).put("a", 1)  # in memory only


def test_a_path_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    with pytest.raises(ResultCacheError, match="cannot be written"):
        ResultCache(tmp_path, {})


def test_the_version_of_a_file_is_that_of_its_content(tmp_path):
    first, same, other = (tmp_path / name for name in "abc")
    for path, text in ((first, "x"), (same, "x"), (other, "y")):
        path.write_text(text)
    assert content_version(first) == content_version(same) != content_version(other)


def test_the_version_of_a_folder_is_that_of_its_files(tmp_path):
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    for folder, text in ((one, "x"), (same, "x"), (other, "y")):
        folder.mkdir()
        (folder / "a.json").write_text(text)
    assert content_version(one) == content_version(same) != content_version(other)
    (same / "a.json").rename(same / "b.json")
    assert content_version(one) != content_version(same)
