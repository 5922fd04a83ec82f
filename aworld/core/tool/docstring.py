"""What a docstring tells a model: the text, and what it says of each parameter."""

from __future__ import annotations

import inspect
import re
from typing import Any, Literal

_SPHINX = re.compile(r"^\s*:(param|parameter|arg|argument|key|keyword|returns?|raises?|r?type)\b.*:", re.MULTILINE)
_NUMPY = re.compile(r"^\s*(Other Parameters|Parameters|Returns|Raises|Yields|Examples?)[ \t]*\n\s*-{3,}", re.MULTILINE)
_GOOGLE = re.compile(
    r"^\s*(Args|Arguments|Params|Parameters|Keyword Args|Keyword Arguments|Other Parameters|Returns|Raises|Yields"
    r"|Examples?):[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)


def read_docstring(text: str | None) -> tuple[str, dict[str, str]]:
    """The description (summary, body and result; no parameters, no exceptions) and the descriptions of parameters.

    Reads the Google, NumPy and Sphinx styles by griffe, which is imported only for a docstring that has sections.
    """
    text = inspect.cleandoc(text or "")
    style = _style(text)
    if style is None:
        return text, {}
    from griffe import Docstring

    body: list[str] = []
    parameters: dict[str, str] = {}
    for section in Docstring(text).parse(style, warnings=False):
        kind, value = section.kind.value, section.value
        if kind in ("parameters", "other parameters"):
            parameters.update({p.name.lstrip("*"): p.description.strip() for p in value if p.description})
        else:
            body.append(_render(kind, section.title, value))
    return "\n\n".join(part for part in body if part), parameters


def _style(text: str) -> Literal["google", "numpy", "sphinx"] | None:
    if _NUMPY.search(text):
        return "numpy"
    if _SPHINX.search(text):
        return "sphinx"
    return "google" if _GOOGLE.search(text) else None


def _render(kind: str, title: str | None, value: Any) -> str:
    """A section as text for the model; what it cannot use (exceptions, attributes) is left out."""
    if kind == "text":
        return value.strip()
    if kind == "admonition":
        return f"{title or value.kind.capitalize()}:\n{value.contents}".strip()
    if kind == "examples":
        return "Examples:\n" + "\n".join(text for _, text in value)
    if kind == "returns":
        described = "\n".join(item.description.strip() for item in value if item.description)
        return f"Returns: {described}" if described else ""
    return ""
