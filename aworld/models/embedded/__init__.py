"""A small language model inside the process: NumPy, no key, no network, exact token ids and log-probabilities.

`transformer` is the forward pass with its caches, `decoding` runs the requests of one event loop together,
`embedded_model` is the `Model` contract, `checkpoint` reads and writes the folder (`config.json`, `model.safetensors`,
`tokenizer.json`, `chat_template.jinja`) that `transformers` and vLLM read too. The packaged policy lies in this folder;
README.md is its model card. Needs optional packages.
"""

from __future__ import annotations

from aworld.core.extras import import_extra

_PACKAGES = ("numpy>=1.26", "safetensors>=0.4.3", "tokenizers>=0.20", "jinja2>=3.1", "threadpoolctl>=3.5")

for _module in ("numpy", "safetensors", "tokenizers", "jinja2"):
    import_extra(_module, "The embedded policy", *_PACKAGES)
