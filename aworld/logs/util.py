"""The logger that scripts share: `from aworld.logs.util import logger`.

The library itself logs through `logging.getLogger(__name__)` and configures nothing. A script that imports this logger
wants to see its lines, so they go to standard error until the program configures logging itself.
"""

from __future__ import annotations

import logging


class _UntilConfigured(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to standard error as long as the root logger has no handler of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


logger = logging.getLogger("aworld.script")
if not logger.handlers:
    _handler = _UntilConfigured()
    _handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(_handler)
    logger.setLevel(logging.INFO)
