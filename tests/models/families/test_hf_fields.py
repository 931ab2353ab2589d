"""Fields are read as a type; what is wrong is collected under their names."""

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families.hf_fields import HfFields, Problems, shortened


def read_all(hf):
    return (
        hf.size("size"),
        hf.positive("ratio"),
        hf.numbers("factors"),
        hf.texts("names"),
        hf.token_ids("eos"),
        hf.nested("part").size("inner", 7),
    )


def test_values_are_read_as_types():
    hf = HfFields(
        {
            "size": 8.0,
            "ratio": 1,
            "factors": [1, 2],
            "names": "one",
            "eos": [3],
            "part": {"inner": 4},
        }
    )
    assert read_all(hf) == (8, 1.0, (1.0, 2.0), ("one",), (3,), 4)
    assert not hf.problems.messages()


def test_absent_fields_have_defaults_and_null_is_absent():
    hf = HfFields({"name": None})
    assert (hf.size("a", 3), hf.positive("b", 0.5), hf.number("c", -1)) == (3, 0.5, -1)
    assert (hf.text("name", "x"), hf.flag("name"), hf.texts("name")) == ("x", False, ())
    assert not hf.has("name")
    assert not hf.problems.messages()


def test_every_problem_is_named_once():
    hf = HfFields(
        {"ratio": -1, "factors": ["x"], "names": 5, "eos": "y", "part": [1], "huge": 10**400}
    )
    for _ in range(2):
        read_all(hf)
        hf.number("huge")
        hf.report("something else")
    assert hf.problems.messages() == [
        "config.json lacks size",
        "values of the wrong type: factors is ['x'], names is 5, eos is 'y', part is [1], "
        f"huge is 1{79 * '0'}…",
        "values must be above 0 and finite, but ratio is -1",
        "something else",
    ]
    assert hf.usable("inner")
    assert not hf.usable("inner", "size")


@pytest.mark.parametrize("value", [0, -3, 0.5, float("nan"), float("inf")])
def test_a_size_is_a_whole_number_above_0(value):
    hf = HfFields({"size": value})
    assert hf.size("size") == 1
    assert f"size is {value}" in hf.problems.messages()[0]


def test_an_error_lists_all_problems():
    hf = HfFields({}, Problems("model.gguf"))
    hf.size("a")
    with pytest.raises(ModelLoadError, match=r"model of model.gguf .*\n- model.gguf lacks a\n- b"):
        hf.fail("b")


def test_a_text_of_a_file_is_shown_on_one_line_and_without_control_codes():
    assert shortened("plain é") == "plain é"
    assert shortened("a\nb\x1b[2J\ud800") == r"a\nb\x1b[2J\ud800"
    assert shortened("x" * 100) == "x" * 80 + "…"


def test_a_default_that_is_no_size_is_reported():
    hf = HfFields({})
    assert hf.size("heads", 0) == 1
    assert hf.problems.messages() == ["values must be above 0 and finite, but heads is None"]
