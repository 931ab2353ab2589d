"""A cache of converted weights in the user's cache folder: convert once, restore on later starts.

    <cache>/models/<content>-v<FORMAT>-<form>/
        weights/ends, weights/layers.0, ...   one Orbax checkpoint each, written in turn
        tokenizer/                            extra files of the model
        complete.json                         manifest: size and digest of each file; written last

A checkpoint is written to a temporary folder and renamed: a killed process leaves a stale temporary
folder, never a torn checkpoint.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading.cache_folder import mark_used
from kvflow_jax.models.loading.checkpoint_reader import (
    FORMAT,
    MANIFEST_FILE,
    CheckpointWeights,
    UnusableCheckpointError,
    fsync,
    num_bytes,
    write_manifest,
    write_weights,
)
from kvflow_jax.models.loading.weights import WeightSource
from kvflow_jax.models.model import Model, Params

log = logging.getLogger(__name__)

# Locked by the writer of a temporary folder for as long as that process lives.
LOCK_FILE = "writing.lock"
# A temporary folder without a lock file is stale at this age.
STALE_AFTER_S = 24 * 3600.0


@dataclass(frozen=True)
class CheckpointStore:
    """A folder of converted checkpoints, keyed by the content that they were converted from."""

    cache_dir: Path

    def path(self, key: str, form: str) -> Path:
        """Return the folder of a checkpoint; it need not exist.

        Args:
            form: of its weights, as ``Model.weights_form`` names it.
        """
        return self.cache_dir / "models" / f"{key[:25]}-v{FORMAT}-{form}"

    def restore_or_convert(
        self,
        model: Model,
        key: str,
        convert: Callable[[], WeightSource],
        place: Callable[[WeightSource], Params],
        save_extras: Callable[[Path], object] = lambda folder: None,
        *,
        progress: bool = False,
    ) -> tuple[Params, Path | None]:
        """Restore a model's weights from the cache, or convert and cache them first.

        An unusable checkpoint is converted again. If nothing can be cached (disk full, folder not
        writable), the original files are loaded directly and a warning is logged.

        Args:
            key: digest of the original files.
            convert: opens the original files.
            place: reads a source onto the devices.
            save_extras: writes further files of the model (its tokenizer) into the checkpoint.

        Returns:
            The weights on their devices, and the checkpoint's folder, None if it is not cached.

        Raises:
            ModelLoadError: the original files do not fit the model.
        """
        path = self.path(key, model.weights_form)
        # Path.exists raises for a folder without search permission.
        if os.path.lexists(path):
            try:
                params = place(CheckpointWeights(path, model))
                mark_used(path)
                return params, path
            except UnusableCheckpointError as error:
                log.warning("cannot use a cached checkpoint, converting again: %s", error)
                _remove(path)
        source = convert()
        try:
            self._write(path, model, source, save_extras, progress)
        except ModelLoadError:
            raise
        # Orbax raises errors of many kinds for a full or read-only disk: run uncached.
        except Exception as error:
            log.warning("converted weights are not cached: %s", error)
            return place(source), None
        try:
            return place(CheckpointWeights(path, model)), path
        # The unusable checkpoint could not be removed, so the new one did not replace it.
        except UnusableCheckpointError as error:
            log.warning("converted weights are not cached: %s", error)
            return place(source), None

    def _write(
        self,
        path: Path,
        model: Model,
        source: WeightSource,
        save_extras: Callable[[Path], object],
        progress: bool,
    ) -> None:
        folder = path.parent
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        # Half of the free space stays free.
        needed = 2 * num_bytes(model)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(
                f"{folder} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are needed; "
                "free disk space or choose another cache folder"
            )
        temporary = Path(tempfile.mkdtemp(prefix=f"{path.name}.tmp-", dir=folder))
        try:
            with _locked(temporary / LOCK_FILE):
                write_weights(temporary, model, source, progress=progress)
                save_extras(temporary)
            write_manifest(temporary, model)
            try:
                os.rename(temporary, path)
                log.info("cached converted weights in %s", path)
            except OSError as error:
                if not os.path.exists(path / MANIFEST_FILE):
                    raise
                log.info("%s exists already (%s)", path, error)
            fsync(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock, which the operating system releases when this process dies."""
    with path.open("w") as file:
        # Some network file systems have no locks; there the age of the folder decides.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    path.unlink()


def _remove(path: Path) -> None:
    """Remove a folder, file or link, and ignore what cannot be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _remove_stale(folder: Path) -> None:
    """Remove the temporary folders of killed processes."""
    for temporary in folder.glob("*.tmp-*"):
        if _is_stale(temporary):
            log.info("removing stale temporary folder %s", temporary)
            shutil.rmtree(temporary, ignore_errors=True)


def _is_stale(temporary: Path) -> bool:
    # OSError: the folder has no lock file, or was renamed or removed meanwhile.
    with suppress(OSError):
        with (temporary / LOCK_FILE).open() as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False
    with suppress(OSError):
        return time.time() - temporary.stat().st_mtime > STALE_AFTER_S
    return False
