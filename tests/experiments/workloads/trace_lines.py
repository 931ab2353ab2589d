"""Lines of traces, and how tests read their calls."""

import numpy as np


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def turn(*messages, **rest):
    return {"messages": [user(m) if isinstance(m, str) else m for m in messages], **rest}


def session(name, *turns, **rest):
    return {"session_id": name, "turns": list(turns), **rest}


def named(run):
    """Calls of each agent, with their numbers."""
    calls = {}
    for number, call in enumerate(run.calls):
        calls.setdefault(call.agent, []).append((number, call))
    return calls


def shared(one, two):
    """Tokens that two calls begin with alike. Both must be without answers."""
    a, b = (np.concatenate(call.parts) for call in (one, two))
    length = min(len(a), len(b))
    return int(np.argmin([*(a[:length] == b[:length]), False]))
