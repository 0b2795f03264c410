"""Images: unpacked root filesystems, known by digest, mounted as file descriptors."""
