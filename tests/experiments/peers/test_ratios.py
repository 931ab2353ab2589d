"""Ratios from given figures."""

import pytest

from experiments.peers.arms import ARMS
from experiments.peers.ratios import agreement, column_ratios, load_ratios

FIGURES = {
    "kvflow-float32": {"prefill": 800, "b1_256": 20.0},
    "kvflow-bfloat16": {"prefill": 3000, "b1_256": 30.0},
    "vllm-float32": {"prefill": 1000, "b1_256": 40.0},
    "vllm-bfloat16": {"prefill": 2000, "b1_256": 50.0},
    "llama_cpp-F32": {"prefill": 300, "b1_256": 25.0},
    "llama_cpp-Q8_0": {"prefill": 400, "b1_256": 10.0, "cached_64": 0.2},
}


def values(ratios):
    return {column: ratio.value for column, ratio in ratios.items()}


def test_a_ratio_is_to_the_best_peer_of_the_same_precision():
    ratios = column_ratios(ARMS, FIGURES)
    assert values(ratios["float32"]) == {"prefill": 0.8, "b1_256": 1.25}
    assert values(ratios["bfloat16"]) == {"prefill": 1.5, "b1_256": pytest.approx(5 / 3)}
    assert ratios["int8"] == {}  # no mode of this engine has run


def test_over_all_peers_the_best_mode_of_each_column_counts():
    over_any = column_ratios(ARMS, FIGURES)["any"]
    assert values(over_any) == {"prefill": 1.5, "b1_256": 0.5}
    assert over_any["prefill"].names == {"ours": "kvflow-bfloat16", "peer": "vllm-bfloat16"}
    assert over_any["b1_256"].names == {"ours": "kvflow-float32", "peer": "llama_cpp-Q8_0"}


def test_the_load_with_hints_is_over_the_peers_load_without():
    makespans = {
        "kvflow-float32": {"agents_cycle_hints": 4.0, "agents_cycle": 5.0},
        "vllm-bfloat16": {"agents_cycle": 10.0},
        "llama_cpp-Q8_0": {"agents_cycle": 20.0},
    }
    ratios = load_ratios(ARMS, makespans)
    assert values(ratios) == {"agents_cycle_hints": 2.5, "agents_cycle": 2.0}


@pytest.mark.parametrize(
    ("tokens", "num_equal"), [([1, 2, 3], 3), ([1, 9, 3], 1), ([], 0), ([1, 2], 2)]
)
def test_agreement_ends_at_the_first_other_token(tokens, num_equal):
    assert agreement(tokens, [1, 2, 3]) == num_equal
