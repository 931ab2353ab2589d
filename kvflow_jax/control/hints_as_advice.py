"""Hints are advice: an error in them never fails a request."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from kvflow_jax.requests.request import Request

log = logging.getLogger(__name__)


@contextmanager
def hints_as_advice(request: Request) -> Iterator[None]:
    """Log an error of the context, in which the hints of a request are used."""
    try:
        yield
    except Exception:
        log.exception("the hints of request %d could not be used", request.id)
