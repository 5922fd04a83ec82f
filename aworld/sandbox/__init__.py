"""Isolated places where tools run."""

from __future__ import annotations

from typing import Any

from aworld.config.errors import ConfigError
from aworld.core.sandbox import Sandbox, SandboxLimits
from aworld.sandbox.base import need_linux
from aworld.sandbox.pool import SandboxPool as SandboxPool


async def open_sandbox(name: str = "local", limits: SandboxLimits | None = None, **options: Any) -> Sandbox:
    """Open a sandbox by the name of its kind; `options` are those of the `open` of its class.

    - `local`: on this machine, isolated by bubblewrap (`LocalSandbox`)
    - `none`: on this machine, without any protection
    - `container:IMAGE`: by Docker or Podman (`ContainerSandbox`), such as `container:python:3.12-slim`
    - `e2b` or `e2b:TEMPLATE`: in the cloud of E2B (`E2BSandbox`)

    Raises `ConfigError` for an unknown name or a missing extra, `SandboxError` when it cannot be opened.
    """
    kind, _, which = name.partition(":")
    if name in ("local", "none"):
        need_linux()  # elsewhere what it is made of cannot even be imported
        from aworld.sandbox.local import LocalSandbox

        return await LocalSandbox.open(limits, isolation="none" if name == "none" else "bubblewrap", **options)
    if kind == "container" and which:
        from aworld.sandbox.container import ContainerSandbox

        return await ContainerSandbox.open(which, limits, **options)
    if kind == "e2b":
        from aworld.sandbox.e2b import E2BSandbox

        return await E2BSandbox.open(which or None, limits, **options)
    raise ConfigError(
        f"sandbox={name!r} | not a kind of sandbox; use local, none, container:IMAGE, e2b or e2b:TEMPLATE"
    )
