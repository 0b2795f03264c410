"""What the processes say to each other: launcher messages (`launch`), API schemas (`api`)."""
