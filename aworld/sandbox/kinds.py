"""The kinds of sandboxes by name: where each is found, and how it is opened.

Only this table knows them. A kind is a class with `async open([which,] limits, **options)`: where its first argument is
not `limits`, it is what stands behind the colon of the name, such as an image. One whose sandboxes outlive their
runtime has `async destroy(record)` too (`aworld.sandbox.reaper`). Packages add kinds by an entry point of the group
`aworld.sandboxes`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import entry_points
from inspect import signature
from typing import Any

from aworld.config.errors import ConfigError
from aworld.core.checks import typed
from aworld.core.sandbox import Sandbox, SandboxError, SandboxLimits

KINDS = {
    "local": "aworld.sandbox.local_sandbox:LocalSandbox",
    "none": "aworld.sandbox.local_sandbox:UnisolatedSandbox",
    "container": "aworld.sandbox.container:ContainerSandbox",
    "e2b": "aworld.sandbox.e2b:E2BSandbox",
}
"""By name, `module:class`; imported when one is opened."""
SPELLED = ("local", "none", "container:IMAGE", "e2b or e2b:TEMPLATE")
GROUP = "aworld.sandboxes"


@typed()
async def open_sandbox(name: str = "local", limits: SandboxLimits | None = None, **options: Any) -> Sandbox:
    """Open a sandbox by the name of its kind; `options` are those of the `open` of its class.

    - `local`: on this machine, isolated by bubblewrap (`LocalSandbox`)
    - `none`: on this machine, without any protection
    - `container:IMAGE`: by Docker or Podman (`ContainerSandbox`), such as `container:python:3.12-slim`
    - `e2b` or `e2b:TEMPLATE`: in the cloud of E2B (`E2BSandbox`)

    Raises `ConfigError` for an unknown name, an unknown option or a missing package, `SandboxError` when it
    cannot be opened.
    """
    kind, _, which = name.partition(":")
    opener = getattr(kind_of(kind), "open", None)
    parameters = [] if opener is None else list(signature(opener).parameters.values())
    takes = parameters[0] if parameters and parameters[0].name != "limits" else None
    fits = not which if takes is None else which or takes.default is not takes.empty
    if opener is None or not fits:
        raise ConfigError(f"sandbox={name!r} | not a kind of sandbox; use {', '.join(SPELLED)}")
    # `isolation` is no option: the name of the kind says it.
    there = [option.name for option in parameters if option.kind is option.KEYWORD_ONLY and option.name != "isolation"]
    for option in options:
        if option not in there:
            raise ConfigError(f"{option}= | not an option of open_sandbox({name!r}); there are {', '.join(there)}")
    return await opener(*(() if takes is None else (which or None,)), limits, **options)


def kind_of(name: str) -> Any:
    """The class of a kind, None for an unknown one. Raises `SandboxError` where it cannot be."""
    if name in ("local", "none") and not sys.platform.startswith("linux"):
        # What it is made of cannot even be imported there.
        raise SandboxError(f"local sandboxes need Linux, not {sys.platform}; use a container")
    if name in KINDS:
        module, _, attribute = KINDS[name].partition(":")
        return getattr(import_module(module), attribute)
    return next((entry.load() for entry in entry_points(group=GROUP, name=name)), None)
