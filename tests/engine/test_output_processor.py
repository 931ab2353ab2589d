"""From sampled tokens to outputs, and the ends of requests."""

from unittest.mock import Mock

import pytest

from kvflow_jax.engine.output_processor import OutputProcessor
from kvflow_jax.errors import StepFailedError
from kvflow_jax.requests.outputs import FinishReason
from tests.support.plain_request import make_request

NOW = 2.0


class Letters:
    """Decodes token ids to letters, each one token late."""

    pending = ""

    def push(self, tokens):
        text = self.pending + "".join(map(chr, tokens))
        self.pending = text[-1:]
        return text[:-1]

    def flush(self):
        return self.pending


@pytest.fixture
def scheduler():
    return Mock()


@pytest.fixture
def processor(scheduler):
    return OutputProcessor(Mock(), Mock(), Mock, lambda: scheduler)


@pytest.fixture
def add(processor):
    """Adds a request whose outputs are collected in its ``got``."""

    def add(request_id=0, **fields):
        request = make_request([1, 2, 3], request_id, detokenizer=Letters(), **fields)
        request.got = []
        request.on_output = request.got.append
        processor.requests[request_id] = request
        return request

    return add


def test_tokens_become_text_and_are_counted(processor, scheduler, add):
    request = add()
    processor.process(request, [ord("a"), ord("b")], (), NOW)
    (output,) = request.got
    assert (output.text, output.token_ids) == ("a", (ord("a"), ord("b")))
    assert not output.finish_reason
    assert (processor.num_generated, processor.num_prompt_done) == (2, 3)
    assert request.first_token_s == NOW
    scheduler.publish.assert_called_once_with(request, NOW)
    processor._controller.on_prefill_done.assert_called_once()
    processor.process(request, [ord("c")], (), NOW)
    assert (processor.num_generated, processor.num_prompt_done) == (3, 3)
    processor._controller.on_prefill_done.assert_called_once()


def test_tokens_behind_the_last_are_dropped(processor, scheduler, add):
    request = add(max_tokens=2)
    processor.process(request, [*b"abcd"], (), NOW)
    (output,) = request.got
    assert (output.text, output.token_ids) == ("ab", tuple(b"ab"))
    assert output.finish_reason is FinishReason.LENGTH
    assert processor.num_generated == 2
    assert not processor.requests
    assert processor.num_finished == {"length": 1}
    scheduler.remove.assert_called_once_with(request, NOW)


def test_a_request_ends_once_with_its_pending_text(processor, scheduler, add):
    request = add()
    processor.process(request, [ord("a")], (), NOW)
    for _ in range(2):
        processor.finish(request, FinishReason.ABORT, NOW)
    assert [output.text for output in request.got] == ["", "a"]
    assert request.got[-1].finish_reason is FinishReason.ABORT
    scheduler.remove.assert_called_once()
    processor._controller.on_request_finished.assert_called_once_with(request, NOW, is_done=False)


def test_a_callback_that_fails_aborts_its_request_alone(processor, add):
    bad, good = add(0), add(1)
    bad.on_output = Mock(side_effect=ValueError("injected"))
    for request in (bad, good):
        processor.process(request, [ord("a")], (), NOW)
    assert bad.finish_reason is FinishReason.ABORT
    assert list(processor.requests) == [1]


def test_text_that_cannot_be_read_is_an_error_of_the_request(processor, add):
    request = add()
    request.detokenizer.push = Mock(side_effect=ValueError("injected"))
    request.detokenizer.flush = Mock(side_effect=ValueError("injected"))
    processor.process(request, [ord("a")], (), NOW)
    (output,) = request.got
    assert output.finish_reason is FinishReason.ERROR
    assert isinstance(output.error, StepFailedError)


def test_the_last_output_is_delivered_though_blocks_cannot_be_released(processor, scheduler, add):
    request = add()
    scheduler.remove.side_effect = ValueError("an eviction policy failed")
    with pytest.raises(ValueError, match="policy"):
        processor.finish(request, FinishReason.STOP, NOW)
    assert request.got[-1].finish_reason is FinishReason.STOP


def test_hints_that_cannot_be_used_fail_nothing(processor, add):
    request = add()
    processor._controller.on_prefill_done.side_effect = ValueError("injected")
    processor._controller.on_request_finished.side_effect = ValueError("injected")
    processor.process(request, [ord("a")], (), NOW)
    processor.finish(request, FinishReason.STOP, NOW)
    assert request.got[-1].finish_reason is FinishReason.STOP
