"""What may be spent: the limits of one run, and the budget that many runs share.

What a call of a model takes is known when it is over. So each call within a budget sets aside as much as the largest
until then took, and begins when that fits in beside the calls under way; else it waits until one of them is over. While
none is under way, a call begins as long as anything is left. So the first call of all goes alone; a budget is used to
its end, and passed by at most the last call, and by what calls under way took beyond the largest before them.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable
from typing import Any

from aworld.config.conf import RunConfig, TaskConfig
from aworld.core.event import Status
from aworld.core.exceptions import BudgetUsed, LimitReached, UsageUnknown
from aworld.core.message import Usage
from aworld.core.task import Task, TaskResponse
from aworld.core.trajectory import Spending
from aworld.models.prices import HOW_TO_PRICE, check_price

_NOTHING = Usage(total_tokens=0, cost=0.0)


def check_spending(limits: TaskConfig | RunConfig, spending: Spending) -> None:
    """Raise `LimitReached`, which names the setting, where nothing is left; `UsageUnknown` where that is not known."""
    shared = isinstance(limits, RunConfig)
    error, whose = (BudgetUsed, "the budget of all runs, ") if shared else (LimitReached, "")
    more = "; what is left goes on with a larger one" if shared else ""
    for name, limit, unknown, spent, what, remedy in (
        ("max_tokens", limits.max_tokens, spending.uncounted, spending.tokens, f"{spending.tokens} tokens used",
         "leave max_tokens out, or ask a server that reports usage"),
        ("max_cost", limits.max_cost, spending.unpriced, spending.cost, f"{spending.cost:.6f} US dollars spent",
         HOW_TO_PRICE),
    ):  # fmt: skip
        if limit is None:
            continue
        if unknown is not None:
            kind = "usage" if name == "max_tokens" else "cost"
            text = f"{whose}{name} is set, but {unknown[0]} reported no {kind} for step {unknown[1]}: {remedy}."
            raise UsageUnknown(name, text[0].upper() + text[1:] if shared else text, remedy=remedy)
        if round(spent, 9) >= limit:  # ten times 0.1 is 1
            text = f"{whose}{name}={limit} reached: {what}{more}."
            raise error(name, text[0].upper() + text[1:] if shared else text)


def check_prices(task: Task, units: Iterable[Any]) -> None:
    """Raise `ConfigError`, before anything is paid, where money is limited and a model has no known price."""
    shared = task.share is not None and task.share.conf.max_cost is not None
    if task.conf.max_cost is None and not shared:
        return
    for unit in units:
        if (model := getattr(unit, "model", None)) is not None:
            check_price(model, "max_cost")


class Budget:
    """What the runs of one call of `Runners` share, on one event loop."""

    def __init__(self, conf: RunConfig) -> None:
        self.conf = conf
        self.spending = Spending()
        self.largest: Usage | None = None
        """The most tokens and the most money that a call took so far; None before the first."""
        self._open = 0
        """Calls that are under way, and those set aside for runs that begin."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def reserve(self) -> Usage:
        """Wait for room for one call; what is set aside for it. Raises `LimitReached` when the budget is used up."""
        while True:
            check_spending(self.conf, self.spending)
            if self._room() > 0:
                self._open += 1
                return self.largest or _NOTHING
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._wake()  # it may have been this one's turn
                raise

    def settle(self, used: Usage | None, who: str = "", step: int = 0) -> None:
        """A call is over; None for one that was not answered."""
        self._open -= 1
        if used is not None:
            self.spending.add(used, who, step)
            before = self.largest or _NOTHING
            tokens = used.total_tokens or (used.input_tokens or 0) + (used.output_tokens or 0)
            most = max(tokens, before.total_tokens or 0), max(used.cost or 0.0, before.cost or 0.0)
            self.largest = Usage(total_tokens=most[0], cost=most[1])
        self._wake()

    def _room(self) -> float:
        """How many more calls fit in."""
        conf, spending, largest = self.conf, self.spending, self.largest
        room = 0.0 if largest is None else math.inf
        if largest is not None and conf.max_tokens is not None and largest.total_tokens:
            room = (conf.max_tokens - spending.tokens) // largest.total_tokens - self._open
        if largest is not None and conf.max_cost is not None and largest.cost:
            room = min(room, ((conf.max_cost - spending.cost) / largest.cost + 1e-9) // 1 - self._open)
        return max(room, 0 if self._open else 1)

    def _wake(self) -> None:
        try:
            check_spending(self.conf, self.spending)
            room = self._room()
        except LimitReached:
            room = math.inf  # to be told so
        while self._waiting and room > 0:
            if not (turn := self._waiting.popleft()).done():
                turn.set_result(None)
                room -= 1


def status_of(reached: LimitReached) -> Status:
    """The status of a run that a limit stopped."""
    return "usage_unknown" if isinstance(reached, UsageUnknown) else "limit_reached"


def stopped_short(response: TaskResponse) -> bool:
    """Whether a run stopped for want of a budget or of figures, or did not begin: it can go on."""
    return response.status in ("limit_reached", "usage_unknown") and response.record.finished is None


class Share:
    """One run's part in a budget."""

    def __init__(self, budget: Budget, held: Usage | None = None) -> None:
        self.conf = budget.conf
        self._budget = budget
        self._held = held
        """What was set aside for its first call, before it began."""

    async def reserve(self) -> Usage:
        """See `Budget.reserve`."""
        held, self._held = self._held, None
        return held or await self._budget.reserve()

    def settle(self, used: Usage | None, who: str = "", step: int = 0) -> None:
        """See `Budget.settle`."""
        self._budget.settle(used, who, step)

    def leave(self, cut: int = 0) -> None:
        """The run is over. It may have asked no model; or calls of it were cut off, in a process that died."""
        if self._held is not None:
            self._held = self._budget.settle(None)
        for _ in range(cut):
            self._budget.settle(self._budget.largest)
