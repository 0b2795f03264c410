"""The virtual machine in which cgroup v2 is real: building its disk image, booting it, running one command inside.

``cache`` keeps what was built, ``base`` builds kernel and root disk, ``stage`` puts the working tree on a disk of its
own, ``qemu`` knows the emulator, ``session`` runs one command and brings its output back. ``__main__`` is the command
line (``tools/vm``).
"""
