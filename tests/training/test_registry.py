"""Engines by name, and the settings of a run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from aworld.core.exceptions import ConfigError
from aworld.training import TrainingConfig, known_engines, register_processor, registry
from aworld.training.registry import TrainingJob, engine_of
from aworld.training.result import TrainingResult
from aworld.training.training_config import training_config


class Mine:
    name = "mine"

    def check(self, job: TrainingJob) -> None:
        pass

    async def train(self, job: TrainingJob) -> TrainingResult:
        return TrainingResult(engine="mine", policy=str(job.policy_path), run_path=str(job.run_path))


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_engines", dict(registry._engines))


def test_an_engine_of_ones_own() -> None:
    register_processor("mine", Mine)
    assert "mine" in known_engines()
    assert isinstance(engine_of("mine"), Mine)


def test_an_engine_by_its_address_is_imported_when_used() -> None:
    register_processor("mine", f"{__name__}:Mine")
    assert engine_of("mine").name == "mine"


def test_an_installed_package_adds_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "trainers-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: trainers\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        f"[aworld.train_engines]\nours = {__name__}:Mine\nembedded = {__name__}:Mine\nbroken = {__name__}:Nobody\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert known_engines() == ["broken", "embedded", "ours", "swift", "trl", "verl"]
    assert isinstance(engine_of("ours"), Mine)
    assert engine_of("embedded").name == "embedded", "an engine of ours is not replaced by a package"
    with pytest.raises(ConfigError, match=r"train_engine_name='broken'.* has no attribute 'Nobody'"):
        engine_of("broken")


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    froms = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return froms | {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}


def test_adapters_to_other_trainers_are_named_in_the_registry_alone() -> None:
    root = Path(registry.__file__).parents[1]
    adapters = ("aworld.training.swift", "aworld.training.trl", "aworld.training.verl", "aworld.training.vllm_server")
    for path in root.rglob("*.py"):
        home = ".".join(("aworld", *path.relative_to(root).with_suffix("").parts))
        own = next((adapter for adapter in adapters if home.startswith(adapter)), None)
        others = tuple(adapter for adapter in adapters if adapter != own)
        assert not [name for name in imports_of(path) if name.startswith(others)], home


def test_an_unknown_engine_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'swift'"):
        engine_of("swfit")
    with pytest.raises(ConfigError, match="Known are: embedded"):
        engine_of("deepspeed-chat")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engine_that_needs.py").write_text("import a_package_that_is_not_there")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    register_processor("needy", "engine_that_needs:Engine")
    with pytest.raises(ConfigError, match="a_package_that_is_not_there"):
        engine_of("needy")


@pytest.mark.parametrize("factory", ["no address", 7])
def test_a_factory_that_cannot_be_one(factory: object) -> None:
    with pytest.raises(ConfigError, match="mine"):
        register_processor("mine", factory)  # pyright: ignore[reportArgumentType]


def test_no_engine_is_imported_before_it_is_used() -> None:
    code = "import sys, aworld.training as t; t.known_engines(); t.TrainingConfig(); print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_config_in_four_forms(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("steps: 7\nlearning_rate: 0.001\nfilters: [no_variance]\n")
    wanted = TrainingConfig(steps=7, learning_rate=1e-3, filters=("no_variance",))
    assert training_config(path) == training_config(str(path)) == training_config(wanted) == wanted
    assert training_config({"steps": 7, "learning_rate": 1e-3, "filters": ["no_variance"]}) == wanted
    assert training_config(None).groups == 24


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"step": 3}, "did you mean 'steps'"),
        ({"samples": 0}, "samples"),
        ({"temperature": 0}, "temperature"),
        ({"evaluation_modes": []}, "greedy and sampled"),
        ("nowhere.yaml", "nowhere.yaml"),
        (7, "config takes"),
    ],
)
def test_a_config_that_cannot_work_names_the_setting(given: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        training_config(given)


def test_a_config_file_that_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("- steps\n")
    with pytest.raises(ConfigError, match="mapping"):
        training_config(path)
