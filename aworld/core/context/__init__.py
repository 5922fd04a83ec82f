"""What the agents of a task share, and what they see."""

from aworld.core.context.base import Context

__all__ = ["Context"]
