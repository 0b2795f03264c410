"""Server, lifecycle, registry, tick, recovery."""
