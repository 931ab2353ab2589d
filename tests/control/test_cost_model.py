"""What costs more: to load, or to compute."""

import numpy as np

from kvflow_jax.cache.transfer import Direction
from kvflow_jax.control.cost_model import CostModel
from tests.support.agent_cycle import KVFLOW
from tests.support.token_runner import Client, make_engine, run


class Link:
    """A transfer_manager whose link takes a second a block."""

    def estimate_s(self, direction, num_blocks):
        assert direction is Direction.LOAD
        return float(num_blocks)


def test_loading_pays_until_computing_is_known_to_be_faster():
    costs, link = CostModel(), Link()
    assert costs.should_load(link, 10, 160, num_others=0)
    costs.note_step(8, 100.0)  # too few tokens to tell
    assert costs.should_load(link, 10, 160, num_others=0)
    costs.note_step(100, 1.0)
    assert not costs.should_load(link, 10, 160, num_others=0)  # 10 s against 1.6
    assert costs.should_load(link, 10, 160, num_others=6)  # computing would hold up six others
    assert costs.should_load(link, 10, 160, num_others=0, spare_s=8.5)
    for _ in range(30):
        costs.note_step(100, 10.0)
    assert costs.should_load(link, 10, 160, num_others=0)  # by what it has cost of late


def on_host(should_load):
    """An engine that has a prompt on the host alone, asked for it again."""
    engine = make_engine(num_pages=12, max_model_len=40, cache=KVFLOW)
    engine.scheduler.should_load = should_load
    prompt = list(range(3, 35))
    first = Client(engine, prompt, max_tokens=2)
    run(engine)
    cache = engine.cache
    cache.set_reader("someone", cache_root(engine), np.array(prompt, np.int32), 5.0)
    blocks = cache.match(cache_root(engine), np.array(prompt, np.int32))
    cache.residency.offload(int(blocks[-1]))
    engine.transfer_manager.dispatch()
    engine.transfers.complete(10)
    run(engine)
    cache.residency.evict(cache.residency.num_idle)
    again = Client(engine, prompt, max_tokens=2)
    run(engine)
    assert first.tokens == again.tokens == again.cold
    return again.stats


def cache_root(engine):
    return next(root for root, _, _ in engine.cache.index.nodes())


def test_what_would_take_longer_to_load_is_computed():
    asked = []

    def pays(num_blocks, num_tokens):
        asked.append((num_blocks, num_tokens))
        return False

    assert on_host(pays).num_cached_tokens == 0
    assert asked[-1] == (7, 28)  # the last token is always computed
    assert on_host(lambda *_: True).num_cached_host_tokens == 28
