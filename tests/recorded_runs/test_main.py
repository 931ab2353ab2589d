"""The calls of the recordings, as the embedded model's template writes them."""

import pytest

from experiments.zero_hints.recording import FOLDER, read_recording
from tests.recorded_runs.__main__ import with_num_system
from tests.support.served import embedded_server


@pytest.mark.slow
def test_system_messages_are_as_long_as_the_server_writes_them():
    with embedded_server() as url:
        for path in sorted(FOLDER.glob("*.json")):
            calls = read_recording(path)
            assert [with_num_system(call, url) for call in calls] == calls
