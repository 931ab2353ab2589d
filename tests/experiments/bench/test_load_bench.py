"""``experiments.load_bench`` with processes that are not started."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.bench import load_bench
from experiments.make_folder import write_folder
from kvflow_jax.models.loading import builder, load

GIB = 1 << 30


@pytest.fixture
def processes(monkeypatch):
    """Replaces measured processes: a first load takes 6 s, later ones 2 s."""
    started = []

    def run(command, **options):
        what = json.loads(command[-1])
        started.append((what, options["env"].get("XLA_FLAGS", "")))
        if what["do"] == "keep":
            write_folder(load_bench.Path(what["kept"]))
        figures = {"seconds": 6.0 if len(started) == 1 else 2.0, "peak_bytes": GIB}
        return SimpleNamespace(stdout=f"log\n{json.dumps(figures)}\n")

    monkeypatch.setattr(load_bench, "subprocess", SimpleNamespace(run=run, PIPE=-1))
    return started


def test_a_quick_benchmark_loads_a_tiny_model(command, processes, tmp_path):
    path = tmp_path / "out.json"
    assert command(load_bench, "--quick", "--json", path)[0] == 0
    figures = json.loads(path.read_text())
    assert figures["restore_speedup"] == 3.0
    assert figures["load_peak_ratio"] == 0.0  # the peak is that of the imports
    (case,) = figures["folders"]
    assert case["num_devices"] == 2
    assert case["kept_speedup_cold"] == 1.0
    assert [what["do"] for what, _ in processes[-5:]] == ["keep", *["load", "restore"] * 2]
    assert "device_count=2" in processes[-1][1]


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Runs a measured process's work here, over loading that takes no time."""
    weights = {"w": np.arange(6, dtype=np.float32)}
    monkeypatch.setattr(load_bench, "native_ops", lambda *_: None)
    monkeypatch.setattr(load_bench, "load_model", lambda *_, **__: SimpleNamespace(params=weights))
    return lambda do, **more: load_bench._child(do, "model", str(tmp_path / "cache"), **more)


def test_a_process_measures_its_load_and_its_memory(child):
    loaded = child("load")
    assert loaded["seconds"] >= 0
    assert loaded["peak_bytes"] > 1 << 20


def test_kept_weights_are_an_orbax_checkpoint(child, tmp_path):
    child("keep", kept=str(tmp_path / "kept"))
    with load_bench.checkpointer() as orbax:
        kept = orbax.restore(tmp_path / "kept")
    np.testing.assert_array_equal(kept["w"], np.arange(6))


def test_a_process_prints_its_figures(monkeypatch, capsys):
    monkeypatch.setattr(load_bench, "_child", lambda do: {"seconds": 1.0, "do": do})
    monkeypatch.setattr("sys.argv", ["load_bench", "--child", '{"do": "import"}'])
    assert load_bench.main() == 0
    assert json.loads(capsys.readouterr().out) == {"seconds": 1.0, "do": "import"}


def test_restored_weights_are_those_that_a_load_gives(monkeypatch, tmp_path):
    monkeypatch.setattr(load_bench, "native_ops", lambda *_: None)
    monkeypatch.setattr(builder, "native_ops", lambda *_, **__: None)
    # A sharded load over the one device of this process.
    of_devices = load.Shards.of_devices
    monkeypatch.setattr(load.Shards, "of_devices", lambda num_devices: of_devices(1))
    folder, kept = write_folder(tmp_path / "model"), tmp_path / "kept"
    for num_devices in (1, 2):
        loaded = load.load_model(
            str(folder),
            dtype="float32",
            cache_dir=tmp_path,
            tensor_parallel=num_devices,
            progress=False,
        )
        load_bench._keep(loaded.params, kept / str(num_devices))
        restored = load_bench._restore(
            folder, kept / str(num_devices), "float32", num_devices, tmp_path
        )
        assert restored.keys() == loaded.params.keys()
        for name, weight in loaded.params.items():
            np.testing.assert_array_equal(restored[name], weight)
