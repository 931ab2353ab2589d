"""Every request of docs/clients/requests.md has a test of its number."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.doc_blocks import ROOT


def test_every_number_has_a_test() -> None:
    page = (ROOT / "docs" / "clients" / "requests.md").read_text()
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert numbers == list(range(1, 43))
    files = Path(__file__).parent.glob("test_*.py")
    tested = {
        int(number) for file in files for number in re.findall(r"def test_(\d+)_", file.read_text())
    }
    assert tested == set(numbers)
