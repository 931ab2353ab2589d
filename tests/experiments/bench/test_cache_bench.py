"""``experiments.cache_bench`` at small sizes."""

import gc
import json

from experiments.bench import cache_bench


def test_a_quick_benchmark_has_every_goal(command, monkeypatch, tmp_path):
    monkeypatch.setattr(cache_bench, "measure_bandwidth", measured_bandwidth)
    path = tmp_path / "out.json"
    assert command(cache_bench, "--quick", "--json", path)[0] == 0
    figures = json.loads(path.read_text())
    assert cache_bench.REACH.keys() <= figures.keys()
    assert figures["quick"]
    assert gc.isenabled()


def measured_bandwidth(*_, **__):
    return dict.fromkeys(cache_bench.Direction, 1e9)


def test_a_full_benchmark_uses_the_sizes_in_the_names_of_its_figures(monkeypatch):
    for name in ("eviction", "million_blocks", "steps_update", "controller_step", "transfers"):
        monkeypatch.setattr(cache_bench, name, lambda name=name: {name: 1})
    assert len(cache_bench.full_figures()) == 5


def test_an_idle_engine_serves_requests():
    engine = cache_bench.idle_engine(64, max_num_seqs=4)
    outputs = []
    params = cache_bench.SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    engine.add(cache_bench.RequestSpec(range(20), params), outputs.append)
    while not engine.is_idle:
        engine.step()
    assert [token for output in outputs for token in output.token_ids] == [3, 3, 3]
