"""AWorld, the agent runtime for self-improvement: agents act, every act is recorded exactly, the record is scored,
and what was learnt goes back into the agents.

    from aworld import Agent, Runners, tool

Each name is imported when it is asked for: `import aworld` alone imports nothing of it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it: importing `typing` for it would be all that `import aworld` costs
if TYPE_CHECKING:
    from aworld.agents.llm_agent import Agent as Agent
    from aworld.config.conf import AgentConfig as AgentConfig
    from aworld.config.conf import RunConfig as RunConfig
    from aworld.config.conf import TaskConfig as TaskConfig
    from aworld.core.agent.swarm import HandoffSwarm as HandoffSwarm
    from aworld.core.agent.swarm import Swarm as Swarm
    from aworld.core.agent.swarm import TeamSwarm as TeamSwarm
    from aworld.core.agent.swarm import WorkflowSwarm as WorkflowSwarm
    from aworld.core.hooks import Hooks as Hooks
    from aworld.core.task import Task as Task
    from aworld.core.task import TaskResponse as TaskResponse
    from aworld.core.tool.base import ToolContext as ToolContext
    from aworld.core.tool.func_to_tool import tool as tool
    from aworld.environments.environment import Environment as Environment
    from aworld.runner import Runners as Runners
else:  # type checkers would take any name for one that is there

    def __getattr__(name: str) -> object:
        from aworld.core.lazy import exports  # here: it is a part of the package, of which an import brings nothing

        return exports(__name__)[0](name)

    def __dir__() -> list[str]:
        from aworld.core.lazy import exports

        return exports(__name__)[1]()


__version__ = "0.1.0"
