"""Pulling images from a registry: a confined process fetches and verifies, the store imports what it has left."""
