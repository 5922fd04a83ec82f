"""From settings to a model: which provider, where it lives, which key.

What the settings leave open comes from the environment, at the moment of the call: `LLM_PROVIDER`, `LLM_MODEL_NAME`,
`LLM_API_KEY`, `LLM_BASE_URL`, `LLM_TEMPERATURE`, then the variables of the provider itself. When settings name another
provider than the environment does, the `LLM_*` key and address are not its own, and are left alone: a key never goes
to a stranger.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, TypeAlias, cast

from msgspec import Struct
from pydantic import Field

from aworld.config.conf import ModelConfig, ToolMode
from aworld.core.checks import hint, nearest
from aworld.core.exceptions import ConfigError
from aworld.core.model import Model
from aworld.models.native_tools import check_settings

_WEIGHTS = "model.safetensors"
_SMALL = 256
"""Width of the widest policy that is answered for by NumPy unless `transformers:` is said."""
_REMEDY = "Give the run_path of a finished training run, a checkpoint's folder, or 'provider:name'."

Factory: TypeAlias = Callable[[ModelConfig], Model]

_CACHED = 256
"""Models kept for equal settings. They are small; a process with more distinct settings builds some of them again."""


class Provider(Struct, frozen=True):
    """How a provider is reached."""

    factory: Factory
    key_variable: str = ""
    url_variable: str = ""
    base_url: str | None = None
    needs_key: bool = False
    """Whether `base_url`, the provider's own address, asks for a key. Other addresses are never refused for one."""
    second_key_variable: str = ""
    """Another name of the variable with the key."""
    local_name: str | None = None
    """The model that answers when none is named, of a provider inside this process: it has no key and no address, and
    the `LLM_*` variables that speak of those are not for it."""
    state: Callable[[str], object] | None = None
    """What equal settings do not tell of a model, such as when its file was written; with another, it is built anew."""

    def own_key(self) -> str | None:
        """The key in the provider's own variables."""
        return os.environ.get(self.key_variable) or os.environ.get(self.second_key_variable) or None


def _lazy(module: str, name: str, **more: Any) -> Factory:
    """What makes a model, imported when the first one is asked for."""
    return lambda config: getattr(import_module(f"aworld.models.{module}"), name)(config, **more)


def _remote(factory: Factory, prefix: str, base_url: str, second: str = "", *, needs_key: bool = True) -> Provider:
    return Provider(factory, f"{prefix}_API_KEY", f"{prefix}_BASE_URL", base_url, needs_key, second)


def _chat(name: str, prefix: str, base_url: str, needs_key: bool = True) -> Provider:
    return _remote(_lazy("openai", "OpenAIModel", provider=name), prefix, base_url, needs_key=needs_key)


def _written(folder: str) -> object:
    """When the weights of a checkpoint were written; None for the packaged policy."""
    try:
        file = os.stat(os.path.join(folder, _WEIGHTS))
    except OSError:
        return None
    return file.st_mtime_ns, file.st_size, file.st_ino


