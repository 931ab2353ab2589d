"""Virtual time behind the engine's own protocols.

    Workload ──▶ Simulation ──▶ Engine, Scheduler, Controller: the very code that serves
                                  │          │          │
                             VirtualClock  SimRunner  SimTransfers ◀── Profile, ModelShape

Nothing here plans, evicts or schedules: it only says how long things take.
"""
