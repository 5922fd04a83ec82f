"""What a docstring tells a model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aworld.core.tool.docstring import read_docstring

GOOGLE = """Look up the weather.

    Only for today.

    Args:
        city: The city, in English,
            without the country.
        unit (str): Celsius or Fahrenheit.

    Returns:
        The temperature.

    Raises:
        KeyError: for an unknown city.

    Note:
        Slow in winter.
    """

NUMPY = """Look up the weather.

    Only for today.

    Parameters
    ----------
    city : str
        The city, in English,
        without the country.
    unit : str, optional
        Celsius or Fahrenheit.

    Returns
    -------
    float
        The temperature.
    """

SPHINX = """Look up the weather.

    Only for today.

    :param city: The city, in English,
        without the country.
    :param str unit: Celsius or Fahrenheit.
    :returns: The temperature.
    :raises KeyError: for an unknown city.
    """


@pytest.mark.parametrize("text", [GOOGLE, NUMPY, SPHINX], ids=["google", "numpy", "sphinx"])
def test_each_style_gives_the_same_description_and_parameters(text: str) -> None:
    description, parameters = read_docstring(text)
    assert description.startswith("Look up the weather.\n\nOnly for today.\n\nReturns: The temperature.")
    assert "KeyError" not in description
    assert "city" not in description
    assert {name: " ".join(said.split()) for name, said in parameters.items()} == {
        "city": "The city, in English, without the country.",
        "unit": "Celsius or Fahrenheit.",
    }


def test_notes_stay_in_the_description() -> None:
    assert read_docstring(GOOGLE)[0].endswith("Note:\nSlow in winter.")


def test_examples_stay_in_the_description() -> None:
    numpy = read_docstring("Add.\n\nExamples\n--------\n>>> add(1)\n2\n")[0]
    google = read_docstring("Add.\n\nExamples:\n    >>> add(1)\n    2\n")[0]
    assert numpy == google == "Add.\n\nExamples:\n>>> add(1)\n2"


@pytest.mark.parametrize("text", ["Just a line.", "Times: 10:30 and so on.\n\n    Indented: yes.", "", None])
def test_a_docstring_without_sections_is_taken_whole(text: str | None) -> None:
    description, parameters = read_docstring(text)
    assert description == (text or "").replace("    ", "")
    assert parameters == {}


_PLAIN = """
import sys
from aworld.core.tool import tool

@tool
def add(a: int) -> int:
    "Add one."
    return a

assert add.parameters["properties"] == {"a": {"type": "integer"}} and add.description == "Add one."

@tool
def sub(a: int) -> int:
    '''Take one.

    Args:
        a: From what.
    '''
    return a

assert "griffe" not in sys.modules
assert sub.parameters["properties"]["a"]["description"] == "From what."
assert "griffe" in sys.modules
"""


def test_griffe_is_loaded_for_sections_only_and_only_when_they_are_asked_for() -> None:
    subprocess.run([sys.executable, "-c", _PLAIN], check=True, timeout=60)
