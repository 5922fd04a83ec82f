"""A coding agent: it works on a copy of the working folder in a sandbox, and asks before each command.

    aworld run --agent coding_agent:coder "Write add(a, b), with a test."    # it asks y/n/always
    aworld diff last && aworld apply last

Without LLM_MODEL_NAME a script stands in for the model, so that no key is needed.
"""

import os

from aworld.agents.llm_agent import Agent
from aworld.core.tool.wrappers import approval_required
from aworld.models.doubles import ScriptedModel, call
from aworld.sandbox import local
from aworld.tools.sandboxed import sandbox_tools

script = [
    call("write_file", path="calc.py", content="def add(a, b):\n    return a - b\n"),
    call("shell", command="python3 -c 'from calc import add; assert add(1, 2) == 3'"),
    call("edit_file", path="calc.py", old="a - b", new="a + b"),
    call("shell", command="python3 -c 'from calc import add; assert add(1, 2) == 3'"),
    "add(a, b) is in calc.py, and its test passes.",
]
model = None if os.environ.get("LLM_MODEL_NAME") else ScriptedModel(script)
coder = Agent("coder", model=model, tools=approval_required(sandbox_tools(local(mount=".")), ["shell"]))
