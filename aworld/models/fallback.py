"""Several models behind one: the first is asked, and for errors of some kinds the next.

`Agent(model=["openai:gpt-4o", "anthropic:claude-sonnet-4-5"])` is short for `Agent(model=Fallback([...]))`. Each model
is asked with its own retries and limits; which failed, and why, is on record (`model_call.attempts`), and the call has
the name of the one that answered. In a stream the event of a retry tells the reader that what was shown is void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from msgspec import structs

from aworld.core.checks import one_of, typed
from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.model import Delta, Model, ModelReply, ModelRequest
from aworld.models.call import CallFailed, Outcome, Tries, call_model
from aworld.models.native_tools import open_settings
from aworld.models.providers import build_model

ErrorKind: TypeAlias = Literal["connection", "rate_limit", "server", "auth", "not_found", "bad_request"]
"""`connection`: no answer in time, or none that can be read; `rate_limit` (429); `server` (5xx, overload); `auth` (401,
402, 403: a key, or money); `not_found` (404, such as the model); `bad_request`: any other."""

UNAVAILABLE: tuple[ErrorKind, ...] = ("connection", "rate_limit", "server")
"""What says that a provider cannot serve now, whatever it is asked."""

_KINDS: dict[int, ErrorKind] = {
    401: "auth", 402: "auth", 403: "auth", 404: "not_found", 408: "connection", 409: "server", 429: "rate_limit",
}  # fmt: skip


def kind_of(error: ModelError) -> ErrorKind:
    """What kind of failure of a model call it was."""
    if error.status is None:
        return "connection" if error.retryable else "bad_request"
    return "server" if error.status >= 500 else _KINDS.get(error.status, "bad_request")


class Fallback:
    """A model that asks others, one after the other. A value, as every model is.

    Args:
        models: Models, short forms such as `"openai:gpt-4o"`, or folders of policies; the first is asked first.
        on: Which failures lead to the next: kinds, or a function of the `ModelError`. By default those that say that
            a provider cannot serve: no connection, time-outs, rate limits, overload. What a provider refuses to do is
            refused.

    Raises:
        ConfigError: There is no model, or no such kind.
    """

    provider = "fallback"

    @typed()
    def __init__(
        self,
        models: Sequence[Model | str | Path],
        on: str | Sequence[str] | Callable[[ModelError], bool] = UNAVAILABLE,
    ) -> None:
        if not models:
            raise ConfigError("Fallback: models=[]; give a list of models, the first to be asked first.")
        self.models = tuple(str(m.expanduser().absolute()) if isinstance(m, Path) else m for m in models)
        self.names = tuple(model if isinstance(model, str) else label(model) for model in self.models)
        """The models as they are called."""
        self.name = ", ".join(self.names)
        self.on = on if callable(on) else (on,) if isinstance(on, str) else tuple(on)
        for kind in () if callable(self.on) else self.on:
            one_of("Fallback: on", kind, get_args(ErrorKind))
        self.params: dict[str, Any] = {}
        self.settings: Mapping[str, Any] = {}
        """What is sent to each, where it does not say otherwise itself."""

    def members(self) -> list[Model]:
        """The models. Raises ConfigError for one that cannot be had."""
        return [build_model(model) if isinstance(model, str) else model for model in self.models]

    def built(self, build: Callable[[str], Model], settings: Mapping[str, Any]) -> Fallback:
        """The same of models that exist: those that are named are made by `build`. Raises ConfigError."""
        other = Fallback([build(model) if isinstance(model, str) else model for model in self.models], self.on)
        other.settings = settings
        for model in other.members():
            open_settings(model, settings)
        return other

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Answer once. Raises `ModelError`."""
        return (await self.ask_each(request)).reply

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """Answer once, and hand on each piece as it comes. Raises `ModelError`."""
        return (await self.ask_each(request, on_delta)).reply

    async def ask_each(
        self,
        request: ModelRequest,
        on_delta: Callable[[Delta], None] | None = None,
        on_retry: Callable[[ModelError, float], None] | None = None,
    ) -> Outcome:
        """Ask one after the other; what `call_model` does for this model. Raises `CallFailed`, which names each."""
        tries: list[tuple[Model, Tries]] = []
        failures: list[str] = []
        members = self.members()
        for model, following in zip_longest(members, members[1:]):
            asked = structs.replace(request, params={**open_settings(model, self.settings), **request.params})
            try:
                outcome = await call_model(model, asked, on_delta=on_delta, on_retry=on_retry)
            except CallFailed as failed:
                tries.append((model, failed.outcome))
                failures.append(f"{label(model)}: {failed}")
                if following is not None and self._falls(failed):
                    if on_retry is not None:
                        on_retry(ModelError(f"{failures[-1]}; now asking {label(following)}"), 0.0)
                    continue
                error, text = failed.error, "; ".join(failures)
                if len(failures) > 1:
                    error = ModelError(
                        text, status=error.status, retryable=error.retryable, retry_after=error.retry_after
                    )
                raise CallFailed(error, _joined(tries)) from failed
            what_it_took = structs.asdict(_joined([*tries, (model, outcome)]))
            return structs.replace(outcome, **what_it_took, asked=outcome.asked or (model, asked))
        raise AssertionError("there is a model")

    def _falls(self, error: ModelError) -> bool:
        return bool(self.on(error)) if callable(self.on) else kind_of(error) in self.on


def label(model: Model) -> str:
    """A model by its provider and name."""
    return f"{model.provider}:{model.name}"


def _joined(tries: Sequence[tuple[Model, Tries]]) -> Tries:
    attempts = [a if a.model else structs.replace(a, model=label(model)) for model, t in tries for a in t.attempts]
    return Tries(tuple(attempts), sum(t.queued for _, t in tries), tries[0][1].started, tries[-1][1].ended)
