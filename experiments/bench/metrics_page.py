"""The server's page of metrics, read with Prometheus's own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def samples(page: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Return (labels, value) of each sample of a metric.

    Args:
        page: the text of ``GET /metrics``.
        name: of the samples: a counter's ends in ``_total``.
    """
    return [
        (dict(sample.labels), sample.value)
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    ]
