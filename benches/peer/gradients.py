"""Writes tests/fixtures/gradients.json: gradients of a loss with respect to every weight of small models, as
PyTorch computes them in double precision. Of each gradient its norm is kept and its product with seeded numbers.
The models are fixtures of architectures.py.

    python gradients.py tests/fixtures/architectures tests/fixtures/gradients.json
"""
import json, pathlib, sys

import numpy as np
import torch
import torch.nn.functional as F
import transformers as tf

from architectures import uniform, weight

MODELS = {
    "llama": (tf.LlamaConfig, tf.LlamaForCausalLM),
    "llama-tied": (tf.LlamaConfig, tf.LlamaForCausalLM),
    "bert-classifier": (tf.BertConfig, tf.BertForSequenceClassification),
}


def main(fixtures, target):
    out = {}
    for name, (config_class, model_class) in MODELS.items():
        fixture = json.loads((fixtures / f"{name}.json").read_text())
        config = config_class(**fixture["config"])
        config._attn_implementation = "eager"
        model = model_class(config).double().eval()
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                # PyTorch drops the gradient of the padding token's row; the loss does depend on it.
                module.padding_idx = None
        state = {k: torch.tensor(weight(k, s)).double() for k, s in fixture["weights"]}
        missing = model.load_state_dict(state, strict=False).missing_keys
        assert all(k == "lm_head.weight" for k in missing), missing
        inputs = {k: torch.tensor(v["values"]).reshape(v["shape"]) for k, v in fixture["inputs"].items()}
        logits = model(**inputs).logits
        if name.startswith("llama"):
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["input_ids"][:, 1:].flatten())
        else:
            loss = F.cross_entropy(logits, torch.tensor([2, 0]))
        loss.backward()
        weights = {}
        for key, p in model.named_parameters():
            g = p.grad.flatten()
            u = torch.tensor(uniform(f"gradient of {key}", g.numel())).double()
            weights[key] = [float(f"{g.norm().item():.8g}"), float(f"{(g @ u).item():.8g}")]
        out[name] = {"loss": float(f"{loss.item():.9g}"), "weights": weights}
        print(name, loss.item(), len(weights))
    target.write_text(json.dumps(out, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
