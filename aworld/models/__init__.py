"""Models: providers behind the one contract of `aworld.core.model`.

`build_model` makes a model out of settings; `call_model` asks it, with retries and limits; the doubles in
`aworld.models.doubles` answer without a network. Nothing here imports a vendor's SDK, and the HTTP client only at the
first request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aworld.core.lazy import exports

if TYPE_CHECKING:
    from aworld.models.anthropic import AnthropicModel as AnthropicModel
    from aworld.models.call import CallFailed as CallFailed
    from aworld.models.call import Outcome as Outcome
    from aworld.models.call import Retry as Retry
    from aworld.models.call import call_model as call_model
    from aworld.models.doubles import FunctionModel as FunctionModel
    from aworld.models.doubles import ScriptedModel as ScriptedModel
    from aworld.models.fallback import Fallback as Fallback
    from aworld.models.http import close_transports as close_transports
    from aworld.models.limiter import Limits as Limits
    from aworld.models.litellm import LiteLLMModel as LiteLLMModel
    from aworld.models.native_tools import CodeExecution as CodeExecution
    from aworld.models.native_tools import WebSearch as WebSearch
    from aworld.models.native_tools import native_uses as native_uses
    from aworld.models.openai import AzureModel as AzureModel
    from aworld.models.openai import OpenAIModel as OpenAIModel
    from aworld.models.providers import build_model as build_model
    from aworld.models.providers import known_providers as known_providers
    from aworld.models.providers import register_provider as register_provider

__getattr__, __dir__ = exports(__name__)
