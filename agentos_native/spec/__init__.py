"""What users write, parsed into frozen structures."""
