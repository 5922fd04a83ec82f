"""An agent in a web shop: it opens a local site in a browser, searches it, and says what a fruit costs.

Without LLM_MODEL_NAME a few rules stand in for the model, so that no key is needed. Needs the extra `browser` and a
Chromium of the system (Debian: apt install chromium).

    python examples/browser_agent.py ["What does a mango cost?"]
"""

from __future__ import annotations

import asyncio
import os
import re
import sys

from aiohttp import web

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError
from aworld.core.message import ToolCall
from aworld.core.model import ModelRequest
from aworld.core.task import TaskResponse
from aworld.models import FunctionModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.tools.browser import Browser

PRICES = {"apple": "0.50", "pear": "0.75", "mango": "2.25"}

HOME = """<title>Fruit shop</title><h1>Fruit shop</h1>
<form action="/search"><input name="q" placeholder="Which fruit?"><button>Search</button></form>"""


async def shop(request: web.BaseRequest) -> web.StreamResponse:
    """The site: a page to search, and one that answers."""
    text = HOME
    if request.path == "/search":
        fruit = request.query.get("q", "").strip().lower()
        answer = f"One {fruit} costs {PRICES[fruit]} euros." if fruit in PRICES else "We do not sell that."
        text = f'<title>Found</title><p>{answer}</p><a href="/">Back to the shop</a>'
    return web.Response(text=text, content_type="text/html")


def stand_in(request: ModelRequest) -> str | ToolCall:
    """What a model would do: open the site that is named, search, and tell what it read."""
    question = next(message.text for message in request.messages if message.role == "user")
    seen = request.messages[-1].text
    if request.turn == 0:
        site = re.search(r"http://\S+", question)
        return call("browser_open", url=site.group() if site else "")
    field = re.search(r"\[(\d+): text", seen)
    if field is not None:
        fruit = re.search(r"costs? (?:a|an|one) (\w+)|(?:a|an|one) (\w+) costs?", question)
        word = next((group for group in fruit.groups() if group), "") if fruit else ""
        return call("browser_type", number=int(field.group(1)), text=word, submit=True)
    return next((line for line in seen.splitlines() if line.endswith(("euros.", "that."))), seen)


async def surf(question: str) -> TaskResponse:
    """Serve the shop on loopback, and let an agent find the answer in it."""
    runner = web.ServerRunner(web.Server(shop), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    agent = Agent(
        "surfer",
        system_prompt="Find the answer in the web site that is named, with the browser. Answer in one sentence.",
        model=None if os.environ.get("LLM_MODEL_NAME") else FunctionModel(stand_in),
        tools=[Browser(allow_private=["127.0.0.1"])],  # the shop is on this machine; elsewhere leave it out
    )
    try:
        return await Runners.run(f"{question} The shop is at {site}", agent)
    finally:
        await runner.cleanup()


def main() -> int:
    """Ask, and print what was done and answered."""
    question = " ".join(sys.argv[1:]) or "What does a mango cost?"
    response = asyncio.run(surf(question))
    for row in response.trajectory:
        for called in row["action"]["tool_calls"]:
            print(f"→ {called['function']['name']}({called['function']['arguments']})")
    print(response.answer if response.success else f"{response.status}: {response.msg}")
    return 0 if response.success else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as missing:
        sys.exit(str(missing))
