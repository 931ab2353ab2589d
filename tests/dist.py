"""Build wheel and sdist, install each outside the checkout, and serve a model from it.

python -m tests.dist
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
READY_S = 300
_READY = re.compile(r"ready after .*: (http://\S+)")


def main() -> int:
    """Build, install and serve; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="the Python that installs")
    python = parser.parse_args().python
    dist = ROOT / "dist"
    for old in dist.glob("kvflow_jax-*"):
        old.unlink()
    run([sys.executable, "-m", "build", "--outdir", dist], "build wheel and sdist")
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model"
        run([sys.executable, "-m", "experiments.make_folder", "llama", model], "make a small model")
        run([python, "-m", "venv", folder / "env"], "create an environment")
        env_python = folder / "env" / "bin" / "python"
        pip = [env_python, "-m", "pip", "install", "--quiet"]
        run([*pip, f"{wheel}[serve]"], f"install {wheel.name}")
        check_installed(folder, model)
        run([*pip, "--no-deps", "--force-reinstall", sdist], f"install {sdist.name}")
        check_installed(folder, model)
    return 0


def run(command: list[object], what: str, cwd: Path = ROOT) -> str:
    """Run a command, print how long it took, return its output; exit where it fails."""
    begin = time.monotonic()
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    print(f"{time.monotonic() - begin:6.1f} s  {what}", flush=True)
    return done.stdout


def check_installed(folder: Path, model: Path) -> None:
    """List the commands, import the public names, serve the model and ask it once."""
    scripts = folder / "env" / "bin"
    where = run(
        [scripts / "python", "-c", "import kvflow_jax; print(kvflow_jax.__file__)"],
        "import it",
        cwd=folder,
    )
    if not Path(where.strip()).is_relative_to(folder):
        sys.exit(f"{where.strip()} was imported, not the installed package")
    for command in ([scripts / "kvflow-jax"], [scripts / "python", "-m", "kvflow_jax"]):
        if "serve" not in run(command, "list the commands", cwd=folder):
            sys.exit("the commands are not listed")
    begin = time.monotonic()
    flags = f"--model {model} --served-model-name tiny --port 0 --cache-dir {folder / 'cache'}"
    flags += " --num-pages 64 --max-num-seqs 1 --max-num-batched-tokens 16 --host-cache-gib 0"
    log = folder / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [str(scripts / "kvflow-jax"), "serve", *flags.split()], cwd=folder, stderr=file
        )
    try:
        url = wait_until_ready(server, log)
        answer = complete(url)
        server.send_signal(signal.SIGINT)
        if server.wait(READY_S):
            sys.exit(f"the server ended badly:\n{log.read_text()[-4000:]}")
    finally:
        server.kill()
        server.wait()
    if answer["usage"]["completion_tokens"] != 4:
        sys.exit(f"a wrong answer: {answer}")
    print(f"{time.monotonic() - begin:6.1f} s  serve, and answer a request", flush=True)


def wait_until_ready(server: subprocess.Popen[bytes], log: Path) -> str:
    """Return the URL that the server logs once it is ready."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and server.poll() is None:
        if match := _READY.search(log.read_text()):
            return match[1]
        time.sleep(0.2)
    sys.exit(f"the server did not get ready:\n{log.read_text()[-4000:]}")


def complete(url: str) -> dict:
    """Return the server's answer to a completion of four tokens."""
    body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 4, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=READY_S) as answer:
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main())
