"""The command prints claims beside measurements, writes JSON, and fails if a figure is missed."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments.minimax import __main__ as command_module
from experiments.minimax.part import Finding, Part, Result, Status

ROOT = Path(__file__).parents[3]


@pytest.fixture
def parts(monkeypatch):
    """Replaces the parts, and leaves this process in float32."""

    def replace(*is_reached):
        findings = [
            Finding("a claim", Status.MEMORY, f"measured {index}", "a goal", reached)
            for index, reached in enumerate(is_reached)
        ]
        result = Result(findings, {"values": [1.5]}, [["head"], ["cell"]], {"a_key": 2.5})
        monkeypatch.setattr(command_module, "PARTS", {"one": Part("a part", lambda _: result)})
        monkeypatch.setattr(jax.config, "update", lambda *_: None)

    return replace


def test_demanded_figures_are_at_the_top_of_the_json(parts, command, tmp_path):
    parts(True, None)
    status, printed, _ = command(command_module, "--json", tmp_path / "out.json")
    assert status == 0
    assert "a claim [from memory]" in printed
    assert "goal   a goal: reached" in printed
    assert "not judged with --quick" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["a_key"] == 2.5
    assert written["parts"]["one"]["figures"] == {"values": [1.5]}
    assert [one["is_reached"] for one in written["parts"]["one"]["findings"]] == [True, None]


def test_a_missed_figure_is_exit_code_1(parts, command):
    parts(True, False)
    status, printed, errors = command(command_module)
    assert status == 1
    assert "goal   a goal: MISSED" in printed
    assert errors == "missed: one: measured 1, not a goal\n"


def test_an_unknown_part_is_refused(command, capsys):
    with pytest.raises(SystemExit):
        command(command_module, "--only", "nothing")
    assert "two-nodes" in capsys.readouterr().err


def test_figures_without_matplotlib_say_how_to_get_it(command, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit):
        command(command_module, "--figures", tmp_path)
    assert "pip install '.[viz]'" in capsys.readouterr().err


def test_flags_whose_files_cannot_be_written_are_refused_before_the_run(command, capsys, tmp_path):
    (tmp_path / "file").touch()
    for flags, message in (
        (("--json", tmp_path), "is a folder; name a file"),
        (("--figures", tmp_path / "file"), "is no folder"),
        (("--figures", tmp_path, "--only", "frozen", "cost"), "no figures of frozen, cost; there"),
    ):
        with pytest.raises(SystemExit):
            command(command_module, *flags)
        assert message in capsys.readouterr().err


def test_digits_without_their_package_say_how_to_get_it(command, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit):
        command(command_module, "--only", "digits")
    assert "pip install -e '.[minimax]'" in capsys.readouterr().err


def test_in_float64_the_quick_form_reaches_what_is_demanded(tmp_path):
    file = tmp_path / "out.json"
    flags = ["--quick", "--only", "two-nodes", "frozen", "--json", file, "--figures", tmp_path]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.minimax", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    assert written["quadratic_dadast_gradient"] <= 1e-20
    assert written["quadratic_dtiada_gradient"] > 1e-2
    assert written["parts"]["frozen"]["findings"][0]["is_reached"]
    assert (tmp_path / "minimax-two-nodes.png").stat().st_size > 10_000
