"""The vectors of a store in one array, so that a search is one product: exact, and 1.6 ms for 10,000 items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aworld.core.exceptions import ConfigError
from aworld.core.memory import MemoryFilter

try:
    import numpy as np
except ImportError as error:
    raise ConfigError("embedding_config: vectors are searched with NumPy; install it: pip install numpy") from error

OWNERS = ("user_id", "session_id", "agent_id", "team")
COLUMNS = "key, vector, thread, user_id, session_id, agent_id, team, kind, scope, expires_at"
_CODED = ("thread", *OWNERS, "kind", "scope")
_GATHER = 0.4
"""Share of the items below which it is faster to copy the vectors that are meant than to multiply all."""


class Matrix:
    """The vectors of the items that hold, in the order of their keys, and what filters ask of each.

    Owners, kinds and scopes are numbers here, so that a filter is a few comparisons of arrays.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.last = 0
        """The newest key that is in."""
        self._count = 0
        self._keys = np.empty(0, np.int64)
        self._vectors = np.empty((0, 0), np.float32)
        self._expiry = np.empty(0, np.float64)
        self._codes = np.empty((0, len(_CODED)), np.int32)
        self._beside = np.empty((0, 2), np.int64)
        """Rows of the turns before and after, -1 where there is none."""
        self._numbers: dict[tuple[str, Any], int] = {}
        self._ends: dict[int, int] = {}
        """The latest row of each thread."""

    def extend(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Take in items, `COLUMNS` of each, with keys above `last`."""
        start, count = self._count, self._count + len(rows)
        vectors = np.frombuffer(b"".join([row[1] for row in rows]), np.float32).reshape(len(rows), -1)
        if count > len(self._keys):
            self._grow(max(count, 2 * len(self._keys)), vectors.shape[1])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._vectors[start:count] = vectors / np.maximum(lengths, 1e-12)
        self._keys[start:count] = [row[0] for row in rows]
        self._expiry[start:count] = [row[9] or np.inf for row in rows]
        for place, name in enumerate(_CODED):
            self._codes[start:count, place] = [self._number(name, row[place + 2]) for row in rows]
        self._beside[start:count] = -1
        for at, thread in enumerate(self._codes[start:count, 0].tolist(), start):
            if thread:
                before = self._ends.get(thread, -1)
                self._beside[at, 0] = before
                if before >= 0:
                    self._beside[before, 1] = at
                self._ends[thread] = at
        self._count, self.last = count, int(self._keys[count - 1])

    def search(
        self, vector: bytes, which: MemoryFilter, limit: int, others: Sequence[int], now: float
    ) -> tuple[dict[int, float], dict[int, float]]:
        """Cosines of the nearest items, by key, and of them with the turns beside them; of `others` too."""
        if not self._count:
            return {}, {}
        query = np.frombuffer(vector, np.float32)
        query = query / max(float(np.linalg.norm(query)), 1e-12)
        mask = self._meant(which, now)
        rows = np.flatnonzero(mask)
        cosines = np.full(self._count + 1, np.nan, np.float32)  # the last one is that of the row -1: there is none
        if len(rows) < _GATHER * self._count:
            cosines[rows] = np.take(self._vectors, rows, axis=0) @ query
        else:
            cosines[:-1] = self._vectors[: self._count] @ query
            cosines[:-1][~mask] = np.nan
        values = cosines[rows]
        best = rows if len(rows) <= limit else rows[np.argpartition(-values, limit)[:limit]]
        places = np.searchsorted(self._keys[: self._count], np.array(others, np.int64))
        places = places[places < self._count]
        wanted = np.union1d(best, places[np.isin(self._keys[places], others)])
        wanted = wanted[~np.isnan(cosines[wanted])]
        three = np.column_stack([cosines[wanted], cosines[self._beside[wanted]]])
        keys = self._keys[wanted].tolist()
        return dict(zip(keys, three[:, 0].tolist())), dict(zip(keys, np.nanmean(three, axis=1).tolist()))

    def _meant(self, which: MemoryFilter, now: float) -> Any:
        codes = self._codes[: self._count]
        mask = self._expiry[: self._count] > now
        if which.owners:
            same = np.ones(self._count, bool)
            for name, value in which.owners.items():
                same &= codes[:, _CODED.index(name)] == self._numbers.get((name, value), -1)
            mask &= same | (codes[:, _CODED.index("scope")] == self._numbers.get(("scope", "global"), -1))
        for name, values in (("kind", which.kinds), ("scope", which.scopes)):
            if values:
                numbers = [self._numbers.get((name, value), -1) for value in values]
                mask &= np.isin(codes[:, _CODED.index(name)], numbers)
        return mask

    def _number(self, name: str, value: Any) -> int:
        return 0 if value is None else self._numbers.setdefault((name, value), len(self._numbers) + 1)

    def _grow(self, size: int, dimensions: int) -> None:
        for name in ("_keys", "_vectors", "_expiry", "_codes", "_beside"):
            old = getattr(self, name)
            width = (dimensions,) if name == "_vectors" else old.shape[1:]
            new = np.empty((size, *width), old.dtype, order="F" if name == "_codes" else "C")
            if self._count:
                new[: self._count] = old[: self._count]
            setattr(self, name, new)
