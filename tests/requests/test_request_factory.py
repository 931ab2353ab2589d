"""Checks against the model, and what a request takes from its parameters and its engine."""

import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.reasoning.syntax import ReasoningMarkup
from kvflow_jax.requests.request_factory import RequestFactory
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.tools.call_markup import CallMarkup

VOCAB, MAX_LEN, EOS = 50, 16, 7


class FakeTokenizer:
    def detokenizer(self, *, skip_special_tokens, kept_tokens):
        return ("detokenizer", skip_special_tokens, kept_tokens)

    def special_token_ids(self, texts):
        return dict.fromkeys(texts, 3)


def make_factory(*, seed=0, tokenizer=None) -> RequestFactory:
    return RequestFactory(
        MAX_LEN,
        VOCAB,
        tokenizer=tokenizer,
        eos_token_ids=(EOS,),
        model_name="model",
        seed=seed,
    )


def create(factory, num_prompt=4, **params):
    spec = RequestSpec(range(num_prompt), SamplingParams(**params), salt="salt")
    return factory.create(spec, lambda output: None, request_id=0, arrival_s=0.0)


@pytest.mark.parametrize(
    ("prompt", "params", "param", "message"),
    [
        ([], {}, "prompt", "at least one token"),
        ([1] * MAX_LEN, {}, "prompt", "maximum context length is 16 tokens.*requested 17 tokens"),
        ([1, VOCAB], {}, "prompt", "between 0 and 49"),
        ([1], {"stop_token_ids": [3, VOCAB]}, "stop_token_ids", "between 0 and 49, got 50"),
        ([1], {"logit_bias": {VOCAB: 1.0}}, "logit_bias", "between 0 and 49, got 50"),
        ([1], {"allowed_token_ids": [3, VOCAB]}, "allowed_token_ids", "between 0 and 49, got 50"),
        ([1], {"stop": "END"}, "stop", "tokenizer"),
    ],
)
def test_a_request_that_can_never_run_is_refused(prompt, params, param, message):
    with pytest.raises(InvalidRequestError, match=message) as raised:
        make_factory().check(RequestSpec(prompt, SamplingParams(**params)))
    assert raised.value.param == param


def test_the_error_of_a_long_prompt_has_the_code_that_clients_look_for():
    with pytest.raises(InvalidRequestError) as raised:
        make_factory().check(RequestSpec([1] * MAX_LEN))
    assert raised.value.code == "context_length_exceeded"


def test_a_prompt_may_leave_room_for_one_token():
    factory = make_factory(tokenizer=FakeTokenizer())
    params = SamplingParams(stop="END", stop_token_ids=[VOCAB - 1], logit_bias={VOCAB - 1: 1.0})
    factory.check(RequestSpec([1] * (MAX_LEN - 1), params))
    assert create(factory, MAX_LEN - 1).max_len == MAX_LEN


def test_max_tokens_bounds_the_length_within_the_context():
    factory = make_factory()
    assert create(factory, max_tokens=3).max_len == 7
    assert create(factory, max_tokens=100).max_len == MAX_LEN
    assert create(factory).max_len == MAX_LEN


def test_stop_ids_are_those_of_model_and_request():
    factory = make_factory()
    assert create(factory, stop_token_ids=[9]).stop_ids == {EOS, 9}
    assert create(factory, stop_token_ids=[9], ignore_eos=True).stop_ids == {9}


def test_equal_seeds_give_equal_draws_whatever_the_engine_has_drawn():
    first, second = make_factory(seed=1), make_factory(seed=2)
    create(first)
    assert create(first, seed=-5).seed == create(second, seed=-5).seed
    assert create(first, seed=5).seed != create(first, seed=6).seed


def test_requests_without_a_seed_draw_from_the_engines():
    draws = [
        [create(factory).seed for _ in range(3)] for factory in (make_factory(), make_factory())
    ]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 3
    assert all(0 <= word < 2**32 for seed in draws[0] for word in seed)


def test_text_needs_a_tokenizer():
    assert create(make_factory()).detokenizer is None
    factory = make_factory(tokenizer=FakeTokenizer())
    assert create(factory, skip_special_tokens=False).detokenizer == ("detokenizer", False, ())


def test_stop_strings_are_kept_in_the_text_if_the_request_says_so():
    factory = make_factory(tokenizer=FakeTokenizer())
    assert create(factory).stop_strings is None
    assert create(factory, stop="END").stop_strings.push("the END.") == ("the ", "END")
    kept = create(factory, stop="END", include_stop=True).stop_strings
    assert kept.push("the END.") == ("the END", "END")


def test_the_root_key_has_model_and_salt():
    root = create(make_factory()).root
    assert (root.model, root.salt) == ("model", "salt")


def test_a_request_with_calls_keeps_their_markers_and_stops_outside_of_them():
    factory = make_factory(tokenizer=FakeTokenizer())
    markup = CallMarkup(spans=(("<call>", "</call>"),), tokens=("[ARGS]",))
    spec = RequestSpec([1], SamplingParams(stop="."), call_markup=markup)
    request = factory.create(spec, lambda output: None, request_id=0, arrival_s=0.0)
    assert request.detokenizer == ("detokenizer", True, ("<call>", "</call>", "[ARGS]"))
    assert request.stop_strings.push("<call>.</call>a.") == ("<call>.</call>a", ".")


@pytest.mark.parametrize(("skips", "answer"), [(True, "bc"), (False, "b</r>c")])
def test_a_request_that_reasons_keeps_its_tags_for_the_splitter(skips, answer):
    factory = make_factory(tokenizer=FakeTokenizer())
    params = SamplingParams(skip_special_tokens=skips)
    spec = RequestSpec([1], params, reasoning=ReasoningMarkup("<r>", "</r>", is_open=True))
    request = factory.create(spec, lambda output: None, request_id=0, arrival_s=0.0)
    assert request.detokenizer == ("detokenizer", skips, ("<r>", "</r>"))
    assert request.splitter.push("a</r>b</r>c", is_last=True) == ("a", answer)
    assert create(factory).splitter is None


def test_the_choices_of_a_prompt_share_the_mask_of_allowed_tokens():
    factory, params = make_factory(), SamplingParams(allowed_token_ids=[3, 40])
    requests = [
        factory.create(
            RequestSpec([1], params.replace(seed=seed)), print, request_id=seed, arrival_s=0.0
        )
        for seed in range(2)
    ]
    assert requests[0].params.allowed_token_ids == ()  # as large as a vocabulary
    one, other = (request.token_mask for request in requests)
    assert one is other
    assert not one.flags.writeable
    assert create(factory, allowed_token_ids=[4]).token_mask[0] == 1 << 4


class TokenizerWithEnds(FakeTokenizer):
    def special_token_ids(self, texts):
        return {text: i for text, i in {"<end>": 3, "<call>": 4}.items() if text in texts}


@pytest.mark.parametrize(("skips", "hidden"), [(True, ("", "<end>")), (False, None)])
def test_stop_strings_that_are_special_tokens_stop_where_the_text_lacks_them(skips, hidden):
    factory = make_factory(tokenizer=TokenizerWithEnds())
    params = SamplingParams(stop=["<end>", "x", "<call>"], skip_special_tokens=skips)
    spec = RequestSpec([1], params, call_markup=CallMarkup((("<call>", ""),)))
    request = factory.create(spec, lambda output: None, request_id=0, arrival_s=0.0)
    assert request.stop_strings.hidden_stop(3) == hidden
    # A marker of calls is in the text.
    assert request.stop_strings.hidden_stop(4) is None
