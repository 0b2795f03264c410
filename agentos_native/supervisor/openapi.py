"""OpenAPI 3.1, made from the table of routes and the types of their bodies, so that it cannot say something else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agentos_native import __version__
from agentos_native.wire import api

if TYPE_CHECKING:
    from agentos_native.supervisor.routes import Endpoint

_STREAMS = {
    "/v1/agents/{ref}/exec": "Run a further process inside; ?command=…&tty=&stdin=&user=&workdir=&env=NAME=value",
    "/v1/agents/{ref}/attach": "Join the agent's own streams; ?stdin=",
}
_LINES = (api.LogLine, api.Event)


def describe(rows: Sequence[Endpoint]) -> dict[str, Any]:
    """The whole document."""
    kinds = {kind for row in rows for kind in (row.request, row.response) if kind is not None} | {api.ErrorBody}
    ordered = sorted(kinds, key=lambda kind: str(kind.__name__))
    schemas, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    refs = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, refs)
    for path, summary in _STREAMS.items():
        paths.setdefault(path, {})["get"] = _stream(path, summary)
    return {
        "openapi": "3.1.0",
        "info": {"title": "agentos-native", "version": __version__, "description": "HTTP over a unix socket"},
        "paths": paths,
        "components": {"schemas": components},
    }


def _parameters(path: str, query: Sequence[str] = ()) -> list[dict[str, Any]]:
    string = {"type": "string"}
    found = [
        {"name": name, "in": "path", "required": True, "schema": string} for name in re.findall(r"\{(\w+)\}", path)
    ]
    return found + [{"name": name, "in": "query", "required": False, "schema": string} for name in query]


def _operation(row: Endpoint, refs: dict[Any, Any]) -> dict[str, Any]:
    media = "application/x-ndjson" if row.response in _LINES else "application/json"
    success: dict[str, Any] = {"description": row.summary}
    if row.response is not None:
        success["content"] = {media: {"schema": refs[row.response]}}
    failure = {"description": "Failed", "content": {"application/json": {"schema": refs[api.ErrorBody]}}}
    operation: dict[str, Any] = {
        "summary": row.summary,
        "operationId": f"{row.handler.__name__.strip('_')}:{row.path}",
        "parameters": _parameters(row.path, row.query),
        "responses": {str(row.status): success, "default": failure},
    }
    if row.request is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": refs[row.request]}}}
    return operation


def _stream(path: str, summary: str) -> dict[str, Any]:
    return {
        "summary": f"WebSocket, subprotocol {api.STREAM_PROTOCOL}: {summary}",
        "operationId": path,
        "parameters": _parameters(path),
        "responses": {"101": {"description": "Frames; the first byte is the channel"}},
    }
