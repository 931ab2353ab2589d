"""Start-up: what is measured decides the sizes, of one process and of several."""

import logging
import os
from dataclasses import astuple
from types import SimpleNamespace

import jax
import pytest

from kvflow_jax.api import launch
from kvflow_jax.api.launch import build_engine, prepare, run_follower, use_compilation_cache
from kvflow_jax.api.load_config import LoadConfig
from kvflow_jax.cache.transfer import DeviceTransfers, Direction
from kvflow_jax.distributed.leader import LeaderRunner
from kvflow_jax.distributed.transfers import LeaderTransfers
from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.sizes import GIB
from kvflow_jax.engine.trace import ChromeTrace
from kvflow_jax.errors import CapacityError, ConfigError
from kvflow_jax.models.loading.load import LoadedModel
from kvflow_jax.models.memory import FreeMemory
from kvflow_jax.models.model import Model
from kvflow_jax.runtime.interfaces import NoTransfers
from tests.models.tiny import write_folder
from tests.support.tiny_engine import CONFIG

RATES = {Direction.LOAD: 8e9, Direction.OFFLOAD: 4e9}
SIZES = {"num_pages": 40, "max_num_seqs": 2}


class FakeRunner:
    """A runner whose programs are ready."""

    def __init__(self, model, params, pool, shapes, *, extent_sizes, shards):
        self.shapes, self.extent_sizes = shapes, extent_sizes
        self.block_sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        self.num_warmed = 0

    def warm_up(self, track):
        self.num_warmed = len(list(track(self.shapes.shapes)))

    def longest_step_s(self):
        return 0.5

    def prefill_s_per_token(self):
        return 1e-3


class FakeGroup:
    """A group of two, whose other process contributes ``others`` to the gathers.

    After these it contributes the same values as this process.
    """

    def __init__(self, *others):
        self.others = list(others)
        self.gathered = []

    def gather(self, value):
        self.gathered.append(value)
        other = self.others.pop(0) if self.others else None
        return [value, value if other is None else other]


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(launch, "ModelRunner", FakeRunner)
    monkeypatch.setattr(launch, "measure_bandwidth", lambda sharding, num_bytes: dict(RATES))


@pytest.fixture(scope="module")
def loaded():
    params = {"embed": jax.numpy.zeros((CONFIG.vocab_size, 2))}
    return LoadedModel(Model.build(CONFIG), params, None, "tiny", "1")


def config(mode="hicache", link_ratio=None, **kwargs):
    return EngineConfig(cache=CacheConfig(mode, link_ratio=link_ratio), **SIZES, **kwargs)


def test_a_runner_is_warm_and_moves_extents_at_the_measured_rates(loaded, caplog):
    with caplog.at_level(logging.INFO, "kvflow_jax"):
        prepared = prepare(loaded, config(), progress=False)
    assert prepared.runner.num_warmed == len(prepared.sizes.shapes.shapes)
    assert prepared.runner.extent_sizes == prepared.sizes.cache.extent_sizes
    assert (prepared.bandwidth, prepared.pace_s_per_byte) == (RATES, 0.0)
    assert "host link: load 8 GB/s, offload 4 GB/s" in caplog.text


def test_without_a_host_tier_nothing_is_measured(loaded, monkeypatch):
    monkeypatch.delattr(launch, "measure_bandwidth")
    prepared = prepare(loaded, config("gpu-only"), progress=False)
    assert prepared.bandwidth is None
    assert prepared.runner.extent_sizes == ()


def test_a_device_without_pinned_memory_has_no_host_tier(loaded, monkeypatch, caplog):
    def fail(sharding, num_bytes):
        raise NotImplementedError("no pinned_host memory")

    monkeypatch.setattr(launch, "measure_bandwidth", fail)
    prepared = prepare(loaded, config("kvflow"), progress=False)
    assert prepared.sizes.cache.num_host_blocks == 0
    assert not prepared.sizes.cache.prefetches
    assert "no host tier: no pinned_host memory" in caplog.text


def test_an_emulated_link_takes_a_multiple_of_prefill(loaded):
    prepared = prepare(loaded, config(link_ratio=0.5), progress=False)
    token_bytes = 2 * 2 * 2 * 12 * 4  # layers, K and V, KV heads, head_dim, float32
    assert launch.token_bytes(prepared.sizes) == token_bytes
    assert prepared.pace_s_per_byte == pytest.approx(0.5 * 1e-3 / token_bytes)


