"""Servers: one shell for everything that answers over the network, and the routers in it.

`Serving` is the shell; `ModelServer`, `EnvironmentServer` and `MCPService` are models, environments and agents served
by it. FastAPI and uvicorn are imported at the first use of a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aworld.core.lazy import exports

if TYPE_CHECKING:
    from aworld.server.environment_server import EnvironmentServer as EnvironmentServer
    from aworld.server.mcp_server import MCPService as MCPService
    from aworld.server.model_server import ModelServer as ModelServer
    from aworld.server.shell import EventStream as EventStream
    from aworld.server.shell import RequestProblem as RequestProblem
    from aworld.server.shell import Serving as Serving

__getattr__, __dir__ = exports(__name__)
