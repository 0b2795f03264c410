"""From an archive or a directory to files below one fd: what the confined processes of `images.worker` run."""
