"""A request without an engine."""

import numpy as np

from kvflow_jax.cache.index import RootKey
from kvflow_jax.requests.request import Request
from kvflow_jax.requests.sampling_params import SamplingParams


def make_request(
    prompt, request_id=0, *, salt="", priority=0, detokenizer=None, stop_strings=None, **rest
) -> Request:
    """Return a request; ``rest`` are fields of Request (stop_ids, hints, ...) or SamplingParams."""
    prompt = np.asarray(list(prompt), np.int32)
    fields = {name: rest.pop(name) for name in ("hints", "fairness_key") if name in rest}
    stop_ids = frozenset(rest.pop("stop_ids", ()))
    params = SamplingParams(**{"max_tokens": 16, **rest})
    assert params.max_tokens is not None
    return Request(
        request_id,
        prompt,
        params,
        lambda output: None,
        root=RootKey("model", salt),
        priority=priority,
        arrival_s=0.0,
        max_len=len(prompt) + params.max_tokens,
        stop_ids=stop_ids | frozenset(params.stop_token_ids),
        seed=(0, 0),
        detokenizer=detokenizer,
        stop_strings=stop_strings,
        **fields,
    )