_providers: dict[str, Provider] = {
    "openai": _chat("openai", "OPENAI", "https://api.openai.com/v1"),
    "openai-responses": _remote(_lazy("openai_responses", "ResponsesModel"), "OPENAI", "https://api.openai.com/v1"),
    "openrouter": _chat("openrouter", "OPENROUTER", "https://openrouter.ai/api/v1"),
    "deepseek": _chat("deepseek", "DEEPSEEK", "https://api.deepseek.com/v1"),
    "qwen": _chat("qwen", "DASHSCOPE", "https://dashscope.aliyuncs.com/compatible-mode/v1"),
    "ollama": _chat("ollama", "OLLAMA", "http://localhost:11434/v1", needs_key=False),
    "vllm": _chat("vllm", "VLLM", "http://localhost:8000/v1", needs_key=False),
    "azure": Provider(_lazy("openai", "AzureModel"), "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT"),
    "anthropic": _remote(_lazy("anthropic", "AnthropicModel"), "ANTHROPIC", "https://api.anthropic.com"),
    "gemini": _remote(
        _lazy("gemini", "GeminiModel"), "GEMINI", "https://generativelanguage.googleapis.com/v1beta", "GOOGLE_API_KEY"
    ),
    "litellm": Provider(_lazy("litellm", "LiteLLMModel")),
    "transformers": Provider(_lazy("torch_model", "torch_model"), state=_written),
    "local": Provider(_lazy("local_model", "LocalModel"), local_name="smollm2-135m-instruct", state=lambda name: name),
    "embedded": Provider(_lazy("embedded.embedded_model", "embedded_model"), local_name="packaged", state=_written),
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


class RecordedConfig(ModelConfig):
    """Settings of a model out of a record. Where a model is made of them, they are refused unless address and key are
    those that the settings of this machine bring together."""

    named_provider: str | None = Field(default=None, exclude=True)
    """The provider that the caller names."""


def recorded(settings: Mapping[str, Any], *, base_url: str | None = None, provider: str | None = None) -> ModelConfig:
    """The settings of a model as a record holds them, for whoever goes on with it here.

    A record may be a stranger's, so no key of this machine goes to an address in it, nor does a conversation:
    `build_model` refuses an address that neither the environment nor `base_url` names, and the key in `LLM_API_KEY`
    for a provider that neither `LLM_PROVIDER` nor `provider` names; the two arguments are the caller's own word. Keys
    and headers of a record are left out. Raises `ConfigError`.
    """
    names = ModelConfig.model_fields.keys() - {"llm_api_key", "llm_headers", "prices"}
    config: dict[str, Any] = {name: value for name, value in settings.items() if name in names}
    for name, value in config.items():
        for address in _addresses(value) if name != "llm_base_url" else ():
            if address.rstrip("/") != (base_url or "").rstrip("/"):
                raise _strange(address, "LLM_BASE_URL")
    if base_url:
        config["llm_base_url"] = base_url
        return ModelConfig(**config)
    return RecordedConfig(**config, named_provider=provider)


def build_model(config: ModelConfig | str) -> Model:
    """The model of these settings, the same one for equal settings.

    A string is a model's name (`"gpt-4o"`), a provider and a name (`"ollama:qwen3:8b"`), a provider that needs no name
    (`"embedded"`), or the folder of a checkpoint or of a training run, which the embedded model answers from. A name
    with a slash or a colon needs its provider before it (`"openai:Qwen/Qwen3-8B"`), so that a mistyped folder or
    provider is never asked for as a model. Raises `ConfigError`, which names what to set.
    """
    if isinstance(config, str):
        config = named_model(config)
    name = config.provider
    provider = _providers.get(name)
    if provider is None:
        raise ConfigError(_unknown(name))
    open_settings = _environment(config, name, provider)
    if isinstance(config, RecordedConfig):
        _refuse_strange(config, name, provider)
    # Settings may change between calls, so the key is what they hold, not which object they are: a model is a value,
    # and two with equal settings share their connections and limits.
    settings = [v if v is None or isinstance(v, str | int | float) else repr(v) for v in config.__dict__.values()]
    state = provider.state and provider.state(open_settings["llm_model_name"] or "")
    key = (name, state, *open_settings.values(), *settings)
    model = _models.get(key)
    if model is None:
        model = _with_tools(provider.factory(_resolved(config, name, provider, open_settings)), config.llm_tool_mode)
        check_settings(model, config.sampling())
        if len(_models) >= _CACHED:
            _models.pop(next(iter(_models)))
        _models[key] = model
    return model


def _with_tools(model: Model, mode: ToolMode) -> Model:
    """The model with tools offered as the settings say; by itself, in words where it has no native calls."""
    if mode == "auto":
        mode = "structured" if model.provider == "local" else "native"
    if mode == "native":
        return model
    from aworld.models.tool_mode import ToolsByText

    return ToolsByText(model, mode)


def named_model(text: str) -> ModelConfig:
    """Provider and name of the text that `build_model` takes; what it leaves open stays open. Raises `ConfigError` for
    a folder without a policy, and for what looks like a folder or a provider and is none."""
    provider, colon, name = text.partition(":")
    if colon and provider in _providers:
        return ModelConfig(
            llm_provider=provider, llm_model_name=(in_process(provider) and _policy_folder(name)) or name
        )
    if text in _providers and _providers[text].local_name:
        return ModelConfig(llm_provider=text, llm_model_name=_providers[text].local_name)
    folder = _policy_folder(text)
    if folder is not None:
        return ModelConfig(llm_provider=_provider_of(folder), llm_model_name=folder)
    if wrong := _without_policy(text):
        raise ConfigError(wrong)
    return ModelConfig(llm_model_name=text)


def in_process(provider: str) -> bool:
    """Whether a provider answers inside this process: it has no address."""
    return provider in _providers and _providers[provider].state is not None


def _environment(config: ModelConfig, name: str, provider: Provider) -> dict[str, str | None]:
    """What the environment gives for the settings that are open."""
    local, own_url = provider.local_name, os.environ.get(provider.url_variable)
    own_key = provider.own_key()
    chosen = os.environ.get("LLM_PROVIDER")
    # `LLM_*` speak of the provider that the environment names; if it names none, of whichever has no key of its own.
    # One inside this process is meant only where it is named.
    shared = chosen == name if local else name == (chosen or "openai") or (not chosen and own_key is None)
    variables: Mapping[str, str] = os.environ if shared else {}
    return {
        "llm_model_name": config.llm_model_name or variables.get("LLM_MODEL_NAME") or local,
        "llm_api_key": None if local else config.llm_api_key or variables.get("LLM_API_KEY") or own_key,
        "llm_base_url": None if local else config.llm_base_url or variables.get("LLM_BASE_URL") or own_url,
        "llm_temperature": os.environ.get("LLM_TEMPERATURE") if config.llm_temperature is None else None,
        "llm_api_version": os.environ.get("OPENAI_API_VERSION") if name == "azure" else None,
    }


def _refuse_strange(config: RecordedConfig, name: str, provider: Provider) -> None:
    """An address of a record is taken where this machine's own settings lead to the same, and a key where it is that of
    the provider."""
    address, variable = config.llm_base_url, provider.url_variable or "LLM_BASE_URL"
    own = _environment(config.model_copy(update={"llm_base_url": None}), name, provider)
    url = own["llm_base_url"]
    trusted = {(one or "").rstrip("/") for one in (url, provider.base_url)}
    if address is not None and address.rstrip("/") not in trusted:
        raise _strange(address, variable)
    meant = name in (os.environ.get("LLM_PROVIDER") or "openai", config.named_provider)
    if own["llm_api_key"] and url is None and not meant and not provider.own_key():
        raise ConfigError(
            f"The record asks {name}, and the key in LLM_API_KEY may be another provider's: set "
            f"{provider.key_variable or 'LLM_PROVIDER'}, or say --model {name}:NAME.",
            setting="llm_provider", remedy=f"set {provider.key_variable or 'LLM_PROVIDER'}",
        )  # fmt: skip


def _addresses(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        fields = cast("dict[str, Any] | list[Any]", value)
        for part in fields.values() if isinstance(fields, dict) else fields:
            yield from _addresses(part)
    elif isinstance(value, str) and "://" in value:
        yield value


def _strange(address: str, variable: str) -> ConfigError:
    remedy = f"say --base-url {address}, or set {variable}"
    return ConfigError(
        f"The record asks a model at {address}, which your settings do not name: nothing goes there. If you trust it, "
        f"{remedy}.", setting="llm_base_url", remedy=remedy,
    )  # fmt: skip


def _resolved(config: ModelConfig, name: str, provider: Provider, rest: dict[str, str | None]) -> ModelConfig:
    """The settings with nothing left open; `rest` is what the environment gives. Raises `ConfigError`."""
    model, key, url = rest["llm_model_name"], rest["llm_api_key"], rest["llm_base_url"]
    if not model:
        raise without_name()
    url = (url or provider.base_url or "").strip() or None
    key = (key or "").strip() or None
    if provider.needs_key and not key and url is not None and url.rstrip("/") == provider.base_url:
        remedy = f"set LLM_API_KEY or {provider.key_variable}, or AgentConfig(llm_api_key=...)"
        empty = not config.llm_provider and os.path.isdir(os.path.expanduser(model))
        meant = f". If the folder {model!r} was meant: neither it nor its policy/ has a {_WEIGHTS}." if empty else ""
        text = f"No API key for {name}: {remedy}{meant}"
        raise ConfigError(text, setting="llm_api_key", remedy=remedy)
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigError(f"The base URL of {name} must begin with http:// or https:// (LLM_BASE_URL or llm_base_url)")
    temperature = config.llm_temperature
    if temperature is None and (text := rest["llm_temperature"]):
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
            "llm_api_version": config.llm_api_version or rest["llm_api_version"],
        },
    )


