"""Policies on disk, the provider, and what is said of those that do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from aworld.agents.llm_agent import Agent
from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ConfigError
from aworld.models import build_model, known_providers
from aworld.models.embedded import tokenizer
from aworld.models.embedded.checkpoint import Policy
from aworld.models.embedded.embedded_model import EmbeddedModel
from aworld.runner import Runners
from aworld.training.vllm_server import VllmServer


def embedded(config: ModelConfig | str) -> EmbeddedModel:
    model = build_model(config)
    assert isinstance(model, EmbeddedModel)
    return model


def test_saved_and_opened(packaged: Policy, tmp_path: Path) -> None:
    moved = packaged.with_weights({k: v + 1 for k, v in packaged.weights.items()}, "17")
    again = Policy.open(moved.save(tmp_path / "new" / "folder"))
    assert (again.config, again.version) == (packaged.config, "17")
    assert again.tokenizer.data == packaged.tokenizer.data
    assert again.tokenizer.chat_template == packaged.tokenizer.chat_template
    assert all(np.array_equal(again.weights[name], moved.weights[name]) for name in moved.weights)
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [
        "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def edit(folder: Path, name: str, **changes: Any) -> None:
    found = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**found, **changes}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "Qwen2ForCausalLM only; this is LlamaForCausalLM"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings must be False"),
        ({"use_sliding_window": True}, "use_sliding_window must be False"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type must be 'default'"),
        ({"num_attention_heads": 3}, "heads must divide"),
        ({"hidden_size": "wide"}, "does not describe a policy"),
        ({"vocab_size": 512}, "not of one checkpoint"),
        ({"eos_token_id": 0}, "eos_token_id is 0, but <|im_end|> is 2"),
        ({"intermediate_size": 64}, "and the configuration says"),
        ({"num_hidden_layers": 9}, "lacks 'model.layers.3"),
        ({"num_hidden_layers": 1}, "has besides 'model.layers.1"),
    ],
)
def test_a_configuration_that_does_not_fit(packaged: Policy, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    edit(packaged.save(tmp_path), "config.json", **change)
    with pytest.raises(ConfigError, match=said.replace("|", r"\|")):
        Policy.open(tmp_path)


def test_files_that_are_missing_or_broken(packaged: Policy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No policy in .*config.json cannot be read"):
        Policy.open(tmp_path / "nowhere")
    folder = packaged.save(tmp_path)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="cannot be read as float32 safetensors"):
        Policy.open(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model.safetensors is missing"):
        Policy.open(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer.json cannot be read"):
        Policy.open(folder)
    (folder / "chat_template.jinja").write_text("{% if %}")
    packaged.save(tmp_path / "other")
    (tmp_path / "other" / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ConfigError, match=r"chat_template.jinja cannot be read"):
        Policy.open(tmp_path / "other")


def test_half_precision_weights(packaged: Policy, tmp_path: Path) -> None:
    folder = packaged.save(tmp_path)
    half = {
        name: weight.astype(np.float16) for name, weight in load((folder / "model.safetensors").read_bytes()).items()
    }
    (folder / "model.safetensors").write_bytes(save(half))
    assert {weight.dtype for weight in Policy.open(folder).weights.values()} == {np.dtype(np.float32)}


async def test_the_provider_needs_no_name_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLM_MODEL_NAME", "LLM_API_KEY", "LLM_BASE_URL", "LLM_TEMPERATURE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLM_PROVIDER", "embedded")
    assert "embedded" in known_providers()
    response = await Runners.run("Hello", agent=Agent("small"))
    assert response.success
    (call,) = response.record.calls.values()
    assert (call.provider, call.model) == ("embedded", "packaged")
    assert call.tokens is not None
    assert call.tokens.level == "tokens"
    monkeypatch.setenv("LLM_PROVIDER", "openai")
    monkeypatch.setenv("LLM_MODEL_NAME", "gpt-4o")
    assert embedded("embedded").name == "packaged"
    conf = ModelConfig(llm_provider="embedded", llm_temperature=0.5, llm_max_tokens=9, params={"top_p": 0.5})
    assert embedded(conf).params == {"temperature": 0.5, "max_tokens": 9, "top_p": 0.5}
    assert embedded(conf) is embedded(conf)


def test_a_folder_is_a_model(packaged: Policy, tmp_path: Path) -> None:
    folder = str(packaged.save(tmp_path))
    first = embedded(folder)
    assert (first.name, first.policy.version) == (folder, "0")
    assert embedded(folder) is embedded(f"embedded:{folder}")
    packaged.with_weights(packaged.weights, "1").save(folder)
    assert embedded(folder).policy.version == "1"
    with pytest.raises(ConfigError, match="No policy in nowhere"):
        build_model("embedded:nowhere")


def test_ready_soon() -> None:
    """In a fresh process, CPU seconds; 0.5 on an idle machine, nearly all of it imports."""
    code = "import time, aworld.models as m; m.build_model('embedded'); print(time.process_time())"
    spent = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(3)
    ]
    assert min(spent) < 1.0


def test_without_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['tokenizers'] = None\n"
        "import aworld.models as m\n"
        "try: m.build_model('embedded')\n"
        "except ValueError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "needs tokenizers" in said
    assert '"tokenizers>=0.20"' in said


def test_nothing_of_it_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, aworld.models, aworld.agents.llm_agent; print(sorted({'numpy', 'tokenizers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", "{", "is not JSON"),
        ("config.json", DEEP, "is not JSON"),
        ("config.json", "[1]", "must hold an object"),
        ("config.json", '{"architectures": ["Qwen2ForCausalLM"], "vocab_size": 1e999}', "does not describe a policy"),
        ("tokenizer.json", DEEP, "tokenizer.json cannot be read"),
        ("chat_template.jinja", "{{ " + "(" * 20_000, "chat_template.jinja cannot be read"),
        ("chat_template.jinja", "{% if true %}" * 20_000, "chat_template.jinja cannot be read"),
    ],
)
def test_files_of_a_stranger(packaged: Policy, tmp_path: Path, name: str, text: str, said: str) -> None:
    folder = packaged.save(tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        build_model(f"embedded:{folder}")
    if name == "config.json" and "Qwen2" not in text:  # no way to tell who might answer for it
        with pytest.raises(ConfigError, match=said):
            build_model(str(folder))


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 0}, {"hidden_size": -64}, {"max_position_embeddings": 10**15}]
)
def test_sizes_of_a_stranger(packaged: Policy, tmp_path: Path, change: dict[str, Any]) -> None:
    edit(packaged.save(tmp_path), "config.json", **change)
    with pytest.raises(ConfigError, match="does not describe a policy"):
        Policy.open(tmp_path)


@pytest.mark.parametrize(
    "weights",
    [(2**63).to_bytes(8, "little"), (2**62 - 1).to_bytes(8, "little") + b"{", (5).to_bytes(8, "little") + b"[[[[["],
)
def test_weights_of_a_stranger(packaged: Policy, tmp_path: Path, weights: bytes) -> None:
    (packaged.save(tmp_path) / "model.safetensors").write_bytes(weights)
    with pytest.raises(ConfigError, match="cannot be read as float32 safetensors"):
        Policy.open(tmp_path)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set r = range(9999) | list %}{% for i in r %}{% for j in r %}{% for k in r %}x" + "{% endfor %}" * 3,
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 60 }}{% endfor %}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ messages[0].content * 9999999999999 }}",
        "{{ [1] * 9999999999999 }}",
        "{{ messages[0].nothing.more }}",
    ],
)
async def test_a_template_of_a_stranger(
    packaged: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(tokenizer, "RENDER_TIME", 0.2)
    folder = packaged.save(tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    response = await Runners.run("Hello", agent=Agent("a", model=f"embedded:{folder}"))
    assert not response.success
    assert "The chat template cannot render these messages" in str(response.error)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ((2**63).to_bytes(8, "little"), "a header of 9223372036854775808 bytes"),
        ((len(DEEP)).to_bytes(8, "little") + DEEP.encode(), "is not JSON"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "a weight without a shape"),
        ((2).to_bytes(8, "little") + b"[]", "must hold an object"),
    ],
)
async def test_a_server_is_given_no_weights_of_a_stranger(
    packaged: Policy, tmp_path: Path, header: bytes, said: str
) -> None:
    served = packaged.save(tmp_path / "served")
    odd = packaged.save(tmp_path / "odd")
    (odd / "model.safetensors").write_bytes(header)
    with pytest.raises(ConfigError, match=said):
        await VllmServer("http://127.0.0.1:9/v1", served).reload(odd)
