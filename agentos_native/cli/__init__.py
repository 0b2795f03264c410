"""The command line: click commands over `agentos_native.client`, loaded one by one so that each starts fast."""

from __future__ import annotations


def main() -> int:
    """The console script ``agentos-native``; returns the exit status."""
    from agentos_native.cli.entry import run

    return run()
