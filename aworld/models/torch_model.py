"""Any causal language model of `transformers`, in this process: provider `transformers`.

    Agent("solver", model="transformers:path/of/a/checkpoint")

Calls that are in flight together are decoded together, in a thread of the model's own; the event loop stays free. A
trainer hands over the very module that it trains, so that the next call is answered by the newest weights.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.model import ModelRequest
from aworld.models.chat_tokens import ChatTokens
from aworld.models.token_model import Completion, Draft, Sampling, TokenModel, ends_of
from aworld.models.torch_decoding import complete, torch_package

if TYPE_CHECKING:
    from aworld.config.conf import ModelConfig

GATHER = 0.003
"""Seconds in which calls gather before an idle model begins to decode: tasks that were started together ask together,
and one prompt costs almost as much as thirty."""


class TorchModel(TokenModel):
    """A causal language model of `transformers`.

    Args:
        model: The module. It is put into evaluation mode for as long as it decodes.
        tokenizer: Its tokenizer, with a chat template.
        name: As the log names it.
        params: Sampling settings of every request, such as `temperature` and `max_tokens`.
        version: As the log names the weights.
        max_batch: Most prompts that are decoded together.
    """

    provider = "transformers"

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str = "", params: dict[str, Any] | None = None,
        version: str | None = None, max_batch: int = 128,
    ) -> None:  # fmt: skip
        context = getattr(model.config, "max_position_embeddings", None)
        ends = ends_of(tokenizer, getattr(model, "generation_config", None))
        if not ends:
            raise ConfigError("The tokenizer has no eos_token: nothing would end an answer. Set tokenizer.eos_token.")
        name = name or str(getattr(model.config, "name_or_path", "")) or "transformers"
        super().__init__(ChatTokens(tokenizer), name=name, ends=ends, context=context, params=params)
        self.module = model
        self.version = version
        self.max_batch = max_batch
        self._waiting: deque[tuple[Draft, Future[Draft]]] = deque()
        self._busy = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aworld-torch")
        weakref.finalize(self, self._thread.shutdown, wait=False)

    @classmethod
    def open(cls, path: str | Path, **settings: Any) -> TorchModel:
        """Load a checkpoint: a folder in the layout of Hugging Face. Raises ConfigError."""
        model, tokenizer = open_checkpoint(path)
        return cls(model, tokenizer, name=str(path), **settings)

    async def complete(self, prompt: tuple[int, ...], sampling: Sampling, request: ModelRequest) -> Completion:
        """Continue `prompt`, together with what else is asked for. Raises `ModelError`."""
        draft, done = Draft(prompt, sampling), Future[Draft]()
        self._waiting.append((draft, done))
        if not self._busy:
            asyncio.get_running_loop().call_later(GATHER, self._begin)
        await asyncio.wrap_future(done)
        return Completion(tuple(draft.ids), tuple(draft.logprobs), self.version)

    def _begin(self) -> None:
        if not self._busy:
            self._busy = True
            self._thread.submit(self._work)

    def _work(self) -> None:
        """Decode until nobody waits (in the thread)."""
        while True:
            calls = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.max_batch))]
            drafts = {draft: done for draft, done in calls if done.set_running_or_notify_cancel()}
            if drafts:
                self._decode(drafts)
            elif not self._waiting:
                self._busy = False
                if not self._waiting:  # who came in between saw a busy model, and began nothing
                    return
                self._busy = True

    def _decode(self, drafts: dict[Draft, Future[Draft]]) -> None:
        training = self.module.training
        self.module.eval()
        try:
            complete(self.module, list(drafts), self.ends, lambda draft: drafts[draft].set_result(draft))
        except Exception as error:  # noqa: BLE001 - out of memory, a broken module: each caller is told
            for done in drafts.values():
                if not done.done():
                    done.set_exception(ModelError(f"{self.name} failed: {type(error).__name__}: {error}"))
        finally:
            self.module.train(training)


def open_checkpoint(path: str | Path, **settings: Any) -> tuple[Any, Any]:
    """The module, in evaluation mode, and the tokenizer of a folder. `settings` go to `from_pretrained` of the module.

    Raises ConfigError for what is no checkpoint of a causal language model.
    """
    transformers = torch_package("transformers")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(str(path), **settings)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path))
        if _declared(Path(path)) in ("PreTrainedTokenizerFast", "TokenizersBackend"):
            # `AutoTokenizer` goes by the model's type, and for Qwen2 puts its own rule of splitting words in the place
            # of the one in tokenizer.json: other ids than the policy was made with.
            tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{str(path)!r} is no checkpoint of a causal language model: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval()
    return model, tokenizer


def _declared(folder: Path) -> str | None:
    """The class that a checkpoint names for its tokenizer."""
    try:
        return json.loads((folder / "tokenizer_config.json").read_bytes()).get("tokenizer_class")
    except (OSError, ValueError):
        return None


def torch_model(config: ModelConfig) -> TorchModel:
    """The model of these settings; `llm_model_name` is the folder of a checkpoint."""
    return TorchModel.open(config.llm_model_name or "", params=config.sampling())
