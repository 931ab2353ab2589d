"""``experiments.kernel_bench``, both sides being XLA."""

import json
from functools import partial

import pytest

from experiments.bench import kernel_bench
from kvflow_jax.models.ops import XLA
from tests.support.tiny_engine import CONFIG


@pytest.fixture
def tiny_shape(monkeypatch):
    monkeypatch.setitem(kernel_bench.PRESETS, "smollm2-135m", CONFIG)
    monkeypatch.setattr(kernel_bench, "native_ops", lambda *_: XLA)


def test_a_quick_benchmark_times_one_size_of_each_kind(command, tiny_shape, tmp_path):
    path = tmp_path / "out.json"
    assert command(kernel_bench, "--quick", "--json", path)[0] == 0
    figures = json.loads(path.read_text())
    speedups = {name for name in figures if name.endswith("_speedup")}
    assert speedups == {
        "linear_m1_speedup",
        "decode_attention_b1_256_speedup",
        "tile_attention_256_at_0_speedup",
    }
    assert figures["linear_m1_ms"].keys() == {"xla", "native"}


def test_missing_kernels_are_an_error(command, monkeypatch):
    monkeypatch.setattr(kernel_bench, "native_ops", lambda *_: None)
    status, _, err = command(kernel_bench, "--quick")
    assert status == 1
    assert "cannot be built" in err


def test_a_speedup_is_that_of_the_second_side(monkeypatch):
    figures = {}
    now = iter([0.0, 4.0, 4.0, 5.0])
    monkeypatch.setattr(kernel_bench.time, "perf_counter", lambda: next(now))
    sides = {"xla": XLA, "native": XLA}
    kernel_bench.add(figures, "case", sides, lambda ops: partial(int), repeats=1)
    assert figures["case_speedup"] == 4.0
    assert figures["case_ms"] == {"xla": 4000.0, "native": 1000.0}
