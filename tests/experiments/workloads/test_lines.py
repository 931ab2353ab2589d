"""Checked fields of trace lines, and faults by line number."""

import pytest

from experiments.workloads.lines import (
    Faults,
    LineError,
    as_list,
    format_ranges,
    json_object,
    read_count,
    read_seconds,
    session_ids,
)


def test_faults_of_a_few_lines_are_detailed_and_others_numbered():
    faults = Faults()
    assert not faults
    for line in (1, 2, 3, 4, 5, 7, 8, 12):
        with faults.of(line):
            raise LineError("no")
    assert str(faults).endswith("line 5: no; more broken lines: 7 to 8, 12")


def test_only_line_errors_are_collected():
    faults = Faults()
    with pytest.raises(KeyError), faults.of(1):
        raise KeyError
    assert not faults


def test_integers_may_be_written_as_floats():
    assert read_count({"n": 5.0}, "n") == 5
    assert read_count({}, "n", 7) == 7
    for value in (0, -1, 1.5, True, "5", None):
        with pytest.raises(LineError, match="n must be an integer from 1"):
            read_count({"n": value}, "n")


def test_times_are_milliseconds_of_the_line():
    assert read_seconds({"delay": 250}, "delay") == 0.25
    assert read_seconds({}, "delay") is None
    for value in (-1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(LineError, match="delay must be milliseconds"):
            read_seconds({"delay": value}, "delay")


def test_lists_and_objects_are_checked():
    assert as_list(None, "x") == []
    assert session_ids(["a"], "spawns") == ["a"]
    for call in (lambda: as_list(3, "x"), lambda: session_ids([3], "x"), lambda: json_object("3")):
        with pytest.raises(LineError):
            call()


def test_ranges_join_consecutive_numbers():
    assert format_ranges([1, 2, 3, 7, 9, 10]) == "1 to 3, 7, 9 to 10"
