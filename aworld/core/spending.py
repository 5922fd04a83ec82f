"""What the model calls of a run have used: a running sum, so that limits cost the same at any length of a run."""

from __future__ import annotations

from dataclasses import dataclass

from aworld.core.message import Usage


@dataclass(slots=True)
class Spending:
    """Tokens and money, and by whom neither was told. Unknown is not zero: a limit on it cannot be watched."""

    tokens: int = 0
    cost: float = 0.0
    """US dollars."""
    uncounted: tuple[str, int] | None = None
    """Who first reported no tokens, and in which step; None when all did."""
    unpriced: tuple[str, int] | None = None
    """The same of the cost."""

    def add(self, usage: Usage | None, who: str, step: int) -> None:
        """Count a call of a step."""
        usage = usage or Usage()
        if usage.total_tokens is None and usage.output_tokens is None:
            self.uncounted = self.uncounted or (who, step)
        self.tokens += usage.total_tokens or (usage.input_tokens or 0) + (usage.output_tokens or 0)
        if usage.cost is None:
            self.unpriced = self.unpriced or (who, step)
        self.cost += usage.cost or 0.0
