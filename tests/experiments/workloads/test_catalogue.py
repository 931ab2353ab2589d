"""Workloads, and what experiments keep."""

import numpy as np
import pytest

from experiments.compare.result_cache import ResultCache, ResultCacheError
from experiments.workloads.base import Sizes
from experiments.workloads.catalogue import WORKLOADS, catalogue_entry
from experiments.workloads.paper import stages
from experiments.workloads.scale import Scale
from kvflow_jax.sim.machines import UnknownNameError, machine, pool_tokens, shape

VOCAB = 1000


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_gives_the_same_workload_and_calls_wait_for_earlier_ones(name):
    build, quick = WORKLOADS[name].build, Scale(is_quick=True)
    one, same, other = (build(VOCAB, seed, quick) for seed in (1, 1, 2))
    for a, b in zip(one.runs, same.runs, strict=True):
        assert (a.tenant, a.workflow_id, a.start_s) == (b.tenant, b.workflow_id, b.start_s)
        for x, y in zip(a.calls, b.calls, strict=True):
            assert x.after == y.after
            for p, q in zip(x.parts, y.parts, strict=True):
                assert np.array_equal(p, q)
    first, second = one.runs[0].calls[0].parts[0], other.runs[0].calls[0].parts[0]
    assert not np.array_equal(first, second)
    for run in one.runs:
        for number, call in enumerate(run.calls):
            assert all(before < number for before in call.after)
            given = [part for part in call.parts if isinstance(part, int)]
            assert all(before < number for before in given)
            assert call.num_fixed <= run.prompt_lens[number]
            if run.graph is not None:
                assert call.agent in run.graph.nodes_of
    assert one.num_calls == sum(len(run.calls) for run in one.runs)
    assert len({(run.tenant, run.workflow_id) for run in one.runs}) == len(one.runs)


def test_agents_of_a_stage_share_the_start_of_their_prefixes():
    made = stages(
        num_branches=2, num_rounds=1, num_stages=3, sizes=Sizes(100, 4, 4), vocab_size=VOCAB
    )
    left, right = made.runs[0].calls[:2]
    assert np.array_equal(left.parts[0], right.parts[0])
    assert len(left.parts[0]) == 25
    assert not np.array_equal(left.parts[1], right.parts[1])


def test_names_that_are_none_say_which_there_are():
    for ask, known in ((catalogue_entry, "team"), (machine, "a10g"), (shape, "llama-3.1-8b")):
        with pytest.raises(UnknownNameError, match=known):
            ask("nothing")
    with pytest.raises(UnknownNameError):
        machine("a10g xtwo")
    many = machine("h100-pcie x4")
    assert many.memory_bytes == 4 * machine("h100-pcie").memory_bytes
    assert pool_tokens(machine("h100-pcie"), shape("llama-3.1-70b")) < 0
    assert pool_tokens(many, shape("llama-3.1-70b")) > 100_000


def test_an_interrupted_experiment_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "results.json"
    first = ResultCache(path, {"seed": 0})
    first.put("a", {"x": 1})
    first.put("b", (1, 2))
    kept = path.with_name("results.json.partial")
    kept.write_text(kept.read_text() + '["c", {"x"')  # the process ended here
    again = ResultCache(path, {"seed": 0})
    assert again.results == {"a": {"x": 1}, "b": [1, 2]}
    again.put("c", 3)
    assert ResultCache(path, {"seed": 0}).results["c"] == 3
    with pytest.raises(ResultCacheError, match="other options"):
        ResultCache(path, {"seed": 1})
    again.close()
    assert not kept.exists()
    ResultCache(None, {}).put("a", 1)  # nothing is kept, and that is fine
