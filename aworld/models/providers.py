"""From settings to a model: which provider, where it lives, which key.

What the settings leave open comes from the environment, at the moment of the call: `LLM_PROVIDER`, `LLM_MODEL_NAME`,
`LLM_API_KEY`, `LLM_BASE_URL`, `LLM_TEMPERATURE`, then the variables of the provider itself. When settings name another
provider than the environment does, the `LLM_*` key and address are not its own, and are left alone: a key never goes
to a stranger.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from typing import Any, TypeAlias

from msgspec import Struct

from aworld.config.conf import ModelConfig
from aworld.config.errors import ConfigError
from aworld.core.model import Model
from aworld.models.policy_folders import if_a_folder_was_meant, policy_folder, provider_of, without_policy, written

Factory: TypeAlias = Callable[[ModelConfig], Model]

_CACHED = 256
"""Models kept for equal settings. They are small; a process with more distinct settings builds some of them again."""


class Provider(Struct, frozen=True):
    """How a provider is reached. `variables` is the prefix of its environment variables."""

    factory: Factory
    key_variables: tuple[str, ...] = ()
    url_variables: tuple[str, ...] = ()
    base_url: str | None = None
    needs_key: bool = False
    """Whether `base_url`, the provider's own address, asks for a key. Other addresses are never refused for one."""
    local_name: str | None = None
    """The model that answers when none is named, of a provider inside this process: it has no key and no address, and
    the `LLM_*` variables that speak of those are not for it."""
    state: Callable[[str], object] | None = None
    """What equal settings do not tell of a model, such as when its file was written; with another, it is built anew."""


def _chat(name: str) -> Factory:
    def build(config: ModelConfig) -> Model:
        from aworld.models.openai import OpenAIModel

        return OpenAIModel(config, provider=name)

    return build


def _azure(config: ModelConfig) -> Model:
    from aworld.models.openai import AzureModel

    return AzureModel(config)


def _anthropic(config: ModelConfig) -> Model:
    from aworld.models.anthropic import AnthropicModel

    return AnthropicModel(config)


def _litellm(config: ModelConfig) -> Model:
    from aworld.models.litellm import LiteLLMModel

    return LiteLLMModel(config)


def _transformers(config: ModelConfig) -> Model:
    from aworld.models.torch_model import torch_model

    return torch_model(config)


def _embedded(config: ModelConfig) -> Model:
    from aworld.models.embedded.embedded_model import embedded_model

    return embedded_model(config)


def _preset(name: str, prefix: str, base_url: str, *, needs_key: bool = True) -> Provider:
    return Provider(_chat(name), (f"{prefix}_API_KEY",), (f"{prefix}_BASE_URL",), base_url, needs_key)


_providers: dict[str, Provider] = {
    "openai": _preset("openai", "OPENAI", "https://api.openai.com/v1"),
    "azure": Provider(_azure, ("AZURE_OPENAI_API_KEY",), ("AZURE_OPENAI_ENDPOINT",)),
    "anthropic": Provider(
        _anthropic, ("ANTHROPIC_API_KEY",), ("ANTHROPIC_BASE_URL",), "https://api.anthropic.com", needs_key=True
    ),
    "openrouter": _preset("openrouter", "OPENROUTER", "https://openrouter.ai/api/v1"),
    "deepseek": _preset("deepseek", "DEEPSEEK", "https://api.deepseek.com/v1"),
    "qwen": _preset("qwen", "DASHSCOPE", "https://dashscope.aliyuncs.com/compatible-mode/v1"),
    "ollama": _preset("ollama", "OLLAMA", "http://localhost:11434/v1", needs_key=False),
    "vllm": _preset("vllm", "VLLM", "http://localhost:8000/v1", needs_key=False),
    "litellm": Provider(_litellm),
    "transformers": Provider(_transformers, state=written),
    "embedded": Provider(_embedded, local_name="packaged", state=written),
}

_models: dict[tuple[Any, ...], Model] = {}


def register_provider(name: str, factory: Factory) -> None:
    """Make `llm_provider=name` known. `factory` gets the settings, with the `LLM_*` variables filled in, and returns
    a `Model`; equal settings give the same model. An earlier provider of that name is replaced."""
    _providers[name] = Provider(factory)
    _models.clear()


def known_providers() -> list[str]:
    """The names that `llm_provider` takes."""
    return sorted(_providers)


def build_model(config: ModelConfig | str) -> Model:
    """The model of these settings, the same one for equal settings.

    A string is a model's name (`"gpt-4o"`), a provider and a name (`"ollama:qwen3:8b"`; the part before the first colon
    is a provider only when it is the name of one), a provider that needs no name (`"embedded"`), or the folder of a
    checkpoint or of a training run, which the embedded model answers from. Raises `ConfigError`, which names what to
    set.
    """
    if isinstance(config, str):
        config = named_model(config)
    name = config.provider
    provider = _providers.get(name)
    if provider is None:
        raise ConfigError(_unknown(name))
    found = _environment(config, name, provider)
    # Settings may change between calls, so the key is what they hold, not which object they are.
    settings = [v if v is None or isinstance(v, str | int | float) else repr(v) for v in config.__dict__.values()]
    state = provider.state and provider.state(found["llm_model_name"] or "")
    key = (name, state, *found.values(), *settings)
    model = _models.get(key)
    if model is None:
        model = provider.factory(_resolved(config, name, provider, found))
        if len(_models) >= _CACHED:
            _models.pop(next(iter(_models)))
        _models[key] = model
    return model


