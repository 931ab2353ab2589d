"""Fast-forward: decode steps that are run as one sample the tokens of single steps."""

import pytest

from tests.support.token_runner import Client, make_engine, run


def test_a_decode_step_is_repeated_until_a_request_ends():
    engine = make_engine(repeats=True)
    short = Client(engine, [1] * 3, max_tokens=4, ignore_eos=True)
    long = Client(engine, [2] * 3, max_tokens=20, ignore_eos=True)
    run(engine)
    # The prefill samples one token of each, then three decode steps run as one.
    assert [len(output.token_ids) for output in short.outputs] == [1, 3]
    assert [len(output.token_ids) for output in long.outputs][:2] == [1, 3]


def decode(repeats):
    """Run three requests; return the engine and the requests."""
    engine = make_engine(num_pages=40, repeats=repeats)
    clients = [
        Client(engine, [5] * length, max_tokens=max_tokens, ignore_eos=True)
        for length, max_tokens in ((3, 12), (9, 20), (4, 7))
    ]
    run(engine)
    assert [client.tokens for client in clients] == [client.cold for client in clients]
    return engine, clients


def test_repeated_steps_sample_the_same_tokens_in_fewer_dispatches():
    single, _ = decode(repeats=False)
    engine, clients = decode(repeats=True)
    assert engine.stats.num_steps == single.stats.num_steps
    assert engine.stats.generation_tokens == 12 + 20 + 7
    assert max(len(output.token_ids) for client in clients for output in client.outputs) == 5
    assert sum(map(len, (client.outputs for client in clients))) < 12 + 20 + 7


@pytest.mark.parametrize("num_pages", [7, 8, 9])
def test_repeated_steps_preempt_no_more_than_single_steps(num_pages):
    repeated = make_engine(num_pages=num_pages, repeats=True, max_model_len=24)
    single = make_engine(num_pages=num_pages, max_model_len=24)
    for engine in (repeated, single):
        clients = [Client(engine, [i] * 5, max_tokens=12, ignore_eos=True) for i in range(3)]
        run(engine)
        assert [client.tokens for client in clients] == [client.cold for client in clients]
    assert repeated.stats.num_preemptions <= single.stats.num_preemptions


def test_tokens_behind_a_stop_are_discarded():
    engine = make_engine(repeats=True)
    clients = [Client(engine, [i, i + 1], max_tokens=40) for i in range(10)]
    run(engine)
    assert [client.tokens for client in clients] == [client.cold for client in clients]
    assert "stop" in {client.reason for client in clients}
