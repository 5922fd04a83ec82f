# pyright: basic, reportMissingImports=false, reportOptionalMemberAccess=false, reportArgumentType=false
"""Checks of the plugin's parts, run by ms-swift's own Python: `python swift_checks.py <plugin> <policy>`.

Prints one JSON object. AWorld is not installed there.
"""

import importlib.util
import json
import math
import sys

from swift.model import get_processor
from swift.template import get_template
from tokenizers import Tokenizer

spec = importlib.util.spec_from_file_location("swift_plugin", sys.argv[1])
plugin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)

tokenizer = get_processor(sys.argv[2], model_type="qwen2")
template = get_template(tokenizer, template_type="aworld")
end = tokenizer.eos_token_id

conversation = plugin.TokenConversation(tokenizer, plugin.ExactTokenizer(tokenizer))
messages = [{"role": "user", "content": "What is 37 plus 25?"}]
conversation.begin(messages, [])
read = [list(conversation.read)]
same = Tokenizer.from_file(f"{sys.argv[2]}/tokenizer.json")
assert read[0] == same.encode(same.decode(read[0], skip_special_tokens=False), add_special_tokens=False).ids
# Sampled in a way that no tokenizer would write: letter by letter, and the second one cut short.
said = [[tokenizer.convert_tokens_to_ids(letter) for letter in "add"] + [end]]
said.append(said[0][:2])
for number, ids in enumerate(said):
    conversation.ids += ids
    messages += [{"role": "assistant", "content": "add"}, {"role": "user", "content": f"And {number}?"}]
    conversation.go_on(messages, [])
    read.append(list(conversation.read))

turns = []
for index, ids in enumerate(read):
    turns.append({"role": "user", "content": ids})
    if index < len(said):
        turns.append({"role": "assistant", "content": {"token_ids": said[index], "loss_scale": [1] * len(said[index])}})
    else:
        turns.append({"role": "assistant", "content": said[0]})

template.set_mode("train")
trained = template.encode({"messages": turns})
template.set_mode("transformers")
asked = template.encode({"messages": turns[:3]})

tokenizer.chat_template = "{{ messages | length }}{{ messages[-1].content }}<|im_end|>"
forgetful = plugin.TokenConversation(tokenizer, plugin.ExactTokenizer(tokenizer))
try:
    forgetful.go_on([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, messages[0]], [])
    refused = ""
except RuntimeError as error:
    refused = str(error)

columns = {
    "prompt_id": ["a", "a", "a", "b"],
    "rollout_infos": [{"aworld": {"score": s}} for s in (1.0, None, 0.0)] + [{"aworld": {"score": None}}],
}
rewards = plugin.AWorldReward()([""] * 4, **columns)

# What `export(format="swift")` writes, read by a template of swift's own.
row = json.loads(sys.argv[3])
qwen = get_template(get_processor(sys.argv[2], model_type="qwen2"), template_type="qwen", agent_template="hermes")
qwen.set_mode("train")
exported = qwen.encode(row)
learnt = [id for id in exported["labels"] if id != -100]

found = {
    "exported": same.decode(exported["input_ids"], skip_special_tokens=False),
    "learnt": same.decode(learnt, skip_special_tokens=False),
    "text": tokenizer.decode(conversation.ids),
    "read": read,
    "said": said,
    "ids": list(trained["input_ids"]),
    "labels": list(trained["labels"]),
    "asked": list(asked["input_ids"]),
    "refused": refused,
    "rewards": [None if math.isnan(reward) else reward for reward in rewards],
}
sys.stdout.write(json.dumps(found) + "\n")