def without_name() -> ConfigError:
    """The error for settings that name no model."""
    remedy = "set LLM_MODEL_NAME or AgentConfig(llm_model_name=...)"
    return ConfigError(f"No model name: {remedy}", setting="llm_model_name", remedy=remedy)


def _unknown(name: str) -> str:
    near = nearest(name.lower(), _providers)
    meant = f"did you mean {near!r}?" if near else "any server with OpenAI's API is 'openai' with llm_base_url."
    return (
        f"Unknown provider {name!r} (LLM_PROVIDER or llm_provider); {meant} Known are: {', '.join(known_providers())}"
    )


def _policy_folder(text: str) -> str | None:
    """The folder of a policy: the one that is named, or `policy/` in that of a training run; None for neither."""
    path = os.path.expanduser(text)
    return next((folder for folder in (path, os.path.join(path, "policy")) if _has_weights(folder)), None)


def _provider_of(folder: str) -> str:
    """What answers for a policy in this process: NumPy where it is small and of the one kind that is computed there,
    else `transformers`."""
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            config = json_object(file.read(), path)
    except (OSError, ValueError):
        return "embedded"  # which says what is wrong with it
    ours = config.get("architectures") == ["Qwen2ForCausalLM"] and config.get("tie_word_embeddings") is False
    small = isinstance(width := config.get("hidden_size", 0), int) and width <= _SMALL
    return "embedded" if ours and small else "transformers"


