"""Samples of a page of metrics."""

from experiments.bench.metrics_page import samples

PAGE = """# HELP kvflow:tenant_state_bytes Bytes.
# TYPE kvflow:tenant_state_bytes gauge
kvflow:tenant_state_bytes{engine="0",state="runs"} 938098.0
kvflow:tenant_state_bytes{engine="0",state="grammars"} 2.1e+07
kvflow:tenant_state_bytes_other{engine="0"} 3.0
"""


def test_samples_are_those_of_the_name_with_their_labels():
    assert samples(PAGE, "kvflow:tenant_state_bytes") == [
        ({"engine": "0", "state": "runs"}, 938098.0),
        ({"engine": "0", "state": "grammars"}, 2.1e7),
    ]


def test_a_metric_that_the_page_lacks_has_no_samples():
    assert samples(PAGE, "kvflow:tenant_state") == []
