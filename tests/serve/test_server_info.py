from __future__ import annotations

import httpx

from kvflow_jax import __version__
from kvflow_jax.engine.config import EngineConfig
from tests.serve.serve_fakes import FakeEngine, live_server
from tests.serve.serve_requests import error_of


def test_the_configuration_is_shown_without_keys(http: httpx.Client, engine: FakeEngine) -> None:
    info = http.get("/server_info").json()
    assert info["version"] == __version__
    assert info["served_model_names"] == ["tiny"]
    assert info["max_model_len"] == engine.max_model_len
    assert info["num_device_blocks"] == engine.stats.num_blocks
    assert info["settings"]["model"] == "tiny-dir"
    assert info["settings"]["max_body_mib"] == 0.25
    engine_config = EngineConfig(speculative_config={"num_speculative_tokens": 4})
    with (
        live_server(api_keys=("sesame",), engine=engine_config) as live,
        httpx.Client(base_url=live.url) as other,
    ):
        assert error_of(other.get("/server_info"), 401)
        answer = other.get("/server_info", headers={"x-api-key": "sesame"})
        assert answer.json()["settings"]["page_size"]
        assert answer.json()["settings"]["speculative_config"]["num_speculative_tokens"] == 4
        assert "sesame" not in answer.text


def test_the_load_is_that_of_open_requests(http: httpx.Client) -> None:
    assert http.get("/load").json() == {"server_load": 0}
