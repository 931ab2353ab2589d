"""The Python API and the server over a real, tiny model: the whole way, once."""

import json
import threading

import httpx
import pytest

from kvflow_jax import (
    LLM,
    CapacityError,
    EngineClosedError,
    FinishReason,
    InvalidRequestError,
    SamplingParams,
)
from tests.models import tiny

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
SIZES = {"num_pages": 40, "max_num_seqs": 2, "max_num_batched_tokens": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("llm") / "model")


@pytest.fixture(scope="module")
def llm(folder, tmp_path_factory):
    cache_dir = tmp_path_factory.mktemp("cache")
    with LLM(str(folder), cache_dir=cache_dir, progress=False, **SIZES) as llm:
        yield llm
        llm.engine.check_integrity()


def test_one_prompt_gives_one_completion_and_many_give_a_list_in_order(llm):
    one = llm.generate("hello there", GREEDY)
    assert one.finish_reason is FinishReason.LENGTH
    assert len(one.token_ids) == 6
    many = llm.generate(["hello there", "something else", "hello there"], GREEDY)
    assert [c.token_ids for c in many][0::2] == [one.token_ids] * 2
    ids = llm.tokenizer.encode("hello there")
    assert llm.generate(ids, GREEDY).token_ids == one.token_ids
    assert llm.generate([ids, ids[:3]], [GREEDY, GREEDY], progress=False)[0].text == one.text


def test_a_stream_is_the_completion_in_pieces_and_leaving_it_frees(llm):
    whole = llm.generate("stream me", GREEDY)
    pieces = list(llm.stream("stream me", GREEDY))
    assert "".join(p.text for p in pieces) == whole.text
    assert pieces[-1].finish_reason is FinishReason.LENGTH
    endless = SamplingParams(temperature=1.0, max_tokens=500, ignore_eos=True)
    stream = llm.stream("leave me", endless)
    next(stream)
    stream.close()
    llm.engine.check_integrity()
    assert llm.stats.num_running == 0


def test_chat_uses_the_template_and_the_cache(llm):
    talk = [{"role": "user", "content": "a question long enough to fill blocks " * 2}]
    first, again = llm.chat(talk, GREEDY), llm.chat(talk, GREEDY)
    assert first.token_ids == again.token_ids
    assert first.num_cached_tokens == 0
    assert again.num_cached_tokens > 0
    both = llm.chat([talk, [*talk, {"role": "assistant", "content": "yes"}]], GREEDY)
    assert both[0].token_ids == first.token_ids
    assert llm.flush_cache()
    assert llm.chat(talk, GREEDY).num_cached_tokens == 0
    text = "".join(o.text for o in llm.stream_chat(talk, GREEDY))
    assert text == first.text


def test_what_cannot_run_says_so_and_nothing_leaks(llm):
    before = llm.stats.num_finished
    for prompt in (5, [[]], [10**9], [-1], "x" * 5000, ["fine", "x" * 5000]):
        with pytest.raises(InvalidRequestError):
            llm.generate(prompt, GREEDY)
    assert llm.stats.num_finished == before  # of many prompts, none has run
    assert llm.generate([], GREEDY) == []
    with pytest.raises(InvalidRequestError, match="stop_token_ids"):
        llm.generate("a", SamplingParams(stop_token_ids=[10**6]))
    with pytest.raises(InvalidRequestError, match="SamplingParams"):
        llm.generate("a", 5)
    with pytest.raises(InvalidRequestError, match="must be a list"):
        llm.chat("hello")
    with pytest.raises(InvalidRequestError, match="at least one message"):
        llm.chat([])
    with pytest.raises(InvalidRequestError, match="2 prompts but 1"):
        llm.generate(["a", "b"], [GREEDY])
    with pytest.raises(InvalidRequestError, match="temperature"):
        SamplingParams(temperature=float("nan"))
    llm.engine.check_integrity()
    assert llm.stats.num_running == llm.stats.num_blocks_leased == 0


def test_a_stream_that_nobody_reads_ends_when_it_is_let_go(llm):
    stream = llm.stream("never read", SamplingParams(ignore_eos=True))
    del stream
    llm.engine.settle()
    assert llm.stats.num_running == 0
    assert llm.flush_cache()
    stream = llm.stream("never read", SamplingParams(ignore_eos=True))
    stream.close()
    assert list(stream) == []
    with pytest.raises(InvalidRequestError):
        llm.stream([])  # said at once


def test_closed_means_closed(folder, tmp_path):
    llm = LLM(str(folder), cache_dir=tmp_path, progress=False, **SIZES)
    stream = llm.stream("cut off", SamplingParams(max_tokens=400, ignore_eos=True))
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(EngineClosedError):
        list(stream)
    with pytest.raises(EngineClosedError):
        llm.generate("too late")


def test_too_little_memory_is_said_before_anything_runs(folder, tmp_path):
    with pytest.raises(CapacityError, match="GiB more are needed"):
        LLM(str(folder), cache_dir=tmp_path, progress=False, pool_gib=1e-6, max_model_len=256)


def test_the_server_serves_this_engine(llm):
    """HTTP to device and back; what HTTP alone does is tested in tests/serve."""
    from kvflow_jax.serve.config import ServerConfig
    from kvflow_jax.serve.server import Server, bind

    server = Server(
        ServerConfig(model="tiny", port=0),
        bind("127.0.0.1", 0),
        lambda config: (llm.engine, llm.tokenizer, "tiny"),
    )
    server.service.close = lambda: None  # the engine belongs to the other tests too
    llm.engine.drain = lambda timeout_s: True
    thread = threading.Thread(target=server.serve_until_stopped)
    thread.start()
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while client.get("/ready").status_code != 200:
                pass
            body = {"prompt": "hello over there, dear server", "max_tokens": 5, "temperature": 0}
            first = client.post("/v1/completions", json=body).json()
            again = client.post("/v1/completions", json=body).json()
            assert first["choices"] == again["choices"]
            assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
            assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
            text = ""
            with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
                for line in stream.iter_lines():
                    if line.startswith("data: {"):
                        text += json.loads(line[6:])["choices"][0]["text"]
            assert text == first["choices"][0]["text"]
            metrics = client.get("/metrics").text
            assert "vllm:prefix_cache_hits_total" in metrics
    finally:
        server.should_exit = True
        thread.join()
