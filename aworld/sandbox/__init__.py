"""Isolated places where tools run."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
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

    Raises `ConfigError` for an unknown name, an unknown option or a missing extra, `SandboxError` when it
    cannot be opened.
    """
    if limits is not None and not isinstance(limits, SandboxLimits):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"limits={limits!r} | give SandboxLimits(...), such as SandboxLimits(wall_seconds=30)")
    kind, _, which = name.partition(":")
    if name in ("local", "none"):
        need_linux()  # elsewhere what it is made of cannot even be imported
        from aworld.sandbox.local import LocalSandbox

        isolation = "none" if name == "none" else "bubblewrap"
        return await LocalSandbox.open(limits, isolation=isolation, **_checked(LocalSandbox.open, name, options))
    if kind == "container" and which:
        from aworld.sandbox.container import ContainerSandbox

        return await ContainerSandbox.open(which, limits, **_checked(ContainerSandbox.open, name, options))
    if kind == "e2b":
        from aworld.sandbox.e2b import E2BSandbox

        return await E2BSandbox.open(which or None, limits, **_checked(E2BSandbox.open, name, options))
    raise ConfigError(
        f"sandbox={name!r} | not a kind of sandbox; use local, none, container:IMAGE, e2b or e2b:TEMPLATE"
    )


def _checked(opens: Callable[..., object], name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options, if there are such. `isolation` is none: the name of the kind says it."""
    known = [option.name for option in signature(opens).parameters.values() if option.kind is option.KEYWORD_ONLY]
    known = [option for option in known if option != "isolation"]
    for option in options:
        if option not in known:
            raise ConfigError(f"{option}= | not an option of open_sandbox({name!r}); there are {', '.join(known)}")
    return options
