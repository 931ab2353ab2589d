"""The restart that lets malloc use huge pages."""

import os
import platform
import subprocess
import sys

import pytest

from kvflow_jax.runtime.huge_pages import TUNABLES, restart_with_huge_pages

SCRIPT = """
import os, sys
from kvflow_jax.runtime.huge_pages import restart_with_huge_pages
restart_with_huge_pages()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("chosen", [None, "glibc.malloc.hugetlb=0"])
def test_a_process_restarts_once_with_its_arguments(chosen):
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if chosen is not None:
        env["GLIBC_TUNABLES"] = chosen
    command = [sys.executable, "-c", SCRIPT, "--flag", "a b"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as child:
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 0
    assert out == f"{child.pid} {chosen or TUNABLES} ['--flag', 'a b']\n"


@pytest.mark.parametrize(
    ("libc", "env", "restarts"),
    [
        ("glibc", {}, True),
        ("glibc", {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, False),
        ("musl", {}, False),
    ],
)
def test_only_a_process_of_glibc_without_tunables_restarts(monkeypatch, libc, env, restarts):
    started = []
    monkeypatch.setattr(os, "environ", env)
    monkeypatch.setattr(os, "execv", lambda path, argv: started.append((path, argv)))
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, "2.36"))
    restart_with_huge_pages()
    assert started == [(sys.executable, sys.orig_argv)] * restarts
    assert (env.get("GLIBC_TUNABLES") == TUNABLES) is restarts
