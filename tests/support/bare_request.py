"""A request as the control room sees it, without an engine."""

from kvflow_jax.cache.index import RootKey
from kvflow_jax.requests.request import Request
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams


def bare_request(prompt, *, tenant="", hints=None, **params):
    return Request(
        RequestSpec(prompt, SamplingParams(**params), tenant=tenant, hints=hints),
        lambda output: None,
        request_id=0,
        arrival_s=0.0,
        root=RootKey("model"),
        max_len=100,
        stop_ids=frozenset(),
        seed=(0, 0),
        detokenizer=None,
    )
