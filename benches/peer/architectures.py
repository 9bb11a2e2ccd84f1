"""Writes tests/fixtures/architectures/*.json: small models of every architecture that is imported, with the
outputs that `transformers` computes for them. Weights are a function of their names, so that the fixture
holds shapes only.

    python architectures.py tests/fixtures/architectures
"""
import json, pathlib, sys, tempfile

import numpy as np
import torch
import transformers as tf
from safetensors import safe_open
from safetensors.numpy import save_file

torch.manual_seed(0)
tf.logging.set_verbosity_error()

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


SMALL = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
GQA = dict(SMALL, num_key_value_heads=2, max_position_embeddings=64)
TEXT = dict(SMALL, max_position_embeddings=40)


def scaled(**scaling):
    return dict(GQA, rope_parameters=dict(rope_theta=1000.0, **scaling))


DECODERS = {
    "llama": (tf.LlamaConfig, dict(GQA, attention_bias=True, tie_word_embeddings=False)),
    "llama-tied": (tf.LlamaConfig, dict(GQA, tie_word_embeddings=True, head_dim=12)),
    "llama-linear": (tf.LlamaConfig, scaled(rope_type="linear", factor=4.0)),
    "llama-llama3": (tf.LlamaConfig, scaled(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                            high_freq_factor=4.0, original_max_position_embeddings=16)),
    "llama-yarn": (tf.LlamaConfig, scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)),
    "mistral": (tf.MistralConfig, dict(GQA, sliding_window=4)),
    "qwen2": (tf.Qwen2Config, dict(GQA)),
    "qwen2-window": (tf.Qwen2Config, dict(GQA, use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    "qwen3": (tf.Qwen3Config, dict(GQA, head_dim=16)),
    "gemma2": (tf.Gemma2Config, dict(GQA, head_dim=8, sliding_window=4, query_pre_attn_scalar=12)),
    "gemma3": (tf.Gemma3TextConfig, dict(GQA, num_hidden_layers=3, head_dim=8, sliding_window=4,
                                         layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    "phi3": (tf.Phi3Config, dict(GQA, pad_token_id=0, bos_token_id=1, eos_token_id=2)),
    "phi3-longrope": (tf.Phi3Config, dict(GQA, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                                          original_max_position_embeddings=32,
                                          rope_parameters=dict(rope_type="longrope", rope_theta=10000.0,
                                                               short_factor=[1.0, 1.1, 1.2, 1.3],
                                                               long_factor=[2.0, 3.0, 4.0, 5.0],
                                                               original_max_position_embeddings=32))),
    "gpt2": (tf.GPT2Config, dict(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)),
}
ENCODERS = {
    "bert": (tf.BertConfig, tf.BertModel, TEXT),
    "bert-classifier": (tf.BertConfig, tf.BertForSequenceClassification, dict(TEXT, num_labels=3)),
    "roberta": (tf.RobertaConfig, tf.RobertaModel, dict(TEXT, type_vocab_size=1)),
    "roberta-classifier": (tf.RobertaConfig, tf.RobertaForSequenceClassification, dict(TEXT, type_vocab_size=1, num_labels=3)),
    "distilbert": (tf.DistilBertConfig, tf.DistilBertModel, dict(vocab_size=40, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=40)),
    "distilbert-classifier": (tf.DistilBertConfig, tf.DistilBertForSequenceClassification, dict(vocab_size=40, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=40, num_labels=3)),
}
VIT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4)
VISION = {
    "vit": (tf.ViTConfig, tf.ViTModel, VIT),
    "vit-classifier": (tf.ViTConfig, tf.ViTForImageClassification, dict(VIT, num_labels=3)),
}


def rebuilt(config, model_class):
    """A model of the class with our weights, as a checkpoint that went through files."""
    with tempfile.TemporaryDirectory() as d:
        model_class(config).save_pretrained(d)
        path = f"{d}/model.safetensors"
        with safe_open(path, "np") as f:
            shapes = {k: list(f.get_slice(k).get_shape()) for k in f.keys()}
        save_file({k: weight(k, s) for k, s in shapes.items()}, path, metadata={"format": "pt"})
        stored = json.loads(pathlib.Path(f"{d}/config.json").read_text())
        model = model_class.from_pretrained(d, attn_implementation="eager", dtype=torch.float32).eval()
    return model, stored, sorted(shapes.items())


def tensor(t):
    return {"shape": list(t.shape), "values": [float(f"{v:.7g}") for v in t.detach().flatten().tolist()]}


def ids(n, rows=1):
    return torch.tensor([[(7 * i + 11 * r * r + 5 * i * i) % 40 for i in range(n)] for r in range(rows)])


def write(target, name, stored, shapes, inputs, outputs):
    fixture = {"name": name, "config": stored, "weights": shapes,
               "inputs": {k: {"shape": list(v.shape), "values": v.flatten().tolist()} for k, v in inputs.items()},
               "outputs": {k: tensor(v) for k, v in outputs.items()}}
    (target / f"{name}.json").write_text(json.dumps(fixture, separators=(",", ":")) + "\n")
    print(name, {k: list(v.shape) for k, v in outputs.items()})


def main(target):
    target.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for name, (config_class, settings) in DECODERS.items():
            config = config_class(**settings)
            model, stored, shapes = rebuilt(config, tf.AutoModelForCausalLM._model_mapping[config_class])
            inputs = {"input_ids": ids(10), "attention_mask": torch.ones(1, 10, dtype=torch.long)}
            write(target, name, stored, shapes, inputs, {"logits": model(**inputs).logits})
        mask = torch.ones(2, 7, dtype=torch.long)
        mask[1, 5:] = 0
        for name, (config_class, model_class, settings) in ENCODERS.items():
            model, stored, shapes = rebuilt(config_class(**settings), model_class)
            tokens = ids(7, 2)
            tokens[tokens == 1] = 2
            if "roberta" in name:
                tokens[mask == 0] = 1
            out = model(input_ids=tokens, attention_mask=mask)
            inputs = {"input_ids": tokens, "attention_mask": mask}
            if name.startswith("bert"):
                inputs["token_type_ids"] = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 0]])
                out = model(**inputs)
            key = "logits" if "classifier" in name else "last_hidden_state"
            write(target, name, stored, shapes, inputs, {key: out[key]})
        for name, (config_class, model_class, settings) in VISION.items():
            model, stored, shapes = rebuilt(config_class(**settings), model_class)
            pixels = torch.tensor(uniform("pixels", 2 * 3 * 8 * 8)).reshape(2, 3, 8, 8)
            out = model(pixel_values=pixels)
            key = "logits" if "classifier" in name else "last_hidden_state"
            write(target, name, stored, shapes, {"pixel_values": pixels}, {key: out[key]})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
