"""The Python API and the server over a real, tiny model, end to end."""

import contextlib
import functools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest

from kvflow_jax import (
    LLM,
    CacheConfig,
    CapacityError,
    ConfigError,
    EngineClosedError,
    FinishReason,
    Hints,
    HintStatus,
    InvalidRequestError,
    ModelLoadError,
    SamplingParams,
    Workflow,
)
from kvflow_jax.models.kernels.cpu import build
from kvflow_jax.models.kernels.cpu.ops import NativeOps
from kvflow_jax.models.ops import XLA_ON_CPU
from kvflow_jax.runtime.runner import ModelRunner
from tests.models import tiny
from tests.support.served import running

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
OPTIONS = {"num_pages": 18, "max_num_seqs": 2, "max_num_batched_tokens": 64, "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("llm") / "model")


@pytest.fixture
def compiles_when_used(monkeypatch):
    """For a test that uses few shapes: compiling all, or reading them, takes long."""
    monkeypatch.setattr(ModelRunner, "warm_up", lambda self, track: None)


@pytest.fixture(scope="module")
def llm(folder, tmp_path_factory):
    cache_dir = tmp_path_factory.mktemp("cache")
    with LLM(str(folder), cache_dir=cache_dir, progress=False, **OPTIONS) as llm:
        yield llm
        llm.engine.check_integrity()


def test_an_agent_is_recognised_by_the_system_message_of_its_first_chat(llm):
    num_known = llm.engine.stats.num_learned_agents
    messages = [
        {"role": "system", "content": "You are the only one of your kind."},
        {"role": "user", "content": "hello"},
    ]
    llm.chat(messages, GREEDY)
    llm.engine.settle()
    assert llm.engine.stats.num_learned_agents == num_known + 1


def test_one_prompt_gives_one_completion_and_many_give_a_list_in_order(llm):
    one = llm.generate("hello there", GREEDY)
    assert one.finish_reason is FinishReason.LENGTH
    assert len(one.token_ids) == 6
    many = llm.generate(["hello there", "something else", "hello there"], GREEDY)
    assert [c.token_ids for c in many][0::2] == [one.token_ids] * 2
    ids = llm.tokenizer.encode("hello there")
    assert llm.generate(ids, GREEDY).token_ids == one.token_ids
    assert llm.generate([ids, ids[:3]], [GREEDY, GREEDY], progress=False)[0].text == one.text


@pytest.mark.usefixtures("compiles_when_used")
def test_the_models_own_sampling_parameters_are_returned_on_request(tmp_path):
    folder = tiny.write_folder(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"temperature": 0.0, "max_new_tokens": 4}')
    with LLM(str(folder), cache_dir=tmp_path, progress=False, **OPTIONS) as llm:
        params = llm.get_default_sampling_params()
        assert params == SamplingParams(temperature=0.0, max_tokens=4)
        assert len(llm.generate("hello there", params).token_ids) == 4


def test_a_stream_joins_to_the_completion_and_closing_it_frees_its_blocks(llm):
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


def test_invalid_calls_raise_and_leak_no_blocks(llm):
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


def test_a_stream_that_is_never_read_ends_when_it_is_collected(llm):
    stream = llm.stream("never read", SamplingParams(ignore_eos=True))
    del stream
    llm.engine.settle()
    assert llm.stats.num_running == 0
    assert llm.flush_cache()
    stream = llm.stream("never read", SamplingParams(ignore_eos=True))
    stream.close()
    assert list(stream) == []
    with pytest.raises(InvalidRequestError):
        llm.stream([])  # raises before it is read


def test_random_weights_come_from_the_seed(monkeypatch, tmp_path):
    asked = {}

    def load(name, **how):
        asked.update(how)
        raise ModelLoadError("far enough")

    monkeypatch.setattr("kvflow_jax.api.launch.load_model", load)
    with pytest.raises(ModelLoadError, match="far enough"):
        LLM("qwen3-0.6b", random_weights=True, seed=7, cache_dir=tmp_path)
    assert (asked["random_weights"], asked["seed"]) == (True, 7)


def test_completions_have_logprobs_and_the_stop_reason(llm):
    params = SamplingParams(
        temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=2, prompt_logprobs=0
    )
    plain = llm.generate("hello there", GREEDY)
    one = llm.generate("hello there", params)
    assert (plain.logprobs, plain.prompt_logprobs, plain.stop_reason) == ((), (), None)
    assert one.text == plain.text
    assert [score.token_id for score in one.logprobs] == list(one.token_ids)
    ids = llm.tokenizer.encode("hello there")
    assert [score.token_id for score in one.prompt_logprobs] == ids[1:]
    assert all(score.top == () for score in one.prompt_logprobs)
    stop = plain.text[2:4]
    cut = llm.generate("hello there", SamplingParams(temperature=0.0, max_tokens=6, stop=stop))
    assert cut.stop_reason == stop
    assert cut.finish_reason is FinishReason.STOP


def talk(agent, task):
    system = f"{agent}: you do what {agent}s do, with care and in few words."
    return [{"role": "system", "content": system}, {"role": "user", "content": task}]


def review():
    workflow = Workflow("review").edge("planner", "coder").edge("planner", "tester")
    return workflow.edge("coder", "reviewer").edge("tester", "reviewer")


def test_agents_of_a_run_called_from_many_threads_hit_their_prefixes(llm):
    llm.flush_cache()
    with llm.run(review()) as run, ThreadPoolExecutor(2) as pool:
        for turn in range(2):
            answers = [run.chat("planner", talk("planner", f"plan {turn}"), GREEDY)]
            assert llm.stats.num_runs == 1
            branches = [
                pool.submit(run.chat, agent, talk(agent, f"do {turn}"), GREEDY)
                for agent in ("coder", "tester")
            ]
            answers += [branch.result() for branch in branches]
            pieces = list(run.stream_chat("reviewer", talk("reviewer", f"judge {turn}"), GREEDY))
            assert {answer.hint_status for answer in answers} == {HintStatus.APPLIED}
            assert pieces[-1].stats.hint_status is HintStatus.APPLIED
            cached = [answer.stats.num_cached_tokens for answer in [*answers, pieces[-1]]]
            assert all(cached) if turn else not any(cached)
            assert all(a.num_cached_host_tokens <= a.num_cached_tokens for a in answers)
        plain = llm.chat(talk("planner", "plan 1"), GREEDY)
        assert (plain.text, plain.hint_status) == (answers[0].text, None)
    llm.generate("any", GREEDY)
    assert llm.stats.num_runs == 0


def test_a_run_takes_every_kind_of_call(llm):
    with llm.run(review(), "named") as run:
        assert run.workflow_id == "named"
        one = run.generate("planner", "hello there", GREEDY)
        assert one.text == llm.generate("hello there", GREEDY).text
        many = run.generate("coder", ["hello there", "and more"], GREEDY, progress=False)
        assert many[0].text == one.text
        assert "".join(o.text for o in run.stream("tester", "hello there", GREEDY)) == one.text
        both = run.chat("stranger", [talk("x", "a"), talk("y", "b")], GREEDY, progress=False)
        assert [answer.hint_status for answer in both] == [HintStatus.CLIPPED] * 2
        hints = Hints(session_id="s", next_agents={"reviewer": 1.0})
        kept = run.chat("coder", talk("coder", "keep this"), GREEDY, hints=hints)
        assert kept.hint_status is HintStatus.APPLIED
        assert run.advance(["tester", "nobody"], running=["reviewer"]) == ["nobody"]
        assert run.advance(completed=["reviewer"]) == []  # the last of the graph: the run ends
        assert run.advance(completed=["planner"]) == []  # and begins anew
    with llm.run() as run:
        assert run.generate("anyone", "hello there", GREEDY).hint_status is HintStatus.APPLIED
    run.end()


def test_invalid_runs_and_calls_of_a_run_raise(llm):
    for workflow in ("planner -> coder", {"nodes": ["a"]}, 5):
        with pytest.raises(InvalidRequestError, match="must be a Workflow"):
            llm.run(workflow)
    for workflow_id in ("", "x" * 257, 5):
        with pytest.raises(InvalidRequestError, match="workflow_id"):
            llm.run(review(), workflow_id)
    with llm.run(review()) as run:
        for agent in ("", None, "x" * 257, ["planner"]):
            with pytest.raises(InvalidRequestError, match="agent must be"):
                run.generate(agent, "hello", GREEDY)
        for bad in ("planner", [5], [""]):
            with pytest.raises(InvalidRequestError, match="completed"):
                run.advance(bad)
        for call in (run.chat, run.stream_chat):
            with pytest.raises(InvalidRequestError, match="at least one message"):
                call("planner", [], GREEDY)
        with pytest.raises(InvalidRequestError):
            run.generate("planner", "x" * 5000, GREEDY)
    for call in (run.chat, run.generate, run.stream, run.stream_chat):
        with pytest.raises(InvalidRequestError, match="this run is over"):
            call("planner", "hello", GREEDY)
    with pytest.raises(InvalidRequestError, match="this run is over"):
        run.advance()
    for call in (llm.chat, llm.generate, llm.stream):
        with pytest.raises(InvalidRequestError, match="hints must be"):
            call([1, 2], GREEDY, hints={"agent_id": "planner"})
    llm.engine.check_integrity()
    assert llm.stats.num_running == llm.stats.num_blocks_leased == 0


def test_contradictory_cache_arguments_raise_before_the_model_is_loaded():
    for switches, message in (
        ({"cache": "vllm"}, "cache must be one of"),
        ({"cache": "gpu-only", "host_cache_gib": 1}, "no host tier"),
        ({"host_cache_gib": 0, "prefetch": True}, "prefetch needs a host tier"),
        ({"eviction": "mru"}, "eviction must be one of"),
        ({"backup": "never"}, "backup must be one of"),
        ({"max_num_seqs": 0}, "max_num_seqs must be an integer of at least 1"),
        ({"dtype": "int4"}, "dtype must be one of"),
        ({"link_ratio": 0}, "link_ratio must be a number above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            LLM("no such model", **switches)


@pytest.mark.usefixtures("compiles_when_used")
def test_cache_arguments_reach_the_engine(folder, tmp_path):
    switches = {"eviction": "kvflow-cost", "prefetch": False, "host_cache_gib": 1e-3}
    switches |= {"backup": "evict", "guard": False, "admission": True}
    with LLM(str(folder), cache_dir=tmp_path, progress=False, **switches, **OPTIONS) as llm:
        cache = llm.sizes.cache
    assert cache.eviction == "kvflow-cost"
    assert cache.admission_control
    assert not any([cache.prefetches, cache.offloads_early, cache.safeguards])
    assert 0 < cache.num_host_blocks <= 1e-3 * 2**30 / llm.sizes.pool.page_bytes


@pytest.mark.usefixtures("compiles_when_used")
def test_a_closed_llm_refuses_every_call(folder, tmp_path):
    cache = CacheConfig("gpu-only")
    llm = LLM(str(folder), cache_dir=tmp_path, progress=False, cache=cache, **OPTIONS)
    assert llm.sizes.cache.num_host_blocks == 0
    run = llm.run()
    stream = llm.stream("cut off", SamplingParams(max_tokens=400, ignore_eos=True))
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(EngineClosedError):
        list(stream)
    with pytest.raises(EngineClosedError):
        llm.generate("too late")
    with pytest.raises(EngineClosedError):
        llm.run()
    run.end()


def test_a_pool_too_small_for_a_request_raises_at_start(folder, tmp_path):
    with pytest.raises(CapacityError, match="GiB more are needed"):
        LLM(str(folder), cache_dir=tmp_path, progress=False, pool_gib=1e-6, max_model_len=256)


@pytest.mark.usefixtures("compiles_when_used")
def test_without_a_compiler_xla_gives_the_same_text_and_one_warning(
    llm, folder, tmp_path, monkeypatch, caplog
):
    if not isinstance(llm.model.ops, NativeOps):
        pytest.skip("needs a CPU and a C++ compiler")
    monkeypatch.setattr(build, "_library", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=3)
    with LLM(str(folder), cache_dir=tmp_path, progress=False, **OPTIONS) as plain:
        assert plain.model.ops == XLA_ON_CPU
        assert sum("no C++ compiler" in record.message for record in caplog.records) == 1
        for prompt in ("hello there", "a prompt of some blocks of tokens, but one tile"):
            expected, got = llm.generate(prompt, params), plain.generate(prompt, params)
            assert len(got.token_ids) == 16
            for one, other in zip(expected.logprobs, got.logprobs, strict=True):
                assert dict(one.top)[other.token_id] == pytest.approx(one.logprob, abs=1e-3)
                if other.token_id != one.token_id:
                    break  # a near tie, and from here on other texts
                assert other.logprob == pytest.approx(one.logprob, abs=1e-3)


def test_the_server_serves_this_engine(llm):
    """HTTP to device and back; what HTTP alone does is tested in tests/serve."""
    with served(llm) as url, httpx.Client(base_url=url, timeout=60) as client:
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


def test_the_openai_client_uses_every_sampling_feature(llm):
    with served(llm) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        # A random model writes parts of characters: without the bias, few texts could be compared.
        token_bytes = map(llm.tokenizer.token_bytes, range(llm.tokenizer.vocab_size))
        letters = {str(token): 50 for token, text in enumerate(token_bytes) if text.isalpha()}
        ask = functools.partial(
            client.completions.create,
            model="tiny",
            prompt="hello over there",
            temperature=0,
            logit_bias=letters,
        )
        plain = ask(max_tokens=12)
        text = plain.choices[0].text
        # A stop string across the borders of tokens; with it, and streamed.
        stop = text[3:6]
        cut = text[: text.find(stop)]
        assert ask(max_tokens=12, stop=stop).choices[0].text == cut
        assert ask(max_tokens=12, stop=[stop, "§"]).choices[0].finish_reason == "stop"
        kept = ask(max_tokens=12, stop=stop, extra_body={"include_stop_str_in_output": True})
        assert kept.choices[0].text == cut + stop
        pieces = [chunk.choices[0].text for chunk in ask(max_tokens=12, stop=stop, stream=True)]
        assert "".join(pieces) == cut
        # Logprobs, echo, scoring alone.
        scored = ask(max_tokens=4, logprobs=2)
        logprobs = scored.choices[0].logprobs
        assert "".join(logprobs.tokens) == scored.choices[0].text
        assert len(logprobs.token_logprobs) == len(logprobs.tokens) == 4
        # Tokens of equal text, such as parts of characters, share an entry.
        assert all(1 <= len(top) <= 3 for top in logprobs.top_logprobs)
        echoed = ask(max_tokens=4, logprobs=2, echo=True).choices[0]
        assert echoed.text == "hello over there" + scored.choices[0].text
        assert echoed.logprobs.token_logprobs[0] is None
        assert "".join(echoed.logprobs.tokens) == echoed.text
        assert echoed.logprobs.text_offset[-1] + len(echoed.logprobs.tokens[-1]) == len(echoed.text)
        np.testing.assert_allclose(
            echoed.logprobs.token_logprobs[-4:], logprobs.token_logprobs, atol=1e-3
        )
        alone = ask(max_tokens=0, logprobs=0, echo=True)
        assert alone.choices[0].text == "hello over there"
        assert "".join(alone.choices[0].logprobs.tokens) == "hello over there"
        assert alone.usage.completion_tokens == 0
        streamed = list(ask(max_tokens=4, logprobs=2, echo=True, stream=True))
        assert "".join(chunk.choices[0].text for chunk in streamed) == echoed.text
        offsets = [at for chunk in streamed for at in chunk.choices[0].logprobs.text_offset]
        assert offsets == echoed.logprobs.text_offset
        # The token sampled for echo alone is not returned.
        forced = ask(max_tokens=0, echo=True, logit_bias={"2": 100}).choices[0]
        assert (forced.finish_reason, forced.stop_reason) == ("length", None)
        both = ask(max_tokens=0, echo=True, logprobs=3, extra_body={"prompt_logprobs": 1})
        assert max(len(top) for top in both.choices[0].logprobs.top_logprobs[1:]) >= 3
        assert all(len(one) <= 2 for one in both.choices[0].prompt_logprobs[1:])
        # Characters of several bytes: offsets point into the text.
        letters = "I \u2764 \U0001f389 \u65e5\u672c and more"
        wide = ask(prompt=letters, max_tokens=0, echo=True, logprobs=0).choices[0]
        assert wide.text == letters
        ends = [*wide.logprobs.text_offset[1:], len(letters)]
        for token, start, end in zip(
            wide.logprobs.tokens, wide.logprobs.text_offset, ends, strict=True
        ):
            if "\ufffd" not in token:
                assert letters[start:end] == token
        # The prompt's scores come with the first chunk, with text or without.
        for stop in (None, text[:1] + "never"):
            chunks = list(
                ask(max_tokens=6, stop=stop, stream=True, extra_body={"prompt_logprobs": 1})
            )
            whole = ask(max_tokens=6, stop=stop, extra_body={"prompt_logprobs": 1})
            streamed = [
                c.choices[0].prompt_logprobs
                for c in chunks
                if c.choices[0].prompt_logprobs is not None
            ]
            assert [len(one) for one in streamed] == [len(whole.choices[0].prompt_logprobs)]
        # n, seeds, penalties, bias, min_tokens.
        drawn = ask(max_tokens=8, n=3, seed=5, extra_body={"temperature": 1.0})
        assert len({choice.text for choice in drawn.choices}) > 1
        again = ask(max_tokens=8, n=3, seed=5, extra_body={"temperature": 1.0})
        assert [c.text for c in again.choices] == [c.text for c in drawn.choices]
        token = llm.generate("hello over there", GREEDY).token_ids[0]
        banned = ask(max_tokens=4, logit_bias={str(token): -100})
        assert banned.choices[0].text != scored.choices[0].text
        flat = ask(
            max_tokens=20,
            presence_penalty=2,
            frequency_penalty=2,
            extra_body={"repetition_penalty": 10, "ignore_eos": True},
        )
        assert flat.choices[0].text != ask(max_tokens=20).choices[0].text
        # Chat's own form of logprobs, whole and streamed.
        chat = functools.partial(
            client.chat.completions.create,
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            temperature=0,
            max_tokens=5,
            logprobs=True,
            top_logprobs=3,
        )
        answer = chat().choices[0]
        content = answer.logprobs.content
        text = b"".join(bytes(one.bytes) for one in content).decode(errors="replace")
        assert text == answer.message.content
        assert all(len(one.top_logprobs) == 3 for one in content)
        assert all(one.logprob <= one.top_logprobs[0].logprob + 1e-5 for one in content)
        chunks = [chunk.choices[0].logprobs for chunk in chat(stream=True) if chunk.choices]
        tokens = [one.token for logprobs in chunks if logprobs for one in logprobs.content]
        assert tokens == [one.token for one in content]
    llm.engine.check_integrity()


@contextlib.contextmanager
def served(llm):
    """The engine of ``llm`` behind HTTP; its URL."""
    from kvflow_jax.api.load_config import LoadConfig
    from kvflow_jax.serve.config import ServerConfig
    from kvflow_jax.serve.server import Server, bind

    server = Server(
        ServerConfig(port=0, load=LoadConfig("tiny")),
        bind("127.0.0.1", 0),
        lambda config: (llm.engine, llm.tokenizer, "tiny", {}),
    )
    server.service.close = lambda: None  # the engine belongs to the other tests too
    llm.engine.drain = lambda timeout_s: True
    with running(server) as url:
        yield url
