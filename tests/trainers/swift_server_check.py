# pyright: basic, reportMissingImports=false, reportOptionalMemberAccess=false, reportArgumentType=false
"""The way of `swift rollout` (vLLM server mode) through the plugin: `python swift_server_check.py <plugin> <policy>`.

The scheduler's own `run` drives an episode over a real bridge; only vLLM's engine is a stand-in.
"""

import asyncio
import importlib.util
import json
import sys
from types import SimpleNamespace

from swift.infer_engine.protocol import (
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatMessage,
    RequestConfig,
    RolloutInferRequest,
    UsageInfo,
)
from swift.model import get_processor

spec = importlib.util.spec_from_file_location("swift_plugin", sys.argv[1])
plugin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)

tokenizer = get_processor(sys.argv[2], model_type="qwen2")
text = plugin.ExactTokenizer(tokenizer)


class Engine:
    """Answers in words that depend on the turn."""

    def __init__(self):
        self.tokenizer, self.template, self.asked = tokenizer, None, []
        self.engine = SimpleNamespace()

    async def infer_async(self, request, config, **_):
        self.asked.append([message["content"] for message in request.messages])
        turn = sum(message["role"] == "assistant" for message in request.messages)
        ids = [*text.encode(f"word {turn}"), tokenizer.eos_token_id]
        choice = ChatCompletionResponseChoice(
            index=0,
            message=ChatMessage(role="assistant", content=f"word {turn}"),
            finish_reason="stop",
            token_ids=ids,
            logprobs={"content": [{"logprob": -0.5} for _ in ids]},
        )
        return ChatCompletionResponse(model="policy", choices=[choice], usage=UsageInfo(1, 1, 2))


async def main():
    engine = Engine()
    scheduler = plugin.AWorldScheduler(infer_engine=engine)
    request = RolloutInferRequest(
        messages=[{"role": "user", "content": "?"}], uuid="one", data_dict={"problem_id": "1000000"}
    )
    output = await scheduler.run(request, RequestConfig(n=1, logprobs=True))
    found = {
        "turns": len(engine.asked),
        "infos": output.rollout_infos,
        "ids": output.response_token_ids,
        "mask": output.response_loss_mask,
        "logprobs": output.rollout_logprobs,
        "roles": [message["role"] for message in output.messages],
    }
    sys.stdout.write(json.dumps(found) + "\n")


asyncio.run(main())
