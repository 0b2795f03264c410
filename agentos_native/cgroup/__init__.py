"""The cgroup v2 tree: its files, sensors and actuators."""
