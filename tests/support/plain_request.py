"""A request without an engine."""

from dataclasses import fields

from kvflow_jax.cache.index import RootKey
from kvflow_jax.requests.request import Request
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams

_SPEC_FIELDS = {field.name for field in fields(RequestSpec)}


def make_request(
    prompt, request_id=0, *, detokenizer=None, stop_strings=None, stop_ids=(), **rest
) -> Request:
    """Return a request; ``rest`` are fields of RequestSpec (hints, ...) or SamplingParams."""
    of_spec = {name: value for name, value in rest.items() if name in _SPEC_FIELDS}
    params = {name: value for name, value in rest.items() if name not in _SPEC_FIELDS}
    spec = RequestSpec(list(prompt), SamplingParams(**{"max_tokens": 16, **params}), **of_spec)
    assert spec.params.max_tokens is not None
    return Request(
        spec,
        lambda output: None,
        request_id=request_id,
        arrival_s=0.0,
        root=RootKey("model", spec.salt, spec.cache_tenant),
        max_len=len(spec.prompt_ids) + spec.params.max_tokens,
        stop_ids=frozenset(stop_ids) | frozenset(spec.params.stop_token_ids),
        seed=(0, 0),
        detokenizer=detokenizer,
        stop_strings=stop_strings,
    )
