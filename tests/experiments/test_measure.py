"""Shared parts of the benches."""

import argparse
import json
import os

import pytest

from experiments import measure
from kvflow_jax.models.families import PRESETS
from tests.support.tiny_engine import CONFIG


def test_numbers_of_flags_are_checked():
    assert measure.non_negative_int("0") == 0
    assert measure.positive_int("3") == 3
    assert measure.positive_float("0.5") == 0.5
    for parse, text in (
        (measure.non_negative_int, "-1"),
        (measure.positive_int, "0"),
        (measure.positive_float, "inf"),
    ):
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)


def test_paths_that_cannot_be_written_are_refused_before_the_run(tmp_path, monkeypatch):
    file, new = tmp_path / "file", tmp_path / "new" / "folder"
    file.touch()
    assert measure.output_file(str(file)) == file
    assert measure.output_file(str(new)) == measure.output_folder(str(new)) == new
    assert measure.output_file("name").name == "name"
    for parse, path, message in (
        (measure.output_file, tmp_path, "is a folder; name a file"),
        (measure.output_file, "", "is a folder; name a file"),
        (measure.output_file, file / "out.json", "file' is no folder"),
        (measure.output_folder, file, "file' is no folder"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            parse(str(path))
    monkeypatch.setattr(measure.os, "access", lambda *_: False)
    with pytest.raises(argparse.ArgumentTypeError, match="cannot be written to"):
        measure.output_folder(str(new))


def test_an_interrupt_has_its_own_exit_status(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert measure.interruptible(lambda: 3) == 3
    assert measure.interruptible(interrupted) == 130
    assert "resumes from here" in capsys.readouterr().err


def test_a_report_is_a_table_and_json_with_the_machine(tmp_path, capsys):
    path = tmp_path / "new" / "out.json"
    measure.report({"ratio": 0.12345, "kinds": ["a"]}, {"ratio": ">= 1"}, path)
    out = capsys.readouterr().out
    assert "ratio  0.1235   (>= 1)" in out
    assert 'kinds  ["a"]' in out
    written = json.loads(path.read_text())
    assert written["ratio"] == 0.12345
    assert written["machine"]["platform"] == "cpu"


def test_flops_are_two_for_each_weight():
    weights = sum(a * b for a, b in measure.projections(CONFIG)) * CONFIG.num_layers
    assert measure.matmul_flops_per_token(CONFIG) == 2 * weights
    one, two = (measure.prefill_flops(PRESETS["smollm2-135m"], n) for n in (1, 2))
    assert two > 1.5 * one


def test_ceilings_are_rates():
    assert measure.MatmulCeiling(CONFIG, num_tokens=4).flops_per_s(0.001) > 0
    bandwidth = measure.BandwidthCeiling(CONFIG)
    assert bandwidth.bytes_per_s(1) > 0
    assert bandwidth.nbytes > CONFIG.vocab_size * CONFIG.hidden_size * 4


def test_seconds_are_those_of_the_median_call():
    assert measure.seconds(lambda: 1, repeats=3) >= 0


def test_resident_memory_is_that_of_the_process():
    assert measure.resident_bytes() > 1 << 20
    assert 1 << 20 < measure.resident_bytes(os.getpid()) < 1 << 40
