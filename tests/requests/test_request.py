"""A request: its tokens, its text, and when it ends."""

import pytest

from kvflow_jax.reasoning.splitter import ReasoningSplitter
from kvflow_jax.reasoning.syntax import ReasoningMarkup
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.requests.stop_strings import StopStrings
from kvflow_jax.workflow.hints import Hints, HintStatus
from tests.support.plain_request import make_request

EOS = 2


class Letters:
    """A detokenizer: token 0 is "a". Odd tokens are pending until the next token or the end."""

    def __init__(self):
        self.pending = ""

    def push(self, tokens):
        (token,) = tokens
        text, self.pending = self.pending + chr(97 + token), ""
        if token % 2:
            self.pending, text = text[-1], text[:-1]
        return text

    def flush(self):
        text, self.pending = self.pending, ""
        return text


def sample(request, *tokens):
    """Append tokens as the engine does; return the text and the last delta."""
    text = ""
    for token in tokens:
        request.num_in_flight += 1
        request.append(token)
        delta = request.detokenize(token)
        text += delta.text
        if delta.finish_reason is not None:
            break
    return text, delta


def test_tokens_grow_past_the_first_allocation():
    request = make_request(range(5), max_tokens=100)
    sample(request, *range(50))
    assert request.known_tokens.tolist() == [*range(5), *range(50)]
    assert (request.num_known, request.num_output, request.num_in_flight) == (55, 50, 0)


def test_tokens_in_flight_count_but_are_not_known():
    request = make_request(range(5))
    request.num_in_flight = 2
    assert request.num_tokens == 7
    assert len(request.known_tokens) == 5


def test_a_request_wants_a_step_while_tokens_are_uncomputed_and_there_is_room():
    request = make_request(range(4), max_tokens=2)
    assert request.wants_step
    request.num_computed = 4
    assert not request.wants_step
    request.num_in_flight = 1
    assert request.wants_step
    request.num_in_flight = 2  # the last token needs no step of its own
    assert not request.wants_step


def test_the_last_token_of_the_length_flushes_the_text():
    request = make_request([5], max_tokens=2, detokenizer=Letters())
    text, delta = sample(request, 4, 1)
    assert (text, delta.finish_reason) == ("eb", FinishReason.LENGTH)


def test_the_end_of_text_token_ends_the_text_and_is_no_stop_reason():
    request = make_request([5], detokenizer=Letters(), stop_ids=[EOS])
    text, delta = sample(request, 4, 1, EOS)
    assert (text, delta.finish_reason, delta.stop_reason) == ("eb", FinishReason.STOP, None)


def test_a_stop_token_is_the_stop_reason():
    request = make_request([5], detokenizer=Letters(), stop_token_ids=[6])
    text, delta = sample(request, 4, 6)
    assert (text, delta.finish_reason, delta.stop_reason) == ("e", FinishReason.STOP, 6)


def test_no_stop_counts_before_min_tokens():
    request = make_request([5], detokenizer=Letters(), stop_ids=[EOS], min_tokens=3)
    text, delta = sample(request, EOS, EOS, EOS)
    assert (text, delta.finish_reason) == ("cc", FinishReason.STOP)


def test_a_stop_string_ends_the_text_before_it():
    request = make_request([5], detokenizer=Letters(), stop_strings=StopStrings(["ec"]))
    text, delta = sample(request, 0, 4, 2)
    assert (text, delta.finish_reason, delta.stop_reason) == ("a", FinishReason.STOP, "ec")


def test_pending_text_of_a_stop_string_comes_with_the_last_token():
    request = make_request([5], max_tokens=2, detokenizer=Letters())
    request.stop_strings = StopStrings(["ecc"])
    text, delta = sample(request, 4, 2)
    assert (text, delta.finish_reason) == ("ec", FinishReason.LENGTH)


def test_the_flushed_text_ends_at_a_stop_string():
    request = make_request([5], detokenizer=Letters())
    request.stop_strings = StopStrings(["eb"])
    assert sample(request, 0, 4, 1)[0] == "a"
    assert request.flush().text == ""
    request = make_request([5], detokenizer=Letters())
    request.stop_strings = StopStrings(["ebb"])
    assert sample(request, 0, 4, 1)[0] == "a"
    assert request.flush().text == "eb"


