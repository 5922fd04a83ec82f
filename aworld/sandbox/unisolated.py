"""A place without isolation, for those who ask for it: a folder, and commands with the rights of this process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

from aworld.core.sandbox import SandboxLimits
from aworld.sandbox import profile, reaper, worker
from aworld.sandbox.base import new_id
from aworld.sandbox.local import SYSTEM_PATH, LocalSandbox, launch

logger = logging.getLogger(__name__)

_warned: set[str] = set()


class UnisolatedSandbox(LocalSandbox):
    """A folder with time and output limits, and no protection."""

    @classmethod
    async def start(cls, limits: SandboxLimits, python: str | None, env: Mapping[str, str]) -> UnisolatedSandbox:
        """Make one; warns the first time."""
        if not _warned:
            _warned.add("none")
            logger.warning(
                "isolation=none | commands run with the rights of this process: its files, its network, its user; "
                "disk_mb, processes and network=False are not enforced"
            )
        id = new_id()
        interpreter = os.path.abspath(python or sys.executable)
        folder = reaper.record(id, "folder")
        root, programs = folder / "work", folder / "bin"
        try:
            root.mkdir()
            programs.mkdir()
            (programs / "python").symlink_to(interpreter)  # as in a box; a system's may have another name
            arguments = profile.worker_arguments(str(root), False, limits)
            channel = launch([interpreter, "-I", "-S", worker.__file__, *arguments], None, [])
        except BaseException:
            await reaper.forget(id)
            raise
        path = f"{os.path.dirname(interpreter)}:{SYSTEM_PATH}:{programs}"
        base = {"PATH": path, "HOME": str(root), "TMPDIR": str(root), "LANG": "C.UTF-8"}
        return await cls(limits, root, base | dict(env), channel, id=id)._begin()

    async def close(self) -> None:
        """End its processes and delete its folder."""
        await super().close()
        await reaper.forget(self.id)
