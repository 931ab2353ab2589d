"""A request as the control room sees it, without an engine."""

from kvflow_jax.cache.index import RootKey
from kvflow_jax.requests.request import Request
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams


def bare_request(
    prompt, *, request_id=0, tenant="", hints=None, num_system=None, choice=0, max_len=100, **params
):
    return Request(
        RequestSpec(
            prompt,
            SamplingParams(**params),
            tenant=tenant,
            hints=hints,
            num_system=num_system,
            choice=choice,
        ),
        lambda output: None,
        request_id=request_id,
        arrival_s=0.0,
        root=RootKey("model"),
        max_len=max_len,
        stop_ids=frozenset(),
        seed=(0, 0),
        detokenizer=None,
    )