def json_object(text: str | bytes, source: object) -> dict[str, Any]:
    """The object that a file holds, such as the `config.json` of a policy. Raises `ConfigError`."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{source} must hold an object; it holds {value!r:.40}.")
    return cast("dict[str, Any]", value)


def _without_policy(text: str) -> str | None:
    """What is wrong with a text that cannot be the name of a model alone: a path, a training run that has no policy
    yet, or something before a colon that is no provider."""
    path = os.path.expanduser(text)
    checkpoints = os.path.join(path, "checkpoints")
    if os.path.isfile(os.path.join(path, "run.json")) or os.path.isdir(checkpoints):
        newest = _newest(checkpoints)
        remedy = f"its newest checkpoint is {newest!r}" if newest else "it has no checkpoint yet either"
        return f"model={text!r}: no policy there yet, as the training run has not ended; {remedy}."
    provider, colon, _ = text.partition(":")
    name = f"{os.environ.get('LLM_PROVIDER') or 'openai'}:{text}"
    as_name = f"If it is the name of a model, put its provider before it, such as {name!r}."
    if colon and "/" not in provider:
        return f"model={text!r}: {provider!r} is no provider; {hint(provider.lower(), known_providers())} {as_name}"
    if not text.startswith("~") and "/" not in text:
        return None
    why = f"neither it nor its policy/ has a {_WEIGHTS}" if os.path.isdir(path) else "there is no such folder"
    remedy = _REMEDY if text.startswith(("/", "./", "../", "~")) else as_name
    return f"model={text!r} is no folder of a policy: {why}. {remedy}"


def _has_weights(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, _WEIGHTS))


def _newest(checkpoints: str) -> str | None:
    """The checkpoint of the latest step, by the number in its name; None when there is none that is whole."""
    if not os.path.isdir(checkpoints):
        return None
    numbered = [(int(step[1]), name) for name in os.listdir(checkpoints) if (step := re.fullmatch(r"\w+-(\d+)", name))]
    whole = [(step, folder) for step, name in numbered if _has_weights(folder := os.path.join(checkpoints, name))]
    return max(whole)[1] if whole else None
