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

MASK = (1 << 64) - 1


def uniform(name, count):
    """Numbers in [-1, 1) from splitmix64, seeded with the FNV-1a hash of the name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    z = (np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def weight(name, shape):
    u = uniform(name, int(np.prod(shape)))
    if len(shape) >= 2:
        value = u * np.float32(1.7 / np.sqrt(shape[-1]))
    elif name.endswith("bias"):
        value = u * np.float32(0.1)
    else:
        value = np.float32(1) + u * np.float32(0.2)
    return value.reshape(shape).astype(np.float32)


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
