"""Tools: what an agent can do.

A plain annotated function in `tools=[…]` is a tool; `@tool` gives it a name, a time-out and more. `Tool` and `Toolset`
are the contract for everything else, and the wrappers give tools another shape: `filtered`, `prefixed`, `renamed`,
`approval_required`.
"""

from aworld.core.tool.base import Question, Tool, ToolContext, Toolset
from aworld.core.tool.func_to_tool import FunctionTool, as_tools, be_tool, find_tools, tool
from aworld.core.tool.results import to_content
from aworld.core.tool.wrappers import approval_required, filtered, prefixed, renamed

__all__ = [
    "FunctionTool",
    "Question",
    "Tool",
    "ToolContext",
    "Toolset",
    "approval_required",
    "as_tools",
    "be_tool",
    "filtered",
    "find_tools",
    "prefixed",
    "renamed",
    "to_content",
    "tool",
]
