"""What model calls cost: prices by provider and name of the model, where the provider reports no cost.

The table that comes with the package (`prices.json`) is dated and names its sources. A file of the same form takes
precedence for the models that it names: `AWORLD_PRICES=prices.json`, or `prices=` in the settings of a model;
`llm_input_price` and `llm_output_price` take precedence over both. Providers have further prices (batches, long-lived
caches, tools of their own) that no table here knows: the bill is theirs.
"""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from aworld.core.exceptions import ConfigError
from aworld.core.message import Usage

HOW_TO_PRICE = (
    "set llm_input_price and llm_output_price (US dollars for a million tokens; 0 for a server of your own), or name a "
    "file of prices with AWORLD_PRICES"
)

_SNAPSHOT = re.compile(r"-(latest|\d{4}-?\d\d-?\d\d)$")
_Dollars = Annotated[float, Meta(ge=0)]


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars for a million tokens."""

    input: _Dollars = 0.0
    output: _Dollars = 0.0
    cached: _Dollars | None = None
    """Of input that was read from the provider's cache; as `input` where it is not said."""
    cache_write: _Dollars | None = None
    """Of input that was written to it; the same."""
    beyond: int | None = None
    """Input tokens beyond which all of a call costs what `then` says."""
    then: Price | None = None
    reported: bool = False
    """Whether the provider says itself what a call costs."""
    source: str | None = None
    """Where the prices come from, for the record."""

    def priced(self, usage: Usage) -> Usage:
        """The usage with its cost, where that is known."""
        read, output = usage.input_tokens, usage.output_tokens
        if self.reported or read is None or output is None:
            return usage
        price = self.then if self.then is not None and self.beyond is not None and read > self.beyond else self
        cached, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
        cost = (
            max(read - cached - written, 0) * price.input
            + cached * (price.input if price.cached is None else price.cached)
            + written * (price.input if price.cache_write is None else price.cache_write)
            + output * price.output
        )
        return replace(usage, cost=cost / 1_000_000, prices=self.source)


FREE = Price()
"""Of models in this process: they cost no money."""


class PriceTable(Struct, forbid_unknown_fields=True):
    """A file of prices."""

    date: str
    """The day of the table; the sources may say more."""
    prices: dict[str, dict[str, Price]]
    """By provider, and by the model's name, without the date of a snapshot. `*` in it stands for anything, and the
    longest that fits counts."""
    sources: dict[str, str] = {}


def price_of(provider: str, name: str, file: str | None = None) -> Price | None:
    """The price of a model; None when no table has it. Raises `ConfigError` for a file that is no table.

    What LiteLLM calls `openai/gpt-4o` is `gpt-4o` of `openai`.
    """
    return _price_of(provider, name, file, os.environ.get("AWORLD_PRICES"))


@lru_cache(maxsize=256)
def _price_of(provider: str, name: str, *files: str | None) -> Price | None:
    if provider == "litellm" and "/" in name:
        provider, _, name = name.partition("/")
    for path in filter(None, (*files, str(Path(__file__).with_name("prices.json")))):
        table = _table(path)
        names, plain = table.prices.get(provider, {}), _SNAPSHOT.sub("", name)
        if fitting := [one for one in names if fnmatchcase(name, one) or fnmatchcase(plain, one)]:
            return replace(names[max(fitting, key=len)], source=f"table of {table.date}")
    return None


@lru_cache(maxsize=8)
def _table(path: str) -> PriceTable:
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=PriceTable)
    except OSError as error:
        raise ConfigError(f"prices={path!r}: {error.strerror}.", setting="prices") from error
    except msgspec.MsgspecError as error:
        form = '{"date": "2026-11-28", "prices": {"openai": {"my-model*": {"input": 2.5, "output": 10}}}}'
        raise ConfigError(f"prices={path!r} is no table of prices: {error}. It looks like {form}.") from error
