"""The catalogue of workloads."""

import numpy as np
import pytest

from experiments.workloads.catalogue import WORKLOADS, catalogue_entry
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


def test_an_unknown_name_lists_those_that_exist():
    for ask, known in ((catalogue_entry, "team"), (machine, "a10g"), (shape, "llama-3.1-8b")):
        with pytest.raises(UnknownNameError, match=known):
            ask("nothing")
    with pytest.raises(UnknownNameError):
        machine("a10g xtwo")
    many = machine("h100-pcie x4")
    assert many.memory_bytes == 4 * machine("h100-pcie").memory_bytes
    assert pool_tokens(machine("h100-pcie"), shape("llama-3.1-70b")) < 0
    assert pool_tokens(many, shape("llama-3.1-70b")) > 100_000
