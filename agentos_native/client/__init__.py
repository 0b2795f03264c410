"""The Python SDK and HTTP client."""
