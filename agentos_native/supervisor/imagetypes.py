"""The type of an agent as its image says it, by the label `TYPE_LABEL`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.model import ImageConfig
from agentos_native.spec.model import TYPE_LABEL, AgentSpec, AgentType

TYPES: tuple[AgentType, ...] = get_args(AgentType)


def said(config: ImageConfig) -> AgentType | None:
    """What an image says; None when it says nothing, or what is no type."""
    label = config.labels.get(TYPE_LABEL)
    return next((known for known in TYPES if known == label), None)


def typed(spec: AgentSpec, config: ImageConfig) -> AgentSpec:
    """`spec` with a type, its own or the image's; None where neither says one, which is the default."""
    if spec.type is not None:
        return spec
    return msgspec.structs.replace(spec, type=said(config))


def warnings(config: ImageConfig) -> list[str]:
    """What is wrong with the label, in words; images of others may say anything."""
    label = config.labels.get(TYPE_LABEL, "")
    if not label or label in TYPES:
        return []
    return [f"the image's label {TYPE_LABEL}={label[:40]!r} is none of {', '.join(TYPES)}: it counts for nothing"]


def check(labels: Mapping[str, str], inherited: Mapping[str, str] | None = None) -> None:
    """Refuse what is no type where somebody says it, beyond what is `inherited` from an image of others.

    Raises:
        AgentosError: ``invalid-label``.
    """
    label = labels.get(TYPE_LABEL, "")
    if label and label not in (*TYPES, (inherited or {}).get(TYPE_LABEL)):
        what = f"{label[:40]!r} is no type of agent"
        raise AgentosError("invalid-label", what, f"label {TYPE_LABEL}", f"it is one of {', '.join(TYPES)}")