def test_processes_choose_sizes_for_the_smallest_and_slowest(loaded):
    small = FreeMemory(None, GIB // 100)
    group = FakeGroup(None, [*astuple(small)], [1e9, 9e9])
    alone = prepare(loaded, EngineConfig(max_num_seqs=2), progress=False)
    prepared = prepare(loaded, EngineConfig(max_num_seqs=2), progress=False, group=group)
    assert prepared.sizes.pool.num_pages < alone.sizes.pool.num_pages
    assert prepared.bandwidth == {Direction.LOAD: 1e9, Direction.OFFLOAD: 4e9}
    properties, _, rates = group.gathered
    assert properties["weights"] == "1"
    assert rates == [8e9, 4e9]


def test_a_default_pool_has_the_size_of_the_last_start(loaded, tmp_path, monkeypatch, caplog):
    def num_pages(free_gib, **given):
        free = FreeMemory(None, int(free_gib * GIB))
        monkeypatch.setattr(FreeMemory, "measure", lambda device: free)
        config = EngineConfig(max_num_seqs=2, **given)
        return prepare(loaded, config, progress=False, cache_dir=tmp_path).sizes.pool.num_pages

    first = num_pages(12)
    assert "size of the last start" not in caplog.text
    with caplog.at_level(logging.INFO, "kvflow_jax"):
        assert num_pages(11) == num_pages(13.5) == first
    assert "size of the last start" in caplog.text
    assert num_pages(12, num_pages=40) == 41
    assert num_pages(11) == first  # a given size is not remembered
    assert num_pages(5) < first


def test_one_process_without_a_link_leaves_all_without_a_host_tier():
    assert launch._slowest([[8e9, 4e9], None]) is None


@pytest.mark.parametrize(
    ("mode", "kind"), [("gpu-only", NoTransfers), ("hicache", DeviceTransfers)]
)
def test_an_engine_has_transfers_if_it_has_a_host_tier(loaded, mode, kind):
    engine = build_engine(loaded, config(mode), progress=False)
    assert isinstance(engine.transfers, kind)
    assert engine.sizes.max_model_len == CONFIG.max_model_len
    assert engine.runner.num_warmed
    assert engine.longest_step_s == 0.5
    engine.transfers.close()


def test_an_engine_of_several_processes_acts_through_its_group(loaded):
    class FakeLeader(FakeGroup):
        def on_lost(self, callback): ...

        def close(self): ...

    engine = build_engine(loaded, config(), progress=False, leader=FakeLeader())
    assert isinstance(engine.runner, LeaderRunner)
    assert isinstance(engine.transfers, LeaderTransfers)
    assert engine.transfers.bytes_per_s == RATES
    engine.transfers.close()


def test_a_trace_is_written_if_it_is_configured(loaded, tmp_path):
    engine = build_engine(loaded, config("gpu-only", trace=tmp_path / "trace.json"), progress=False)
    assert isinstance(engine.tracer, ChromeTrace)
    engine.tracer.close()


def test_a_follower_replays_until_the_leader_closes(loaded):
    class ClosedFollower(FakeGroup):
        is_replayed = False

        def messages(self):
            self.is_replayed = True
            return iter(())

    follower = ClosedFollower()
    run_follower(loaded, config(), follower)
    assert follower.is_replayed


@pytest.mark.parametrize(
    ("engine", "error", "message"),
    [
        (EngineConfig(max_model_len=10**6), ConfigError, "exceeds the model's context"),
        (EngineConfig(pool_gib=1e6), CapacityError, "--pool-gib"),
        (EngineConfig(pool_gib=1e-3, max_model_len=8192), CapacityError, "one request"),
        (EngineConfig(cache=CacheConfig(host_cache_gib=1e6)), CapacityError, "--host-cache-gib"),
    ],
)
def test_sizes_are_checked_before_weights_are_read(monkeypatch, tmp_path, engine, error, message):
    monkeypatch.setattr("kvflow_jax.models.loading.load.random_params", pytest.fail)
    monkeypatch.setattr(launch, "use_compilation_cache", lambda folder: None)
    load_config = LoadConfig("qwen3-0.6b", random_weights=True, cache_dir=tmp_path)
    with pytest.raises(error, match=message):
        launch.load(load_config, engine)


def test_a_start_trims_the_cache_folder_and_keeps_what_it_used(tmp_path, caplog):
    (tmp_path / "xla").mkdir()
    (tmp_path / "xla" / "old-cache").write_bytes(bytes(1000))
    os.utime(tmp_path / "xla" / "old-cache", (1, 1))
    start = LoadConfig("tiny", cache_dir=tmp_path, cache_dir_gib=1e-9)
    with caplog.at_level(logging.INFO, "kvflow_jax"), launch.cache_of_start(start):
        with launch.cache_of_start(start):  # another process, which is ready first
            (tmp_path / "xla" / "new-cache").write_bytes(bytes(1000))
        assert (tmp_path / "xla" / "old-cache").exists()
    assert [path.name for path in (tmp_path / "xla").iterdir()] == ["new-cache"]
    assert "removed 1 entries" in caplog.text


def test_a_start_that_fails_removes_nothing(tmp_path):
    (tmp_path / "xla").mkdir()
    (tmp_path / "xla" / "old-cache").write_bytes(bytes(1000))
    start = LoadConfig("tiny", cache_dir=tmp_path, cache_dir_gib=1e-9)
    with pytest.raises(ConfigError), launch.cache_of_start(start):
        raise ConfigError("wrong")
    assert (tmp_path / "xla" / "old-cache").exists()


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no backend 'cuda'")])
def test_a_platform_without_devices_is_an_error_with_the_remedy(monkeypatch, error):
    def fail():
        raise error

    values = {"jax_platforms": "cuda"}
    fake = SimpleNamespace(config=SimpleNamespace(values=values), devices=fail)
    monkeypatch.setattr(launch, "jax", fake)
    with pytest.raises(ConfigError, match=f"JAX_PLATFORMS=cuda.*{error}.*unset JAX_PLATFORMS"):
        launch.load(LoadConfig(), EngineConfig())


@pytest.mark.parametrize("folder", [None, "/elsewhere"])
def test_a_compilation_cache_that_the_user_has_set_stays(monkeypatch, tmp_path, folder):
    values = {"jax_compilation_cache_dir": folder}
    config = SimpleNamespace(values=values, update=values.__setitem__)
    monkeypatch.setattr(launch, "jax", SimpleNamespace(config=config))
    use_compilation_cache(tmp_path)
    assert values["jax_compilation_cache_dir"] == (folder or str(tmp_path / "xla"))
    assert values["jax_persistent_cache_min_compile_time_secs"] == 0


def test_programs_that_another_user_may_have_written_are_not_run(monkeypatch, tmp_path, caplog):
    values = {"jax_compilation_cache_dir": None}
    config = SimpleNamespace(values=values, update=values.__setitem__)
    monkeypatch.setattr(launch, "jax", SimpleNamespace(config=config))
    folder = tmp_path / "xla"
    folder.mkdir()
    folder.chmod(0o777)
    use_compilation_cache(tmp_path)
    assert values["jax_compilation_cache_dir"] is None
    (line,) = caplog.messages
    assert f"remove {folder}" in line
    folder.rmdir()
    use_compilation_cache(tmp_path)
    assert values["jax_compilation_cache_dir"] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_cache_folder_that_cannot_be_made_is_no_error(monkeypatch, tmp_path, caplog):
    values = {"jax_compilation_cache_dir": None}
    config = SimpleNamespace(values=values, update=values.__setitem__)
    monkeypatch.setattr(launch, "jax", SimpleNamespace(config=config))
    (tmp_path / "file").touch()
    use_compilation_cache(tmp_path / "file")
    assert values["jax_compilation_cache_dir"] is None
    assert "programs are not kept" in caplog.text


@pytest.mark.parametrize("prepares", [False, True])
def test_grammars_are_prepared_if_the_caller_asks_for_it(loaded, monkeypatch, prepares):
    prepared = []
    monkeypatch.setattr(Engine, "prepare_grammars", lambda engine: prepared.append(engine))
    engine = build_engine(loaded, config("gpu-only"), progress=False, prepares_grammars=prepares)
    assert prepared == [engine] * prepares
    engine.transfers.close()


def test_a_chat_template_of_ones_own_is_used(tmp_path):
    model, template = tmp_path / "model", tmp_path / "t.jinja"
    write_folder(model)
    template.write_text("{{ messages[0].content }}!")
    config = LoadConfig(str(model), chat_template=template, cache_dir=tmp_path)
    loaded = launch.load(config, EngineConfig(max_model_len=32, **SIZES), progress=False)
    chat = [{"role": "user", "content": "the"}]
    assert loaded.tokenizer.decode(loaded.tokenizer.apply_chat_template(chat)) == "the!"


def test_a_chat_template_of_a_model_without_a_tokenizer_is_refused(tmp_path):
    model, template = tmp_path / "model", tmp_path / "t.jinja"
    write_folder(model, tokenizer=False)
    template.write_text("{{ messages[0].content }}!")
    config = LoadConfig(str(model), chat_template=template, cache_dir=tmp_path, random_weights=True)
    with pytest.raises(ConfigError, match="a chat template needs a tokenizer"):
        launch.load(config, EngineConfig(max_model_len=32, **SIZES), progress=False)
