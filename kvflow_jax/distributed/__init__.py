"""Several processes, each with devices of its own, that serve one model together.

    process 0, the leader                          every other, a follower
    ─────────────────────                          ───────────────────────
    HTTP, engine, scheduler, cache, controller     none of these
    LeaderRunner ───────what it is about to do──▶ replay: the same on its own devices
    LeaderTransfers ──▶                      ◀─── "copied"
    /ready                                    ◀─── every second, that it is there

One control plane decides; the others do what it does, in its order. So all dispatch the same
programs in the same order, as ``jax.distributed`` asks, each from one thread; other threads wait.
"""
