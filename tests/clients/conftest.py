"""The scripted server that ``python -m tests.clients`` has started."""

from __future__ import annotations

import os

import pytest

MODEL = "scripted"


@pytest.fixture(scope="session")
def base_url() -> str:
    return os.environ["KVFLOW_URL"] + "/v1"
