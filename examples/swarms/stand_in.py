"""What the examples share: a stand-in for a model where none is configured, and a way to tell what happened.

With LLM_MODEL_NAME (and LLM_API_KEY, LLM_BASE_URL) set, the examples ask that model. Without it, a server on loopback
speaks the protocol of OpenAI, and its "model" is a Python function for each role, told apart by the system prompt.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from aworld.core.model import ModelRequest
from aworld.core.task import TaskResponse
from aworld.models import FunctionModel, close_transports
from aworld.models.doubles import Said
from aworld.server import ModelServer

Role = Callable[[ModelRequest], Said]


@asynccontextmanager
async def model(roles: dict[str, Role]) -> AsyncGenerator[None]:
    """The model of the environment, or else one that plays `roles`, by a word of the system prompt."""
    if os.environ.get("LLM_MODEL_NAME"):
        yield
        await close_transports()
        return

    def play(request: ModelRequest) -> Said:
        prompt = next((message.text for message in request.messages if message.role == "system"), "")
        return next(role for word, role in roles.items() if word in prompt)(request)

    async with ModelServer(FunctionModel(play)) as server:
        os.environ |= {"LLM_MODEL_NAME": "stand-in", "LLM_API_KEY": "none", "LLM_BASE_URL": server.base_url}
        yield
        await close_transports()


def heard(request: ModelRequest) -> str:
    """The last thing that was said to the model."""
    return request.messages[-1].text


def tell(response: TaskResponse) -> None:
    """Print who did what, and how it ended."""
    for row in response.trajectory:
        action = row["action"]
        calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in action["tool_calls"]]
        print(f"{row['meta']['agent']:>12}: {' '.join([*str(action['content'] or '').split(), *calls])}")
    print(f"{response.status}: {response.answer if response.success else response.msg}\n")
