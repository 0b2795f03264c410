"""agentos-native: sandboxes for LLM agents, made from the kernel's own parts, sharing one machine fairly."""

__version__ = "0.1.0"
