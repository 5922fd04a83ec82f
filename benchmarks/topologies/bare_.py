"""The floor: the same calls on aiohttp and msgspec, every message and call written durably to SQLite."""

from __future__ import annotations

import asyncio

from peers import bare
from peers.bare import ENCODER, Message, close

from topologies import QUESTION, SHAPES

__all__ = ["close", "run_one"]


class _Run:
    """One team at work: a numbered log, and a way to ask."""

    def __init__(self, base_url: str) -> None:
        bare._Shared.runs += 1
        self.id, self.seq, self.base_url = f"run-{bare._Shared.runs}", 0, base_url

    async def ask(self, model: str, messages: list[Message]) -> Message:
        """One model call; returns when it is written."""
        session, log = bare._opened()
        message, usage = await bare._ask(session, self.base_url, model, messages, False)
        rows: list[bare.Row] = []
        for body in (messages[-1], message, {"model": model, "usage": usage}):
            self.seq += 1
            rows.append((self.id, self.seq, "row", ENCODER.encode(body)))
        await log.append(rows)
        return message

    async def said(self, model: str, text: str) -> str:
        """What an agent answers to a text."""
        return (await self.ask(model, [Message("user", text)])).content or ""


async def run_one(base_url: str, shape_name: str) -> str:
    """Run one team."""
    shape, run = SHAPES[shape_name], _Run(base_url)
    if shape.kind == "single":
        return await bare.run_one(base_url, shape.first_model)
    if shape.kind == "team":
        messages = [Message("user", QUESTION)]
        messages.append(await run.ask(shape.first_model, messages))
        calls = messages[1].tool_calls or []
        texts = await asyncio.gather(*(run.said(shape.model, call.function.arguments) for call in calls))
        messages += [Message("tool", text, tool_call_id=call.id) for call, text in zip(calls, texts)]
        return (await run.ask(shape.first_model, messages)).content or ""
    text = await run.said(shape.model, QUESTION)
    if shape.kind == "graph":
        texts = await asyncio.gather(*(run.said(shape.model, text) for _ in range(shape.agents - 2)))
        return await run.said(shape.model, "\n\n".join(texts))
    for _ in range(shape.agents - 1):
        text = await run.said(shape.model, text)
    return text
