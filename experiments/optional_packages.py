"""Commands that need packages of an extra of pyproject.toml, which may be missing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

EXTRAS = {
    "httpx": "test",
    "jsonschema": "test",
    "matplotlib": "viz",
    "prometheus_client": "serve",
    "fastapi": "serve",
    "uvicorn": "serve",
}


def main_of(module: str) -> Callable[[], object]:
    """Return the ``main`` of a module, which is imported when it is called.

    If a package is missing, it raises SystemExit with one line that says how to install it.
    """

    def main() -> object:
        try:
            imported = import_module(module)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in EXTRAS:
                raise
            raise SystemExit(
                f"this command needs {package}; install it with: "
                f"python -m pip install -e '.[{EXTRAS[package]}]'"
            ) from None
        return imported.main()

    return main
