"""Loading against recomputing."""

import numpy as np

from kvflow_jax.cache.next_read import scheduled
from kvflow_jax.cache.transfer import Direction
from kvflow_jax.control.cost_model import CostModel
from tests.support.agent_cycle import KVFLOW
from tests.support.token_runner import Client, make_engine, run


class Link:
    """A transfer manager whose link takes one second per block."""

    def estimate_s(self, direction, num_blocks):
        assert direction is Direction.LOAD
        return float(num_blocks)


def test_blocks_are_loaded_until_computing_is_known_to_be_faster():
    costs, link = CostModel(), Link()
    assert costs.should_load(link, 10, 160, num_others=0)
    costs.note_step(8, 100.0)  # too few tokens for an estimate
    assert costs.should_load(link, 10, 160, num_others=0)
    costs.note_step(100, 1.0)
    assert not costs.should_load(link, 10, 160, num_others=0)  # 10 s against 1.6
    assert costs.should_load(link, 10, 160, num_others=6)  # computing would delay six others
    assert costs.should_load(link, 10, 160, num_others=0, spare_s=8.5)
    for _ in range(30):
        costs.note_step(100, 10.0)
    assert costs.should_load(link, 10, 160, num_others=0)  # by the recent cost


def stats_of_host_only_prompt(should_load):
    """Request statistics of a prompt that is cached on the host alone."""
    engine = make_engine(num_pages=12, max_model_len=40, cache=KVFLOW)
    engine.scheduler.sharing.should_load = should_load
    prompt = list(range(3, 35))
    first = Client(engine, prompt, max_tokens=2)
    run(engine)
    cache = engine.cache
    cache.set_reader("reader", cache_root(engine), np.array(prompt, np.int32), scheduled(5.0))
    blocks = cache.match(cache_root(engine), np.array(prompt, np.int32))
    cache._residency.offload(int(blocks[-1]))
    engine.transfer_manager.dispatch()
    engine.transfers.complete(10)
    run(engine)
    cache.evict(cache.num_idle, 0.0)
    again = Client(engine, prompt, max_tokens=2)
    run(engine)
    assert first.tokens == again.tokens == again.cold
    return again.stats


def cache_root(engine):
    return next(root for root, _, _ in engine.cache._nodes.index.nodes())


def test_a_prompt_that_takes_longer_to_load_is_computed():
    asked = []

    def refuse(num_blocks, num_tokens):
        asked.append((num_blocks, num_tokens))
        return False

    assert stats_of_host_only_prompt(refuse).num_cached_tokens == 0
    assert asked[-1] == (7, 28)  # the last token is always computed
    assert stats_of_host_only_prompt(lambda *_: True).num_cached_host_tokens == 28


def test_decode_time_and_compute_time_are_estimated_apart():
    costs = CostModel()
    assert costs.compute_s(100) == 0.0
    costs.note_step(100, 2.0)
    costs.note_step(0, 0.5)
    costs.note_step(0, 0.25)
    assert costs.compute_s(50) == 1.0
    assert costs.decode_s == 0.75
