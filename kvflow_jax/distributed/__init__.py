"""One model served by several processes, each with its own devices.

    process 0, the leader                            processes 1 to N-1, the followers
    ─────────────────────                            ─────────────────────────────────
    HTTP, engine, scheduler, cache, controller       none of these
    LeaderRunner ────── each call, before it ──────▶ Replay: the same call on its own devices
    LeaderTransfers ───────── Copy ────────────────▶
                    ◀──────── Copied ───────────────
    /ready          ◀──────── Heartbeat, every second

There is one control plane, on the leader. Followers replay its calls in order, so every process
dispatches the same programs in the same order, each from one thread, as ``jax.distributed``
requires. Other threads only wait.
"""