def named_model(text: str) -> ModelConfig:
    """Provider and name of the text that `build_model` takes; what it leaves open stays open. Raises `ConfigError` for
    a folder without a policy."""
    provider, colon, name = text.partition(":")
    if colon and provider in _providers:
        return ModelConfig(llm_provider=provider, llm_model_name=(in_process(provider) and policy_folder(name)) or name)
    if text in _providers and _providers[text].local_name:
        return ModelConfig(llm_provider=text, llm_model_name=_providers[text].local_name)
    folder = policy_folder(text)
    if folder is not None:
        return ModelConfig(llm_provider=provider_of(folder), llm_model_name=folder)
    if wrong := without_policy(text):
        raise ConfigError(wrong)
    return ModelConfig(llm_model_name=text)


def in_process(provider: str) -> bool:
    """Whether a provider answers inside this process: it has no address."""
    return provider in _providers and _providers[provider].state is not None


def _environment(config: ModelConfig, name: str, provider: Provider) -> dict[str, str | None]:
    """What the environment gives for the settings that are open."""
    if provider.local_name:
        own = os.environ.get("LLM_MODEL_NAME") if os.environ.get("LLM_PROVIDER") == name else None
        return {
            "llm_model_name": config.llm_model_name or own or provider.local_name,
            "llm_api_key": None,
            "llm_base_url": None,
            "llm_temperature": os.environ.get("LLM_TEMPERATURE") if config.llm_temperature is None else None,
            "llm_api_version": None,
        }
    own_key = _first(provider.key_variables)
    chosen = os.environ.get("LLM_PROVIDER")
    # `LLM_*` speak of the provider that the environment names; if it names none, of whichever has no key of its own.
    shared = name == (chosen or "openai") or (not chosen and own_key is None)
    common = os.environ.get if shared else _nothing
    return {
        "llm_model_name": config.llm_model_name or common("LLM_MODEL_NAME"),
        "llm_api_key": config.llm_api_key or common("LLM_API_KEY") or own_key,
        "llm_base_url": config.llm_base_url or common("LLM_BASE_URL") or _first(provider.url_variables),
        "llm_temperature": os.environ.get("LLM_TEMPERATURE") if config.llm_temperature is None else None,
        "llm_api_version": os.environ.get("OPENAI_API_VERSION") if name == "azure" else None,
    }


def _resolved(config: ModelConfig, name: str, provider: Provider, found: dict[str, str | None]) -> ModelConfig:
    """The settings with nothing left open. Raises `ConfigError` for what is missing."""
    model, key, url = found["llm_model_name"], found["llm_api_key"], found["llm_base_url"]
    if not model:
        raise ConfigError("No model name: set LLM_MODEL_NAME or AgentConfig(llm_model_name=...)")
    url = (url or provider.base_url or "").strip() or None
    key = (key or "").strip() or None
    if provider.needs_key and not key and url is not None and url.rstrip("/") == provider.base_url:
        told = f"No API key for {name}: set LLM_API_KEY or {provider.key_variables[0]}, or AgentConfig(llm_api_key=...)"
        meant = "" if config.llm_provider else _if_another_was_meant(model)
        raise ConfigError(f"{told}. {meant}" if meant else told)
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigError(f"The base URL of {name} must begin with http:// or https:// (LLM_BASE_URL or llm_base_url)")
    temperature = config.llm_temperature
    if temperature is None and (text := found["llm_temperature"]):
        try:
            temperature = float(text)
        except ValueError:
            raise ConfigError(f"LLM_TEMPERATURE must be a number, and is {text!r}") from None
    return config.model_copy(
        deep=True,
        update={
            "llm_provider": name,
            "llm_model_name": model,
            "llm_api_key": key,
            "llm_base_url": url,
            "llm_temperature": temperature,
            "llm_api_version": config.llm_api_version or found["llm_api_version"],
        },
    )


def _if_another_was_meant(model: str) -> str:
    """What may be wrong with a name that the default provider would have got: a sentence, or nothing."""
    provider, colon, _ = model.partition(":")
    if colon and "/" not in provider:
        near = difflib.get_close_matches(provider.lower(), _providers, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known_providers())}."
        return f"If {provider!r} was meant as a provider: there is none of that name; {hint}"
    return if_a_folder_was_meant(model)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), _providers, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "any server with OpenAI's API is 'openai' with llm_base_url."
    return f"Unknown provider {name!r} (LLM_PROVIDER or llm_provider); {hint} Known are: {', '.join(known_providers())}"


def _first(variables: tuple[str, ...]) -> str | None:
    for variable in variables:
        if value := os.environ.get(variable):
            return value
    return None


def _nothing(_: str) -> None:
    return None
