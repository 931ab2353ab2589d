"""Children that measure, fail, or hang."""

import sys

import pytest

from experiments.child import ChildError, reason_of, run_child


def run(program, limit_s=60.0):
    return run_child([sys.executable, "-c", program], limit_s)


def test_figures_are_merged_and_logs_left_out():
    assert run("print('a log'); print('{\"a\": 1}'); print('{\"b\": 2}')") == {"a": 1, "b": 2}


def test_a_failure_has_the_last_error_and_the_figures_before():
    with pytest.raises(ChildError, match="TypeError: no argument") as failed:
        run("print('{\"a\": 1}'); raise TypeError('no argument')")
    assert failed.value.figures == {"a": 1}


def test_a_child_that_hangs_is_ended():
    with pytest.raises(ChildError, match="longer than 0 s"):
        run("import threading; threading.Event().wait()", limit_s=0.1)


def test_the_reason_of_a_signal_names_it():
    assert reason_of(-4, "") == "ended by signal 4: it printed no error"
    assert reason_of(1, "a\nb\n\n") == "b"
