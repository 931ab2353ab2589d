"""Check that each module with behaviour has a test file of its name that covers most of its lines.

    python -m tests.own_coverage            # every module: has it a test file of its name?
    python -m tests.own_coverage cache engine/scheduler   # and what that file alone covers

A module has behaviour if one of its functions has a body. ``models/loading/gguf.py`` is tested by
``tests/models/loading/test_gguf.py``, ``serve/__main__.py`` by ``tests/serve/test_main.py``. Lines
that run while other modules are imported count, as in any coverage report.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEAST = 70  # percent of a module's lines
# Only an accelerator can run most of their lines; ``experiments.device_check`` does.
NEEDS_ACCELERATOR = {
    "models/kernels/gpu_mosaic_program.py",
    "models/kernels/gpu_paged.py",
    "models/kernels/experimental/tpu_ragged.py",
    "experiments/device/device_check.py",
    "experiments/device/device_kernels.py",
    "experiments/device/device_model.py",
    "experiments/device/portability.py",
}


def has_behaviour(path: Path) -> bool:
    """True if a function of the module does more than declare."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = [
                one
                for one in node.body
                if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
                and not isinstance(one, ast.Pass | ast.Raise)
            ]
            if body:
                return True
    return False


def test_file_of(module: Path) -> Path:
    """The test file of a module, both relative to the root of the repository."""
    room = Path(*module.parts[1:]) if module.parts[0] == "kvflow_jax" else module
    name = module.parent.name if module.stem == "__init__" else module.stem.strip("_")
    return Path("tests") / room.parent / f"test_{name}.py"


def modules() -> list[Path]:
    """Modules with behaviour, relative to the root."""
    found = []
    for room in ("cache", "models", "kvflow_jax", "experiments"):
        found += sorted((ROOT / room).rglob("*.py"))
    return [path.relative_to(ROOT) for path in found if has_behaviour(path)]


def coverage_of(module: Path) -> tuple[float, str]:
    """Percent of a module's lines that its own test file covers, and the lines it leaves out."""
    # By folder: to find a module by its dotted name coverage imports the packages above it, and
    # after models.kernels numpy cannot be imported again.
    source = module.parent.as_posix()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        run = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *(str(test_file_of(module)), f"--cov={source}", f"--cov-report=json:{report}"),
            ],
            cwd=ROOT,
            env={**os.environ, "COVERAGE_FILE": str(Path(folder, "data"))},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            return 0.0, run.stdout[-2000:]
        (facts,) = [
            one
            for path, one in json.loads(report.read_text())["files"].items()
            if Path(path).resolve() == (ROOT / module).resolve()
        ]
    return facts["summary"]["percent_covered"], str(facts["missing_lines"])


def main() -> int:
    every = modules()
    without = [one for one in every if not (ROOT / test_file_of(one)).exists()]
    wrong = [one for one in without if one.as_posix() not in NEEDS_ACCELERATOR]
    print(f"{len(every)} modules with behaviour, {len(every) - len(without)} with a test file")
    for one in wrong:
        print(f"  {one} has no {test_file_of(one)}")
    for module in every:
        path = module.as_posix().removesuffix(".py").removeprefix("kvflow_jax/")
        is_asked = any(f"{path}/".startswith(f"{one.strip('/')}/") for one in sys.argv[1:])
        if not is_asked or module in without or module.as_posix() in NEEDS_ACCELERATOR:
            continue
        percent, missing = coverage_of(module)
        print(f"{percent:5.0f}%  {module}", flush=True)
        if percent < LEAST:
            print(f"       not covered: {missing}")
            wrong.append(module)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
