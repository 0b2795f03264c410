"""What users write, parsed into frozen structures.

`load` and `load_file` read YAML (native and Kubernetes'); `from_builtins` and `to_builtins` are the API's two ways.
`model` holds the structures, `settings` the supervisor's own options. Importing this package loads no parser of YAML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentos_native.spec.documents import agent_from_builtins, from_builtins, load, load_file, to_builtins
    from agentos_native.spec.model import AgentSpec, Document, TenantSpec

__all__ = [
    "AgentSpec",
    "Document",
    "TenantSpec",
    "agent_from_builtins",
    "from_builtins",
    "load",
    "load_file",
    "to_builtins",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    from importlib import import_module

    module = "model" if name in ("AgentSpec", "Document", "TenantSpec") else "documents"
    return getattr(import_module(f"agentos_native.spec.{module}"), name)
