"""The top process: clones, waits, keeps exits."""
