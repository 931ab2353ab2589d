"""Traces that tests write."""

import json

import pytest

from experiments.workloads.readers import read_trace

VOCAB = 1000


@pytest.fixture
def read(tmp_path):
    """Reads a trace of these lines, given as objects or as text; returns its runs."""

    def call(*lines):
        path = tmp_path / "trace.jsonl"
        path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
        return read_trace(path, VOCAB).runs

    return call
