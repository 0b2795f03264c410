"""Boring, typed wrappers of system calls, one file per man-page family: ints and fds, no policy."""
