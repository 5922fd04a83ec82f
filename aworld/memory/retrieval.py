"""How what was found is ranked: a weighted sum of scores, each brought between 0 and 1 first.

On public conversations with labelled evidence, words of a turn find 62 % of it in the first ten, those of the turn with
its two neighbours 69 %, both and vectors 72 to 73 % (weighed .5 to 1); reciprocal ranks of words and vectors with equal
weight were worse than words alone. Recency and importance only decide between items that fit about as well.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from aworld.core.memory import MemoryFilter, MemoryItem

WEIGHTS = {"words": 1.0, "around": 0.5, "vector": 0.8, "vector_around": 0.4}
"""Of the item, and of it with the turns beside it."""
RECENCY = 0.02
"""What an item of this moment has over an old one, as a share of its score."""
IMPORTANCE = 0.05
"""What the most important item has over one of no importance."""
HALF_LIFE = 30 * 86400.0
"""Seconds after which recency counts half."""

_WORD = re.compile(r"\w+")
_SCRIPT = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af])")
"""Characters of scripts that put no spaces between words: each is a word of its own."""
_COMMON = frozenset(
    _WORD.findall(
        "a about am an and any are as at be been but by can could did do does for from had has have he her him his "
        "how i if in into is it its just me my of on or our she so some than that the their them then there these they "
        "this to too us was we were what when where which who whom whose why will with would you your"
    )
)
"""English words that stand in nearly every text: they tell little, and reading their lists takes the longest."""


def words_of(text: str) -> str:
    """A text as it is indexed."""
    return _SCRIPT.sub(r" \1 ", text)


def match_of(query: str, which: MemoryFilter) -> str | None:
    """The query in the language of FTS5: any of its words, of the items that the filter means; None without a word."""
    words = dict.fromkeys(_WORD.findall(words_of(query.lower())))
    telling = [word for word in words if word not in _COMMON] or list(words)
    if not telling:
        return None
    match = f"text : ({_any(telling)})"
    tags = [tag(name, value) for name, value in which.owners.items()]
    if tags:
        match += f' AND (tags : ("{tag("scope", "global")}" OR ({" AND ".join(tags)})))'
    for name, values in (("kind", which.kinds), ("scope", which.scopes)):
        if values:
            match += f" AND (tags : ({_any([tag(name, value) for value in values])}))"
    return match


def _any(words: Sequence[str]) -> str:
    return " OR ".join(f'"{word}"' for word in words)


def tags_of(item: MemoryItem) -> str:
    """What filters ask of an item, as words of an index: it is filtered as it is searched."""
    about = item.metadata
    owners = {"user_id": about.user_id, "session_id": about.session_id, "agent_id": about.agent_id, "team": about.team}
    named = {**owners, "kind": item.kind, "scope": item.scope}
    return " ".join(tag(name, value) for name, value in named.items() if value is not None)


def tag(name: str, value: str) -> str:
    """One of them: a letter and digits, which no stemmer changes."""
    return f"t{int.from_bytes(hashlib.blake2b(f'{name} {value}'.encode(), digest_size=8).digest())}"


def ranked(
    parts: Mapping[str, Mapping[int, float]], items: Mapping[int, tuple[float, float]], now: float, limit: int
) -> list[tuple[int, float]]:
    """The keys of the best `items`, with their scores, the best first; of equals the latest first.

    `parts` are the scores by each of `WEIGHTS`, by key; `items` the time and the importance of each.
    """
    fit = dict.fromkeys(items, 0.0)
    for part, scores in parts.items():
        values = [score for key, score in scores.items() if key in items]
        # What shares no word has 0 of words, and is not among them: that is the least there is.
        least = min(values, default=0.0) if part.startswith("vector") else 0.0
        if (most := max(values, default=0.0)) > least:
            factor = WEIGHTS.get(part, 0.0) / (most - least)
            for key, score in scores.items():
                if key in items:
                    fit[key] += (score - least) * factor
    for key, (created_at, importance) in items.items():
        recency = 0.5 ** (max(0.0, now - created_at) / HALF_LIFE)
        fit[key] *= 1 + RECENCY * recency + IMPORTANCE * (importance - 0.5)
    return sorted(fit.items(), key=lambda pair: (-pair[1], -pair[0]))[:limit]
