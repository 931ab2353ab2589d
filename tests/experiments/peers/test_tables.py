"""What a comparison prints."""

from experiments.peers.arms import ARMS
from experiments.peers.ratios import column_ratios, load_ratios
from experiments.peers.tables import print_columns, print_header, print_load, print_ratios

OURS = ARMS[0]


def test_a_row_has_its_figures_and_the_reason_of_those_that_are_missing(capsys):
    print_header()
    print_columns(OURS, {"prefill": 427.3, "failed": "it took longer than 1200 s"})
    lines = capsys.readouterr().out.splitlines()
    assert "tokens/s" in lines[1]
    assert lines[2].split()[:3] == ["kvflow-float32", "427.3", "-"]
    assert lines[2].endswith("it took longer than 1200 s")


def test_a_load_has_its_makespan_or_the_reason(capsys):
    print_load(OURS, "agents_cycle", {"makespan_s": 8.0, "ttft_mean_s": 0.5})
    print_load(OURS, "agents_cycle", {"failed": "no server"})
    first, second = capsys.readouterr().out.splitlines()
    assert "8.00 s" in first
    assert second.endswith("no server")


def test_ratios_that_lose_are_printed_like_others(capsys):
    figures = {"kvflow-float32": {"prefill": 10.0}, "vllm-float32": {"prefill": 40.0}}
    makespans = {"kvflow-float32": {"agents_cycle": 1.0}, "vllm-float32": {"agents_cycle": 2.0}}
    print_ratios(column_ratios(ARMS, figures), load_ratios(ARMS, makespans))
    out = capsys.readouterr().out
    assert "0.25" in out
    assert "prefill: kvflow-float32 over vllm-float32" in out
    assert "2  kvflow-float32 over vllm-float32" in out
