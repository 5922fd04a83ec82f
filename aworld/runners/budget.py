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
from aworld.core.exceptions import BudgetUsed, ConfigError, LimitReached, UsageUnknown
from aworld.core.message import Usage
from aworld.core.task import Task, TaskResponse
from aworld.core.trajectory import Spending
from aworld.models.prices import FREE, HOW_TO_PRICE

_NOTHING = Usage(total_tokens=0, cost=0.0)


def check_spending(limits: TaskConfig | RunConfig, spending: Spending) -> None:
    """Raise `LimitReached`, which names the setting, where nothing is left; `UsageUnknown` where that is not known."""
    shared = isinstance(limits, RunConfig)
    for name, limit, spent, said, unknown, what, remedy in (
        ("max_tokens", limits.max_tokens, spending.tokens, f"{spending.tokens} tokens used", spending.uncounted,
         "usage", "leave max_tokens out, or ask a server that reports usage"),
        ("max_cost", limits.max_cost, spending.cost, f"{spending.cost:.6f} US dollars spent", spending.unpriced,
         "cost", HOW_TO_PRICE),
    ):  # fmt: skip
        if limit is None:
            continue
        setting = f"RunConfig({name}={limit})" if shared else f"{name}={limit}"
        if unknown is not None:
            text = f"{setting} is set, but {unknown[0]} reported no {what} for step {unknown[1]}: {remedy}."
            raise UsageUnknown(name, text, remedy=remedy)
        if round(spent, 9) >= limit:  # ten times 0.1 is 1
            if shared:
                raise BudgetUsed(name, f"{setting} reached: {said} by all runs; a larger one goes on.")
            raise LimitReached(name, f"{setting} reached: {said}.")


def check_prices(task: Task, units: Iterable[Any]) -> None:
    """Raise `ConfigError`, before anything is paid, where money is limited and a model has no known price. One that
    says nothing of prices may report its cost itself."""
    if task.conf.max_cost is None and (task.share is None or task.share.conf.max_cost is None):
        return
    for model in filter(None, (getattr(unit, "model", None) for unit in units)):
        for asked in model.members() if hasattr(model, "members") else [model]:  # those that a fallback may ask
            if getattr(asked, "price", FREE) is None:
                text = f"max_cost is set, and no price of {asked.provider}:{asked.name} is known: {HOW_TO_PRICE}."
                raise ConfigError(text, setting="max_cost", remedy=HOW_TO_PRICE)


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

    async def reserve(self, *, begin: bool = False) -> Usage:
        """Wait for room for one call; what is set aside for it. Raises `LimitReached` when the budget is used up.

        A run that is to begin waits behind those that have: so more of them come to their end."""
        while True:
            check_spending(self.conf, self.spending)
            if self._room() > 0:
                self._open += 1
                return self.largest or _NOTHING
            turn = asyncio.get_running_loop().create_future()
            (self._waiting.append if begin else self._waiting.appendleft)(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._wake()  # it may have been this one's turn
                raise

    def settle(self, used: Usage | None, who: str = "", step: int = 0) -> None:
        """A call is over; None for one that was not answered."""
        self._open -= 1
        if used not in (None, _NOTHING):  # the first call may be cut off
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
        self._open = 0

    async def reserve(self) -> Usage:
        """See `Budget.reserve`."""
        held, self._held = self._held, None
        amount = held or await self._budget.reserve()
        self._open += 1
        return amount

    def settle(self, used: Usage | None, who: str = "", step: int = 0) -> None:
        """See `Budget.settle`."""
        self._open -= 1
        self._budget.settle(used, who, step)

    def leave(self) -> None:
        """The run is over, or its process is: it may have asked no model, or have left calls without a word."""
        if self._held is not None:
            self._held = self._budget.settle(None)
        while self._open:
            self.settle(self._budget.largest)
