"""What the rooms share in refusing, in importing what is optional, and in listing what a package offers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aworld.config import AgentConfig, ModelConfig, TaskConfig
from aworld.core.checks import known_keys, nearest, one_of, positive, unique
from aworld.core.exceptions import AWorldError, ConfigError, TaskError
from aworld.core.extras import has, import_extra


def made_of(kind: Callable[..., Any], **settings: Any) -> Any:
    return kind(**settings)


@pytest.mark.parametrize(
    ("check", "text", "setting"),
    [
        (lambda: one_of("mode", "gredy", ["greedy", "all"]), "'gredy' is not known; did you mean 'greedy'?", "mode"),
        (lambda: one_of("mode", 7, ["a", "b"]), "mode=7 is not known; known are: a, b.", "mode"),
        (lambda: known_keys("Shop", {"pric": 1}, ["price"]), "has no setting 'pric'; did you mean 'price'?", "pric"),
        (
            lambda: known_keys("Shop", ["x"], ["price"], "column", ConfigError, "See the page."),
            "Shop has no column 'x'; known are: price. See the page.",
            "x",
        ),
        (lambda: positive("n", 0), "n=0: a number, more than zero.", "n"),
        (lambda: positive("n", float("nan"), zero=True), "n=nan: a number, zero or more.", "n"),
        (lambda: positive("n", True, whole=True), "n=True: a whole number, more than zero.", "n"),
        (lambda: made_of(TaskConfig, max_stps=3), "'max_stps'; did you mean 'max_steps'?", "max_stps"),
        (lambda: made_of(ModelConfig, zzz=1), " Extras that only the provider knows go into params={...}.", "zzz"),
        (lambda: setattr(AgentConfig(), "llm_temprature", 1), "did you mean 'llm_temperature'?", "llm_temprature"),
    ],
)  # fmt: skip
def test_refusals_name_the_setting_and_the_remedy(check: Callable[[], Any], text: str, setting: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check()
    assert text in str(refused.value)
    assert refused.value.setting == setting


def test_what_is_right_comes_back() -> None:
    assert one_of("mode", "a", "abc") == "a"
    assert (positive("n", 0.5), positive("n", 0, zero=True), positive("n", 3, whole=True)) == (0.5, 0, 3)
    assert unique("Two agents have the name", ["a", "b"]) == ["a", "b"]
    assert nearest("Bezier", ["bezier", "spline"]) == "bezier"
    known_keys("Shop", {"price": 1}, ["price"])


def test_errors_are_of_the_kind_that_is_asked_for() -> None:
    with pytest.raises(TaskError, match="Two tasks have the id 'a'; give each its own"):
        unique("Two tasks have the id", ["a", "b", "a"], TaskError)


def test_a_missing_package_is_named_with_what_to_install() -> None:
    assert has("json")
    assert not has("aworld_has_no_such_package")
    with pytest.raises(
        AWorldError, match=r'format=x needs aworld_has_no_such_package; install it with pip .*"other>=2"$'
    ) as e:
        import_extra("aworld_has_no_such_package.part", "format=x", "one>=1", "other>=2")
    assert e.value.remedy == 'pip install "one>=1" "other>=2"'


def test_the_names_of_a_package_are_those_that_it_imports_for_type_checkers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lazy_shop"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from aworld.core.lazy import exports\n"
        "if TYPE_CHECKING:\n"
        "    from lazy_shop.prices import price as price\n"
        "    from lazy_shop.prices import total as total\n"
        "__getattr__, __dir__ = exports(__name__)\n"
    )
    (folder / "prices.py").write_text("price = 3\ntotal = sum\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    shop: Any = __import__("lazy_shop")
    assert dir(shop) == ["price", "total"]
    assert "lazy_shop.prices" not in sys.modules
    assert shop.price == 3
    assert shop.__dict__["price"] == 3  # the second time nothing is looked up
    everything: dict[str, Any] = {}
    exec("from lazy_shop import *", everything)
    assert {"price", "total"} <= everything.keys()
    with pytest.raises(AttributeError, match="'lazy_shop' has no attribute 'cost'"):
        _ = shop.cost
