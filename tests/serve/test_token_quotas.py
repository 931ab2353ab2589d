from __future__ import annotations

import pytest

from kvflow_jax.serve import token_quotas
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.token_quotas import TokenQuotas


def test_a_quota_that_is_used_up_says_when_it_is_filled_again() -> None:
    quotas = TokenQuotas()
    quotas.check("a", 60, 0.0)
    quotas.use("a", 60, 59, 0.0)
    quotas.check("a", 60, 0.0)  # one token is left
    quotas.use("a", 60, 11, 0.0)
    with pytest.raises(ApiError) as error:
        quotas.check("a", 60, 2.0)
    assert error.value.status == 429
    assert error.value.headers is not None
    retry_after_s = int(error.value.headers["Retry-After"])
    with pytest.raises(ApiError):
        quotas.check("a", 60, 2.0 + retry_after_s - 1)
    quotas.check("a", 60, 2.0 + retry_after_s)


def test_a_bucket_holds_the_tokens_of_a_minute() -> None:
    quotas = TokenQuotas()
    quotas.use("a", 60, 1, 0.0)
    quotas.use("a", 60, 60, 10_000.0)
    with pytest.raises(ApiError):
        quotas.check("a", 60, 10_000.0)


def test_tenants_without_a_quota_are_not_counted() -> None:
    quotas = TokenQuotas()
    quotas.use("a", None, 1_000_000, 0.0)
    quotas.check("a", None, 0.0)
    quotas.check("a", 60, 0.0)
    quotas.use("b", 60, 1_000, 0.0)
    quotas.check("a", 60, 0.0)


def test_the_number_of_buckets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_quotas, "MAX_BUCKETS", 2)
    quotas = TokenQuotas()
    for tenant in "abc":
        quotas.use(tenant, 60, 1_000, 0.0)
    quotas.check("a", 60, 0.0)
    with pytest.raises(ApiError):
        quotas.check("c", 60, 0.0)
