"""Decode steps that run as one."""

import pytest

from tests.support.token_runner import Client, make_engine, run


def batches(repeats):
    engine = make_engine(num_pages=40, repeats=repeats)
    clients = [
        Client(engine, [5] * length, max_tokens=most, ignore_eos=True)
        for length, most in ((3, 12), (9, 20), (4, 7))
    ]
    run(engine)
    assert [client.tokens for client in clients] == [client.cold for client in clients]
    return engine, clients


def test_as_many_steps_in_fewer_goes():
    alone, _ = batches(repeats=False)
    engine, clients = batches(repeats=True)
    assert engine.stats.num_steps == alone.stats.num_steps
    assert engine.stats.generation_tokens == 12 + 20 + 7
    assert max(len(output.token_ids) for client in clients for output in client.outputs) == 5
    assert sum(map(len, (client.outputs for client in clients))) < 12 + 20 + 7


@pytest.mark.parametrize("num_pages", [7, 8, 9])
def test_no_more_at_once_than_there_are_blocks_for(num_pages):
    engine = make_engine(num_pages=num_pages, repeats=True, max_model_len=24)
    alone = make_engine(num_pages=num_pages, max_model_len=24)
    for one in (engine, alone):
        clients = [Client(one, [i] * 5, max_tokens=12, ignore_eos=True) for i in range(3)]
        run(one)
        assert [client.tokens for client in clients] == [client.cold for client in clients]
    assert engine.stats.num_preemptions <= alone.stats.num_preemptions


def test_what_comes_after_a_stop_is_thrown_away():
    engine = make_engine(repeats=True)
    clients = [Client(engine, [i, i + 1], max_tokens=40) for i in range(10)]
    run(engine)
    assert [client.tokens for client in clients] == [client.cold for client in clients]
    assert "stop" in {client.reason for client in clients}
