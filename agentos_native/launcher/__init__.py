"""The top process: parent of every agent and of the supervisor. `python -m agentos_native.launcher`; see `loop`."""
