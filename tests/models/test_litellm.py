"""The optional adapter."""

from __future__ import annotations

import importlib.util

import pytest

from aworld.config.conf import ModelConfig
from aworld.config.errors import ConfigError
from aworld.core.message import Message
from aworld.core.model import Delta, ModelRequest, TextDelta
from aworld.models import CallFailed, ScriptedModel, build_model, call_model
from aworld.models.doubles import call
from aworld.server import ModelServer

INSTALLED = importlib.util.find_spec("litellm") is not None
HI = ModelRequest(messages=(Message("user", "hi"),))


@pytest.mark.skipif(INSTALLED, reason="litellm is installed")
def test_without_litellm_the_error_names_the_extra() -> None:
    with pytest.raises(ConfigError, match=r"pip install \"litellm"):
        build_model("litellm:bedrock/some-model")


@pytest.mark.skipif(not INSTALLED, reason="needs the extra litellm")
async def test_through_litellm_to_a_real_server() -> None:
    async with ModelServer(ScriptedModel([[call("add", a=1)], "a text of several pieces"])) as server:
        config = ModelConfig(
            llm_provider="litellm",
            llm_model_name="openai/m",
            llm_base_url=server.base_url,
            llm_api_key="sk-secret-key",
            llm_max_retries=0,
        )
        model = build_model(config)
        first = await call_model(model, HI)
        deltas: list[Delta] = []
        after = ModelRequest(messages=(*HI.messages, first.reply.message))
        second = await call_model(model, after, on_delta=deltas.append)
        with pytest.raises(CallFailed, match="has 2 replies") as caught:
            await call_model(model, ModelRequest(messages=(first.reply.message, first.reply.message)))
    assert first.reply.message.tool_calls[0].arguments == '{"a":1}'
    assert second.reply.message.content == "a text of several pieces"
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "a text of several pieces"
    assert caught.value.status == 400
    assert "sk-secret-key" not in str(caught.value)
