"""A request as the control room sees it, without an engine."""

import numpy as np

from kvflow_jax.cache.index import RootKey
from kvflow_jax.requests.request import Request
from kvflow_jax.requests.sampling_params import SamplingParams


def bare_request(prompt, *, fairness_key="", hints=None, **params):
    return Request(
        0,
        np.array(prompt, np.int32),
        SamplingParams(**params),
        lambda output: None,
        root=RootKey("model"),
        priority=0,
        arrival_s=0.0,
        max_len=100,
        stop_ids=frozenset(),
        seed=(0, 0),
        detokenizer=None,
        fairness_key=fairness_key,
        hints=hints,
    )
