"""From settings and environment to a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import aworld.models
from aworld.agents.llm_agent import Agent
from aworld.config.conf import AgentConfig, ModelConfig
from aworld.config.errors import ConfigError
from aworld.core.message import Message
from aworld.core.model import ModelRequest
from aworld.models import (
    AnthropicModel,
    AzureModel,
    OpenAIModel,
    ScriptedModel,
    build_model,
    known_providers,
    register_provider,
)
from aworld.models.providers import _models, _providers, recorded
from aworld.models.remote_model import RemoteModel
from aworld.runner import Runners

from .provider import Provider, answer, chat

VARIABLES = [
    *("LLM_PROVIDER", "LLM_MODEL_NAME", "LLM_API_KEY", "LLM_BASE_URL", "LLM_TEMPERATURE"),
    *(f"{p}_{v}" for p in ("OPENAI", "ANTHROPIC", "OPENROUTER", "DEEPSEEK", "DASHSCOPE", "OLLAMA", "VLLM", "GEMINI")
      for v in ("API_KEY", "BASE_URL")),
    *("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "OPENAI_API_VERSION", "GOOGLE_API_KEY"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def built(config: ModelConfig | str) -> OpenAIModel:
    model = build_model(config)
    assert isinstance(model, OpenAIModel)
    return model


def key_of(model: RemoteModel) -> str | None:
    return model.config.llm_api_key


def test_everything_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_MODEL_NAME", "gpt-4")
    monkeypatch.setenv("LLM_API_KEY", "sk-env\n")
    monkeypatch.setenv("LLM_BASE_URL", "https://gate.example/v1")
    monkeypatch.setenv("LLM_TEMPERATURE", "0.25")
    model = built(ModelConfig())
    assert (model.provider, model.name, model.url) == ("openai", "gpt-4", "https://gate.example/v1/chat/completions")
    assert (model.params, key_of(model)) == ({"temperature": 0.25}, "sk-env")
    # Settings win, and the environment is read at each call.
    own = built(ModelConfig(llm_model_name="own", llm_api_key="sk-own", llm_temperature=0.0))
    assert (own.name, key_of(own), own.params) == ("own", "sk-own", {"temperature": 0.0})
    monkeypatch.setenv("LLM_MODEL_NAME", "gpt-5")
    assert build_model(ModelConfig()).name == "gpt-5"


def test_the_providers_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://eu.example/v1")
    model = built("gpt-4o")
    assert (key_of(model), model.url) == ("sk-openai", "https://eu.example/v1/chat/completions")
    monkeypatch.setenv("LLM_API_KEY", "sk-llm")
    assert key_of(built("gpt-4o")) == "sk-llm"


PRESETS = {
    "openai": ("OPENAI_API_KEY", "https://api.openai.com/v1/chat/completions"),
    "openrouter": ("OPENROUTER_API_KEY", "https://openrouter.ai/api/v1/chat/completions"),
    "deepseek": ("DEEPSEEK_API_KEY", "https://api.deepseek.com/v1/chat/completions"),
    "qwen": ("DASHSCOPE_API_KEY", "https://dashscope.aliyuncs.com/compatible-mode/v1/chat/completions"),
    "anthropic": ("ANTHROPIC_API_KEY", "https://api.anthropic.com/v1/messages"),
    "openai-responses": ("OPENAI_API_KEY", "https://api.openai.com/v1/responses"),
    "gemini": (
        "GEMINI_API_KEY",
        "https://generativelanguage.googleapis.com/v1beta/models/m:generateContent",
    ),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_know_address_and_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, url = PRESETS[name]
    with pytest.raises(ConfigError, match=rf"No API key for {name}: set LLM_API_KEY or {variable}"):
        build_model(ModelConfig(llm_provider=name, llm_model_name="m"))
    monkeypatch.setenv(variable, "sk-own")
    model = build_model(ModelConfig(llm_provider=name, llm_model_name="m"))
    assert isinstance(model, RemoteModel)
    assert (model.provider, model.url, key_of(model)) == (name, url, "sk-own")


def test_google_keys_have_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "of-google")
    model = build_model("gemini:gemini-3-pro")
    assert isinstance(model, RemoteModel)
    assert (key_of(model), model.name) == ("of-google", "gemini-3-pro")
    monkeypatch.setenv("GEMINI_API_KEY", "of-gemini")
    again = build_model("gemini:gemini-3-pro")
    assert isinstance(again, RemoteModel)
    assert key_of(again) == "of-gemini"
    assert key_of(built(ModelConfig(llm_model_name="m", llm_base_url="http://localhost/v1"))) is None


@pytest.mark.parametrize(("name", "port"), [("ollama", 11434), ("vllm", 8000)])
def test_local_servers_need_no_key(name: str, port: int) -> None:
    assert built(f"{name}:qwen3:8b").url == f"http://localhost:{port}/v1/chat/completions"
    assert built(f"{name}:qwen3:8b").name == "qwen3:8b"


async def test_without_a_key_nothing_is_sent() -> None:
    async with Provider(answer(chat())) as provider:
        await build_model(provider.config()).generate(ModelRequest(messages=(Message("user", "hi"),)))
        assert "authorization" not in provider.requests[0].headers


def test_azure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "k")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://me.openai.azure.com")
    monkeypatch.setenv("OPENAI_API_VERSION", "2025-01-01")
    model = build_model("azure:gpt-4o")
    assert isinstance(model, AzureModel)
    assert model.url.endswith("me.openai.azure.com/openai/deployments/gpt-4o/chat/completions?api-version=2025-01-01")


def test_a_key_does_not_go_to_another_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "openai")
    monkeypatch.setenv("LLM_API_KEY", "sk-for-openai")
    monkeypatch.setenv("LLM_BASE_URL", "https://openai.example/v1")
    with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY"):
        build_model("anthropic:claude")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant")
    monkeypatch.delenv("LLM_PROVIDER")
    model = build_model("anthropic:claude")
    assert isinstance(model, AnthropicModel)
    assert (key_of(model), model.url) == ("sk-ant", "https://api.anthropic.com/v1/messages")
    # One set of variables and no other: they are meant for whatever is asked.
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.delenv("LLM_BASE_URL")
    model = build_model("anthropic:claude")
    assert isinstance(model, AnthropicModel)
    assert key_of(model) == "sk-for-openai"


def checkpoint(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "runs/none",
            r"'runs/none' is no folder of a policy: there is no such folder\. If .* 'openai:runs/none'\.$",
        ),
        (
            "runs/empty",
            r"'runs/empty' is no folder of a policy: neither it nor its policy/ has a model\..*\. If",
        ),
        ("ollam:qwen3", r"'ollam' is no provider; did you mean 'ollama'\? If it is .* such as 'openai:ollam:qwen3'\.$"),
        ("opnai:gpt-4o", r"'opnai' is no provider; did you mean 'openai'\?"),
        ("foo:bar", r"'foo' is no provider; known are: anthropic, .*vllm\. If it is the name of a model"),
        ("./runs/none", r"'./runs/none' is no folder of a policy: there is no such folder\. Give the run_path"),
        ("./empty", r"'./empty' is no folder of a policy: neither it nor its policy/ has"),
    ],
)
@pytest.mark.parametrize("key", ["", "sk-own"])
def test_a_mistyped_folder_or_provider_is_told(
    model: str, said: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", key)  # it is never asked for as a model, whoever could answer
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=said):
        build_model(model)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("empty", r"If the folder 'empty' was meant: neither it nor its policy/ has a model.safetensors\.$"),
        ("gpt-4o", r"or AgentConfig\(llm_api_key=\.\.\.\)$"),
        ("openai:runs/none", r"or AgentConfig\(llm_api_key=\.\.\.\)$"),
    ],
)
def test_a_name_without_a_key_says_what_is_missing(
    model: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=said):
        build_model(model)


def test_a_name_with_a_slash_or_a_colon_is_a_model_where_somebody_can_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Qwen/Qwen2.5-0.5B-Instruct", "qwen3:8b"):
        assert built(ModelConfig(llm_model_name=name, llm_base_url="http://localhost:8000/v1")).name == name
    monkeypatch.setenv("OPENAI_API_KEY", "sk-own")
    assert built("openai:ft:gpt-4o:me").name == "ft:gpt-4o:me"


def test_a_training_run_without_a_policy_says_so_even_with_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-own")
    (tmp_path / "runs" / "w").mkdir(parents=True)
    (tmp_path / "runs" / "w" / "run.json").touch()
    with pytest.raises(ConfigError, match=r"'runs/w': no policy there yet.*; it has no checkpoint yet either\."):
        build_model("runs/w")
    for step in (5, 20, 100):
        checkpoint(tmp_path / "runs" / "w" / "checkpoints" / f"checkpoint-{step}")
    (tmp_path / "runs" / "w" / "checkpoints" / "checkpoint-200").mkdir()
    with pytest.raises(ConfigError, match=r"its newest checkpoint is 'runs/w/checkpoints/checkpoint-100'\."):
        build_model("runs/w")


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({}, r"No model name: set LLM_MODEL_NAME or AgentConfig\(llm_model_name=...\)"),
    ({"llm_provider": "antropic", "llm_model_name": "m"}, "Unknown provider 'antropic'.*did you mean 'anthropic'"),
    ({"llm_provider": "zzz", "llm_model_name": "m"}, "Unknown provider 'zzz'.*Known are: .*openai"),
    ({"llm_model_name": "m", "llm_base_url": "localhost:8000/v1"}, "must begin with http"),
    ({"llm_provider": "azure", "llm_model_name": "m"}, "AZURE_OPENAI_ENDPOINT"),
]


@pytest.mark.parametrize(("settings", "text"), MISTAKES)
def test_mistakes_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_model(ModelConfig(**settings))


def test_a_temperature_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_TEMPERATURE", "warm")
    with pytest.raises(ConfigError, match="LLM_TEMPERATURE must be a number, and is 'warm'"):
        build_model("ollama:m")


def test_equal_settings_give_the_same_model() -> None:
    config = ModelConfig(llm_provider="ollama", llm_model_name="m", params={"top_k": 1})
    model = build_model(config)
    assert build_model(config) is model
    assert build_model(ModelConfig(llm_provider="ollama", llm_model_name="m", params={"top_k": 1})) is model
    config.params["top_k"] = 2  # a change in place is a change
    assert build_model(config).params == {"top_k": 2}
    assert model.params == {"top_k": 1}
    for number in range(600):
        build_model(f"ollama:m{number}")
    assert len(_models) <= 256


def test_plug_ins() -> None:
    register_provider("mine", lambda config: ScriptedModel(["hi"], name=config.llm_model_name or ""))
    try:
        model = build_model("mine:actor")
        assert isinstance(model, ScriptedModel)
        assert model.name == "actor"
        assert build_model("mine:actor") is model
        assert "mine" in known_providers()
    finally:
        del _providers["mine"]


def test_the_public_names() -> None:
    assert sorted(dir(aworld.models)) == [
        "AnthropicModel",
        "AzureModel",
        "CallFailed",
        "CodeExecution",
        "Fallback",
        "FunctionModel",
        "Limits",
        "LiteLLMModel",
        "OpenAIModel",
        "Outcome",
        "Retry",
        "ScriptedModel",
        "WebSearch",
        "build_model",
        "call_model",
        "close_transports",
        "known_providers",
        "native_uses",
        "register_provider",
    ]
    assert all(getattr(aworld.models, name) is not None for name in dir(aworld.models))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = aworld.models.nothing


def test_importing_costs_no_http_client_and_no_sdk() -> None:
    code = (
        "import sys, aworld.models; from aworld.models import build_model, call_model, ScriptedModel;"
        "build_model('ollama:m'); print([m for m in ('aiohttp', 'openai', 'litellm', 'yarl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


KEYS = ("LLM_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "VLLM_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY")


@pytest.mark.parametrize("name", [None, "openai", "openai-responses", "anthropic", "gemini", "vllm", "azure"])
@pytest.mark.parametrize("own", [{}, {"LLM_PROVIDER": "openai", "LLM_BASE_URL": "https://mine.example/v1"}])
async def test_no_key_goes_to_an_address_out_of_a_record(
    name: str | None, own: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in KEYS:
        monkeypatch.setenv(variable, "sk-VICTIM")
    for variable, value in own.items():
        monkeypatch.setenv(variable, value)
    async with Provider() as stranger:
        settings = {"llm_provider": name, "llm_model_name": "m", "llm_base_url": stranger.base_url}
        for config in (
            AgentConfig(llm_config=recorded(settings)),
            AgentConfig(llm_config=recorded(settings), llm_temperature=0.5),
            AgentConfig(llm_config=AgentConfig(llm_config=recorded(settings)).llm_config.model_copy(deep=True)),
        ):
            with pytest.raises(ConfigError, match=f"{stranger.base_url}.*--base-url"):
                await Runners.run("hi", agent=Agent("a", config))
        assert stranger.connections == 0


async def test_an_address_that_the_caller_names_too_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Provider(answer(chat()), answer(chat())) as provider:
        settings = {"llm_model_name": "m", "llm_base_url": provider.base_url, "llm_headers": {"X-Mark": "theirs"}}
        await built(recorded(settings, base_url=provider.base_url)).generate(ModelRequest((Message("user", "hi"),)))
        with pytest.raises(ConfigError, match="which your settings do not name"):
            build_model(recorded(settings))
        monkeypatch.setenv("LLM_BASE_URL", f"{provider.base_url}/")
        await built(recorded(settings)).generate(ModelRequest((Message("user", "hi"),)))
        assert [asked.headers.get("x-mark") for asked in provider.requests] == [None, None]
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-mine")
    theirs = {"llm_provider": "openrouter", "llm_model_name": "m", "llm_base_url": "https://openrouter.ai/api/v1"}
    assert key_of(built(recorded(theirs))) == "sk-mine"


@pytest.mark.parametrize(
    "settings",
    [
        {"llm_model_name": "huggingface/https://stranger.example/m"},
        {"params": {"api_base": "https://stranger.example"}},
        {"params": {"extra": [{"deep": "http://stranger.example"}]}},
    ],
)
def test_an_address_in_another_setting_of_a_record_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="which your settings do not name"):
        recorded({"llm_provider": "litellm", "llm_model_name": "m", **settings})
    with pytest.raises(ConfigError, match="llm_max_retries"):
        recorded({"llm_max_retries": "many"})


def test_a_record_does_not_choose_to_whom_a_key_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"llm_provider": "deepseek", "llm_model_name": "m"}
    monkeypatch.setenv("LLM_API_KEY", "sk-of-openai")
    with pytest.raises(ConfigError, match="may be another provider's: set DEEPSEEK_API_KEY"):
        build_model(recorded(theirs))
    assert key_of(built(recorded(theirs, provider="deepseek"))) == "sk-of-openai"
    changed = recorded(theirs, provider="openrouter")
    changed.llm_provider = "openrouter"  # as --model does
    assert key_of(built(changed)) == "sk-of-openai"
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-of-deepseek")
    assert key_of(built(recorded(theirs))) == "sk-of-deepseek"
    monkeypatch.delenv("DEEPSEEK_API_KEY")
    monkeypatch.setenv("LLM_PROVIDER", "deepseek")
    assert key_of(built(recorded(theirs))) == "sk-of-openai"
