"""Keys and values of beginnings that come again: system prompts, the questions of a group, conversations that go on."""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

from aworld.models.embedded.transformer import Array, Past

Prefix = tuple[int, ...]


class Known(Struct, frozen=True):
    """What was computed of a beginning."""

    past: Past
    """Of as many positions as it says: all of the beginning, or all but its last token."""
    hidden: Array | None = None
    """The hidden state of its last token, from which the next one is sampled; None when it was not computed."""


class PrefixMemory:
    """Beginnings by their ids; the longest unused are forgotten when `limit` bytes are full."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._known: OrderedDict[Prefix, Known] = OrderedDict()

    def find(self, ids: Prefix) -> Known | None:
        """What is known of exactly this beginning."""
        known = self._known.get(ids)
        if known is not None:
            self._known.move_to_end(ids)
        return known

    def keep(self, ids: Prefix, known: Known) -> None:
        """Remember a beginning."""
        earlier = self._known.pop(ids, None)
        if earlier is not None:
            self.nbytes -= earlier.past.nbytes
        self._known[ids] = known
        self.nbytes += known.past.nbytes
        while self.nbytes > self.limit and len(self._known) > 1:
            self.nbytes -= self._known.popitem(last=False)[1].past.nbytes

    def __len__(self) -> int:
        return len(self._known)
