"""Isolated places where tools run."""

from aworld.sandbox.kinds import open_sandbox
from aworld.sandbox.mount import local
from aworld.sandbox.pool import SandboxPool

__all__ = ["SandboxPool", "local", "open_sandbox"]
