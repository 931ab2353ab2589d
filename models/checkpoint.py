"""Converted weights kept in the user's cache folder, so that later starts only restore them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kvflow_jax.models.model import Model

log = logging.getLogger(__name__)

FORMAT = 3  # raise it when names, shapes or meaning of stacked weights change
CHUNK_BYTES = 16 << 20  # chunks are read in parallel
COMPLETE_FILE = "complete.json"  # written last, holds what a restore must find


def default_cache_dir() -> Path:
    """Where converted models are kept unless a caller says otherwise."""
    return Path.home() / ".cache" / "kvflow-jax"


@dataclass(frozen=True)
class CheckpointStore:
    """A folder of checkpoints, each keyed by what it was converted from."""

    cache_dir: Path

    def path(self, key: str, dtype: str) -> Path:
        return self.cache_dir / "models" / f"{key[:25]}-v{FORMAT}-{dtype}"

    def restore_or_build(
        self,
        model: Model,
        key: str,
        build: Callable[[], dict[str, np.ndarray]],
        save_beside: Callable[[Path], None] = lambda folder: None,
    ) -> tuple[dict[str, np.ndarray], Path]:
        """Stacked weights and the checkpoint's folder; builds and keeps them if need be.

        Args:
            key: names what it was converted from, by its content.
            build: reads and converts the weights.
            save_beside: writes the files that go with them (the tokenizer) into a folder.
        """
        path = self.path(key, model.dtype)
        if path.exists():
            try:
                return _restore(path, model), path
            except Exception as error:  # orbax, tensorstore and zarr each raise their own
                log.warning("checkpoint %s is unreadable, building it again: %r", path, error)
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        weights = build()
        needed = 2 * sum(weight.nbytes for weight in weights.values())  # and as much is left free
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < needed:
                raise OSError(f"{path.parent} has too little room")
            _save(path, weights, save_beside)
            log.info("converted weights are kept as %s", path)
        except Exception as error:  # the disk, in whatever words of orbax: the model runs without
            log.warning("converted weights are not kept: %s", error)
        return weights, path


def _save(
    path: Path, weights: Mapping[str, np.ndarray], save_beside: Callable[[Path], None]
) -> None:
    """Write beside ``path``, then rename: a kill leaves a stray folder, never a torn checkpoint."""
    import orbax.checkpoint as ocp

    temporary = Path(tempfile.mkdtemp(prefix=f"{path.name}.tmp-", dir=path.parent))
    try:
        with checkpointer() as orbax:
            chunked = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in weights}
            orbax.save(
                temporary / "weights", args=ocp.args.PyTreeSave(dict(weights), save_args=chunked)
            )
        save_beside(temporary)
        complete = {"weights": _signature(weights), "files": _file_sizes(temporary)}
        (temporary / COMPLETE_FILE).write_text(json.dumps(complete))
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.exists():
                raise
            log.info("another process wrote %s meanwhile", path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _restore(path: Path, model: Model) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    expected = _signature(model.stacked_specs)
    complete = json.loads((path / COMPLETE_FILE).read_text())
    if complete["weights"] != expected:
        raise ValueError(f"expected {expected}, found {complete['weights']}")
    if complete["files"] != (found := _file_sizes(path)):
        torn = {name for name, _ in complete["files"].items() ^ found.items()}
        raise ValueError(f"missing or of the wrong size: {', '.join(sorted(torn))}")
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in expected}
    with checkpointer() as orbax:
        weights: dict[str, np.ndarray] = orbax.restore(
            path / "weights", args=ocp.args.PyTreeRestore(restore_args=as_numpy)
        )
    if _signature(weights) != expected:
        raise ValueError(f"expected {expected}, found {_signature(weights)}")
    return weights


def _signature(weights: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{w.dtype}{list(w.shape)}" for name, w in sorted(weights.items())}


def _file_sizes(path: Path) -> dict[str, int]:
    """Bytes of every file: what a torn checkpoint cannot match, found before orbax reads it."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != COMPLETE_FILE)
    return {str(file.relative_to(path)): file.stat().st_size for file in files}


def checkpointer() -> Any:
    """Orbax, set to how checkpoints are written and read."""
    import orbax.checkpoint as ocp

    # Processes that share a model keep a checkpoint each, by themselves: they may start with
    # another's, or on a machine that has none.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process-{jax.process_index()}",
    )
    # One process, few large arrays: plain files restore faster than the OCDBT store, and packing
    # float32 weights takes ten times as long as writing them.
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_compression=False, multiprocessing_options=alone
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
