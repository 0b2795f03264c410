"""The closed loop: sensors → demand → allocation → actuators, for every resource, once per tick.

`shares.Shares` is its thread and its door. `ticker.Ticker` moves CPU at each tick; a `controllers.Controller` moves
each other resource at its own, slower pace. Nothing here knows the rest of the supervisor.
"""
