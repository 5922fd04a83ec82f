"""Decoding with a KV cache for causal language models of `transformers`, several prompts at once.

Each prompt has its own temperature, top-p, top-k, length and seed, and its reply is handed over when it ends, while
the others go on. A token is drawn by one uniform number of the prompt's own generator against the cumulative
distribution, so what is drawn does not depend on which prompts share the batch (but for the last bits of a matrix
product whose shape differs). Log-probabilities are those of the distribution drawn from; for temperature 0, those of
the distribution as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aworld.core.extras import import_extra
from aworld.models.token_model import Draft, Sampling


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
