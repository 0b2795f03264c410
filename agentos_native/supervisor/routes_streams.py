"""The WebSocket side of the API: exec and attach. What goes wrong before the first frame is an HTTP answer."""

from __future__ import annotations

from urllib.parse import unquote

from starlette.websockets import WebSocket

from agentos_native.errors import EXIT_NOT_FOUND, AgentosError
from agentos_native.supervisor import program
from agentos_native.supervisor.attaching import attach
from agentos_native.supervisor.executing import Exec
from agentos_native.supervisor.host import Host
from agentos_native.supervisor.routes import as_error, error_response
from agentos_native.supervisor.streams import Channels, check_protocol


class StreamRoutes:
    """Handlers; one per supervisor."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def attach(self, websocket: WebSocket) -> None:
        """``/v1/agents/{ref}/attach?stdin=``"""
        try:
            check_protocol(websocket)
            agent = self._host.agents.find(unquote(websocket.path_params["ref"]), buried=True)
        except Exception as error:
            await websocket.send_denial_response(error_response(as_error(error)))
            return
        channels = Channels(websocket)
        await channels.accept()
        await attach(agent, channels, stdin=_flag(websocket, "stdin"))

    async def exec(self, websocket: WebSocket) -> None:
        """``/v1/agents/{ref}/exec?command=…``"""
        try:
            check_protocol(websocket)
            agent = self._host.agents.find(unquote(websocket.path_params["ref"]))
            process = Exec(self._host, agent, _exec_request(websocket))
            ended = await process.start()
        except Exception as error:
            await websocket.send_denial_response(error_response(as_error(error)))
            return
        channels = Channels(websocket)
        await channels.accept()
        await process.serve(channels, ended)


def _flag(websocket: WebSocket, name: str) -> bool:
    return websocket.query_params.get(name, "0").lower() in {"1", "true", "yes"}


def _exec_request(websocket: WebSocket) -> program.ExecRequest:
    query = websocket.query_params
    argv = tuple(query.getlist("command"))
    if not argv or not argv[0]:
        raise AgentosError("no-command", "exec needs a command", "", "Give one.", exit_status=EXIT_NOT_FOUND)
    return program.ExecRequest(
        argv=argv,
        env=program.pairs(query.getlist("env")),
        user=query.get("user"),
        workdir=query.get("workdir"),
        tty=_flag(websocket, "tty"),
        stdin=_flag(websocket, "stdin"),
    )