def reasoning_request(*, is_open: bool, **options):
    """Return a request whose reasoning is between "c" and "e"."""
    request = make_request([5], detokenizer=Letters(), **options)
    request.splitter = ReasoningSplitter(ReasoningMarkup("c", "e", is_open))
    return request


@pytest.mark.parametrize(
    ("tokens", "is_open", "num_reasoning", "answer"),
    [((2, 6, 4, 6, 8), False, 3, "gi"), ((6, 4, 6), True, 2, "g"), ((6, 4, 2), False, 0, "gec")],
)
def test_tokens_of_the_reasoning_count_up_to_its_end(tokens, is_open, num_reasoning, answer):
    request = reasoning_request(is_open=is_open)
    assert sample(request, *tokens)[0] == answer
    assert request.num_reasoning == num_reasoning


def test_stop_strings_count_behind_the_reasoning_only():
    request = reasoning_request(is_open=True)
    request.stop_strings = StopStrings(["g", "e"])
    text, delta = sample(request, 6, 4, 8, 6, 8)
    assert (text, delta.finish_reason, delta.stop_reason) == ("i", FinishReason.STOP, "g")


def test_a_request_may_end_within_its_reasoning():
    request = reasoning_request(is_open=True, stop_ids=[0])
    text, delta = sample(request, 6, 8, 0)
    assert (text, delta.finish_reason) == ("", FinishReason.STOP)
    assert request.num_reasoning == 3
    request = reasoning_request(is_open=True, max_tokens=2)
    _, delta = sample(request, 6, 7)
    assert (delta.reasoning, delta.finish_reason) == ("h", FinishReason.LENGTH)


def test_without_a_tokenizer_there_is_no_text():
    request = make_request([5], max_tokens=1)
    text, delta = sample(request, 3)
    assert (text, delta.finish_reason) == ("", FinishReason.LENGTH)
    assert request.flush().text == ""


def test_order_is_by_priority_then_virtual_start_then_arrival():
    requests = [make_request([5], i, priority=p) for i, p in enumerate([0, 1, 0, 0])]
    requests[0].virtual_start = 1
    assert [r.id for r in sorted(requests, key=lambda r: r.order)] == [1, 2, 3, 0]


@pytest.mark.parametrize(
    ("hints", "tenant"), [(None, "key"), (Hints(), "key"), (Hints(tenant="other"), "other")]
)
def test_agents_are_the_tenants_unless_hints_name_another(hints, tenant):
    assert make_request([5], tenant="key", hints=hints).tenant == tenant


def test_only_prompt_logprobs_need_the_whole_prompt_computed():
    assert make_request([5], prompt_logprobs=0).scores_prompt
    assert not make_request([5], logprobs=3).scores_prompt


def test_stats_of_a_finished_request():
    request = make_request(range(6))
    request.hint_status = HintStatus.CLIPPED
    sample(request, 1, 3)
    stats = request.stats(9.0)
    assert (stats.num_prompt_tokens, stats.num_output_tokens) == (6, 2)
    assert (stats.num_cached_tokens, stats.first_scheduled_s) == (0, None)
    assert (stats.hint_status, stats.finished_s) == (HintStatus.CLIPPED, 9.0)


@pytest.mark.parametrize(
    ("include_stop", "expected"), [(False, "eb"), (True, "eb<end>")], ids=["omitted", "included"]
)
def test_a_stop_string_that_is_no_text_of_its_token_ends_the_text(include_stop, expected):
    request = make_request([5], detokenizer=Letters(), min_tokens=2)
    request.stop_strings = StopStrings(["<end>"], include_stop=include_stop, hidden={8: "<end>"})
    text, delta = sample(request, 4, 1, 8)
    assert (text, delta.finish_reason, delta.stop_reason) == (expected, FinishReason.STOP, "<end>")


def test_a_hidden_stop_string_counts_from_min_tokens_on_and_behind_the_reasoning():
    request = reasoning_request(is_open=True, min_tokens=6)
    request.stop_strings = StopStrings(["<end>"], hidden={8: "<end>"})
    text, delta = sample(request, 6, 8, 4, 8, 6, 8)
    assert (text, delta.stop_reason) == ("ig", "<end>")
    assert request.num_output == 6
