"""Small sessions of a coding agent, as files of the *weka* form."""

import json

NUM_CALLS, BLOCK, NEW = 3, 64, 2  # of a session, and the blocks by which each call is longer


def write_sessions(folder, num_sessions=4):
    """Make a folder of sessions; each begins with 4 blocks of a system prompt."""
    folder.mkdir()
    for number in range(num_sessions):
        _write_session(folder, f"s{number}")
    return folder


def _write_session(folder, name):
    requests = [
        {
            "t": 10.0 * number,
            "in": BLOCK * (4 + NEW * number),
            "out": 4,
            "hash_ids": list(range(4 + NEW * number)),
            "api_time": 1.0,
        }
        for number in range(NUM_CALLS)
    ]
    session = {"id": name, "block_size": BLOCK, "system_tokens": 4 * BLOCK, "requests": requests}
    (folder / f"{name}.json").write_text(json.dumps(session))
