"""Perplexity and bits per byte of a causal language model in PyTorch, by the definition of `tinsmith eval --task lm`.

    python lm_reference.py MODEL.gguf WINDOW TEXT...

Each text is one document, in the order given; windows do not overlap; the first token of each window is not
predicted. Prints one JSON object. The tokenizer is that of tokenize_reference.py.
"""

import json
import math
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

import tokenize_reference


def main():
    gguf, window, *texts = sys.argv[1:]
    gguf, window = pathlib.Path(gguf), int(window)
    tokenizer = tokenize_reference.smollm2(str(gguf))
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32).eval()
    nll, predicted = 0.0, 0
    for path in texts:
        ids = tokenizer.encode(pathlib.Path(path).read_text(encoding="utf-8")).ids
        for start in range(0, len(ids), window):
            part = torch.tensor([ids[start : start + window]])
            if part.shape[1] < 2:
                continue
            with torch.no_grad():
                scores = torch.log_softmax(model(part).logits[0, :-1].double(), dim=-1)
            nll -= scores.gather(1, part[0, 1:, None]).sum().item()
            predicted += part.shape[1] - 1
    print(json.dumps({"predicted": predicted, "nats_per_token": nll / predicted, "perplexity": math.exp(nll / predicted)}))


if __name__ == "__main__":
    main()
