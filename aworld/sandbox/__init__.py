"""Isolated places where tools run."""

from aworld.core.sandbox import SandboxLimits
from aworld.sandbox.kinds import open_sandbox
from aworld.sandbox.mount import local
from aworld.sandbox.pool import SandboxPool

__all__ = ["SandboxLimits", "SandboxPool", "local", "open_sandbox"]
