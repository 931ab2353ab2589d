"""Simulation: the engine's own code on a virtual clock.

    Workload ──▶ Simulation ──▶ Engine, Scheduler, Controller: the code that serves
                                  │          │          │
                             VirtualClock  SimRunner  SimTransfers ◀── Profile, ModelShape

Nothing here plans, evicts or schedules. The runner and the transfers only take the time that the
profile of a machine predicts.
"""
