from __future__ import annotations

import pytest

from kvflow_jax.models.rust_panics import panics_as_errors


class PanicException(BaseException):
    """As PyO3 makes it."""


def test_a_panic_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="panicked: out of range"), panics_as_errors():
        raise PanicException("out of range")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_others_are_what_they_are(kind: type[BaseException]) -> None:
    with pytest.raises(kind), panics_as_errors():
        raise kind
