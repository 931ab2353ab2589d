"""Converted weights kept in the user's cache folder, so that later starts only restore them.

    <cache>/models/<content>-v<FORMAT>-<dtype>/
        weights/ends, weights/layers.0, ...   an Orbax checkpoint each, written one after the other
        tokenizer/                            what goes with them
        complete.json                         size and digest of every file; written last

A kill leaves a stray folder, never a torn checkpoint: it is written beside and renamed.
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
from kvflow_jax.models.loading.checkpoint_reader import (
    COMPLETE_FILE,
    FORMAT,
    KeptWeights,
    TornCheckpointError,
    seal,
    sync,
    write_weights,
)
from kvflow_jax.models.loading.weights import WeightSource
from kvflow_jax.models.model import Model, Params

log = logging.getLogger(__name__)

LOCK_FILE = "writing.lock"  # held as long as a stray folder has a writer
STRAY_S = 24 * 3600.0  # age of one whose writer cannot be asked


def default_cache_dir() -> Path:
    """Where converted models are kept unless a caller says otherwise."""
    return Path.home() / ".cache" / "kvflow-jax"


@dataclass(frozen=True)
class CheckpointStore:
    """A folder of checkpoints, each keyed by what it was converted from."""

    cache_dir: Path

    def path(self, key: str, dtype: str) -> Path:
        return self.cache_dir / "models" / f"{key[:25]}-v{FORMAT}-{dtype}"

    def restore_or_convert(
        self,
        model: Model,
        key: str,
        convert: Callable[[], WeightSource],
        place: Callable[[WeightSource], Params],
        save_beside: Callable[[Path], None] = lambda folder: None,
        *,
        progress: bool = False,
    ) -> tuple[Params, Path | None]:
        """Weights where they are to lie, and the folder they are kept in, None where they are not.

        Args:
            key: names what they are converted from, by its content.
            convert: opens that.
            place: reads weights from what is kept, or from what it is converted from.
            save_beside: writes the files that go with them (the tokenizer) into a folder.

        Raises:
            ModelLoadError: what they are converted from does not fit the model.
        """
        path = self.path(key, model.dtype)
        if os.path.lexists(path):  # Path.exists raises where a folder may not be entered
            try:
                return place(KeptWeights(path, model)), path
            except TornCheckpointError as error:
                log.warning("unreadable, building it again: %s", error)
                _remove(path)
        source = convert()
        try:
            self._keep(path, model, source, save_beside, progress)
        except ModelLoadError:
            raise
        except Exception as error:  # the disk, in whatever words of orbax: the model runs without
            log.warning("converted weights are not kept: %s", error)
            return place(source), None
        try:
            return place(KeptWeights(path, model)), path
        except TornCheckpointError as error:  # the one before, if it could not be removed
            log.warning("converted weights are not kept: %s", error)
            return place(source), None

    def _keep(
        self,
        path: Path,
        model: Model,
        source: WeightSource,
        save_beside: Callable[[Path], None],
        progress: bool,
    ) -> None:
        folder = path.parent
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        specs = model.stacked_specs.values()
        needed = 2 * sum(spec.size * spec.dtype.itemsize for spec in specs)  # half is left free
        if shutil.disk_usage(folder).free < needed:
            raise OSError(f"{folder} has too little room")
        temporary = Path(tempfile.mkdtemp(prefix=f"{path.name}.tmp-", dir=folder))
        try:
            with _locked(temporary / LOCK_FILE):
                write_weights(temporary, model, source, progress=progress)
                save_beside(temporary)
            seal(temporary, model)
            try:
                os.rename(temporary, path)
                log.info("converted weights are kept as %s", path)
            except OSError as error:
                if not os.path.exists(path / COMPLETE_FILE):
                    raise
                log.info("%s is there already (%s)", path, error)
            sync(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A lock that ends with this process, however that ends."""
    with path.open("w") as file:
        with suppress(OSError):  # some network file systems have none: there age decides
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    path.unlink()


def _remove(path: Path) -> None:
    """As far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _sweep(folder: Path) -> None:
    """Remove what killed processes were writing."""
    for stray in folder.glob("*.tmp-*"):
        if _is_abandoned(stray):
            log.info("removing %s, which nobody writes any more", stray)
            shutil.rmtree(stray, ignore_errors=True)


def _is_abandoned(stray: Path) -> bool:
    with suppress(OSError):  # it holds no lock, or was renamed or removed meanwhile
        with (stray / LOCK_FILE).open() as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False
    with suppress(OSError):
        return time.time() - stray.stat().st_mtime > STRAY_S
    return False
