"""The predictor that learns nothing."""

from kvflow_jax.reuse.no_predictor import NoPredictor


def test_it_forecasts_nothing():
    predictor = NoPredictor()
    for _ in range(50):
        predictor.observe(["a"], "b", 1.0)
    assert predictor.forecast(["a"]) == {}
    assert predictor.next_calls(["a"]) == {}
    assert predictor.expects(["a"]) is None
    assert predictor.transitions(10) == []
    predictor.forget("a")
    assert (predictor.num_agents, predictor.num_bytes) == (0, 0)
    assert NoPredictor.from_rows(predictor.rows()).forecast(["a"]) == {}
