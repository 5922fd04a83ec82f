"""Any causal language model of `transformers`, in this process: provider `transformers`.

    Agent("solver", model="transformers:path/of/a/checkpoint")

Calls that are in flight together are decoded together, in a thread of the model's own; the event loop stays free. A
trainer hands over the very module that it trains, so that the next call is answered by the newest weights.

Each prompt has its own temperature, top-p, top-k, length and seed, and its reply is handed over when it ends, while
the others go on. A token is drawn by one uniform number of the prompt's own generator against the cumulative
distribution, so what is drawn does not depend on which prompts share the batch (but for the last bits of a matrix
product whose shape differs). Log-probabilities are those of the distribution drawn from; for temperature 0, those of
the distribution as it is.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aworld.core.bounded import described
from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.extras import import_extra
from aworld.core.model import ModelRequest
from aworld.models.chat_tokens import ChatTokens, Prompt
from aworld.models.providers import json_object
from aworld.models.token_model import Completion, Draft, GrowingText, Sampling, TokenModel, ends_of

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

    async def complete(
        self, prompt: Prompt, sampling: Sampling, request: ModelRequest, text: GrowingText
    ) -> Completion:
        """Continue `prompt`, together with what else is asked for. Raises `ModelError`."""
        draft, done = Draft(prompt.ids, sampling), Future[Draft]()
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
    except Exception as error:
        raise ConfigError(f"{str(path)!r} is no checkpoint of a causal language model: {described(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval()
    return model, tokenizer


def _declared(folder: Path) -> str | None:
    """The class that a checkpoint names for its tokenizer."""
    path = folder / "tokenizer_config.json"
    try:
        return json_object(path.read_bytes(), path).get("tokenizer_class")
    except (OSError, ConfigError):
        return None


def torch_model(config: ModelConfig) -> TorchModel:
    """The model of these settings; `llm_model_name` is the folder of a checkpoint."""
    return TorchModel.open(config.llm_model_name or "", params=config.sampling())


def torch_package(name: str) -> Any:
    """`torch` or `transformers`. Raises ConfigError that says what to install."""
    return import_extra(name, "a model of transformers (see docs/trainers.md)", "torch", "transformers>=5.23")


def complete(model: Any, drafts: Sequence[Draft], ends: frozenset[int], finished: Callable[[Draft], None]) -> None:
    """Write every draft to its end; `finished` is called with each as soon as it is whole.

    Args:
        model: A causal language model of `transformers`, in evaluation mode.
        drafts: Prompts of any lengths.
        ends: Ids that end a reply; the one drawn is part of it.
        finished: Told of each whole draft; must not raise.
    """
    torch = torch_package("torch")
    with torch.no_grad():
        ids, mask = _padded(torch, drafts, model.device)
        place = mask.cumsum(dim=1).sub(1).clamp(min=0)
        out = model(input_ids=ids, attention_mask=mask, position_ids=place, use_cache=True, logits_to_keep=1)
        place = place[:, -1:]
        live: list[Draft | None] = list(drafts)
        while True:
            drawn = _draw(torch, out.logits[:, -1], live)
            for number, draft in enumerate(live):
                if draft is not None and (draft.ids[-1] in ends or len(draft.ids) >= draft.sampling.max_tokens):
                    finished(draft)
                    live[number] = None
            keep = [number for number, draft in enumerate(live) if draft is not None]
            if not keep:
                return
            cache = out.past_key_values
            if len(keep) <= len(live) // 2:  # half of the work is for nobody: let go of those rows
                chosen = torch.tensor(keep, device=mask.device)
                cache.batch_select_indices(chosen)
                mask, place, drawn = mask[chosen], place[chosen], drawn[chosen]
                live = [live[number] for number in keep]
            mask = torch.cat([mask, mask.new_ones((len(live), 1))], dim=1)
            place = place + 1
            out = model(
                input_ids=drawn, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip


def _padded(torch: Any, drafts: Sequence[Draft], device: Any) -> tuple[Any, Any]:
    """Prompts side by side, filled up on the left, and which places are filled by a prompt."""
    width = max(len(draft.prompt) for draft in drafts)
    ids = [[0] * (width - len(draft.prompt)) + list(draft.prompt) for draft in drafts]
    mask = [[0] * (width - len(draft.prompt)) + [1] * len(draft.prompt) for draft in drafts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _draw(torch: Any, logits: Any, live: Sequence[Draft | None]) -> Any:
    """Draw one token for each row and write it to its draft; returns the ids, one a row (0 for finished rows)."""
    samplings = [Sampling(0.0) if draft is None else draft.sampling for draft in live]
    logits = logits.float()
    temperatures = torch.tensor([s.temperature or 1.0 for s in samplings], device=logits.device)
    scaled = _narrowed(torch, logits / temperatures[:, None], samplings)
    logs = torch.log_softmax(scaled, dim=-1)
    cumulative = logs.double().exp().cumsum(dim=-1)
    uniform = [0.0 if draft is None or not draft.sampling.temperature else draft.rng.random() for draft in live]
    targets = torch.tensor(uniform, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, targets, right=True).clamp(max=logits.shape[-1] - 1)
    greedy = torch.tensor([not s.temperature for s in samplings], device=logits.device)[:, None]
    drawn = torch.where(greedy, logits.argmax(dim=-1, keepdim=True), drawn)
    chosen = logs.gather(1, drawn)[:, 0].tolist()
    for draft, token, logprob in zip(live, drawn[:, 0].tolist(), chosen):
        if draft is not None:
            draft.ids.append(token)
            draft.logprobs.append(logprob)
    return drawn


def _narrowed(torch: Any, logits: Any, samplings: Sequence[Sampling]) -> Any:
    """Logits with the tokens that top-p and top-k leave out at minus infinity. Greedy rows stay as they are."""
    size = logits.shape[-1]
    ranks = [s.top_k if s.temperature and 0 < s.top_k < size else size for s in samplings]
    shares = [s.top_p if s.temperature else 1.0 for s in samplings]
    if min(ranks) == size and min(shares) >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
    before[:, 0] = 0.0
    rank = torch.arange(size, device=logits.device)[None]
    out = before >= torch.tensor(shares, device=logits.device)[:, None]
    out = out & (torch.tensor(shares, device=logits.device)[:, None] < 1.0)
    out = (out & (rank > 0)) | (rank >= torch.tensor(ranks, device=logits.device)[:, None])
    return logits.masked_fill(out.scatter(1, order, out), float("-inf"))
