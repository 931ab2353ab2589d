"""Sections of the check of a device, and the check itself on this one."""

import json
import sys

import pytest

from experiments.device import device_check
from experiments.device.device_check import Sections


def test_a_section_that_fails_does_not_end_the_check(tmp_path, capsys):
    sections = Sections(tmp_path / "figures.json")

    def broken():
        raise RuntimeError("no such device")

    sections.run("first", lambda: {"a": 1})
    sections.run("second", broken)
    sections.run_checked("third", lambda: ({"b": 2}, ["b is too small"]))
    assert sections.figures == {"a": 1, "b": 2}
    assert sections.problems == ["second failed: RuntimeError: no such device", "b is too small"]
    written = json.loads((tmp_path / "figures.json").read_text())
    assert (written["a"], written["problems"]) == (1, sections.problems)
    assert "no such device" in capsys.readouterr().err


def test_the_exit_status_tells_problems(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["device_check", "--quick"])
    for section in ("memory", "ceilings", "host_link"):
        monkeypatch.setattr(device_check, section, lambda *args: {})
    monkeypatch.setattr(device_check, "check_kernel", lambda *args: ({}, []))
    assert device_check.main() == 0
    monkeypatch.setattr(device_check, "check_kernel", lambda *args: ({}, ["wrong"]))
    assert device_check.main() == 1


def test_a_quick_check_refuses_a_choice_of_stages(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["device_check", "--quick", "--stages", "serve"])
    with pytest.raises(SystemExit):
        device_check.main()
    assert "leave out --stages" in capsys.readouterr().err


def test_stages_run_alone(monkeypatch, tmp_path):
    path = tmp_path / "figures.json"
    flags = ["--stages", "int8", "--model", "smollm2-135m", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["device_check", *flags])
    monkeypatch.setattr(device_check, "ceilings", lambda *args: {"matmul_tflops": 1.0})
    loads = []

    def rates(load, plan, ceiling):
        loads.append((load.model, load.quantize, ceiling["matmul_tflops"]))
        return {}

    monkeypatch.setattr(device_check, "model_rates", rates)
    assert device_check.main() == 0
    assert loads == [("smollm2-135m", "int8", 1.0)]
    assert json.loads(path.read_text())["problems"] == []
