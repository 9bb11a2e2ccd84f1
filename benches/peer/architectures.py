"""Writes tests/fixtures/architectures/*.json: small models of every architecture that is imported, with the
outputs that `transformers` computes for them. Weights are a function of their names, so that the fixture
holds shapes only.

    python architectures.py tests/fixtures/architectures
"""
import json, pathlib, sys, tempfile

import gguf
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
    "gemma2-plain": (tf.Gemma2Config, dict(GQA, head_dim=8, sliding_window=4, query_pre_attn_scalar=8)),
    "gemma3-six": (tf.Gemma3TextConfig, dict(GQA, num_hidden_layers=6, head_dim=8, sliding_window=4, query_pre_attn_scalar=8)),
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


# Metadata of GGUF files by architecture: the key behind the architecture's name, and where it comes from.
COMMON = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim", "attention.value_length": "head_dim",
    "attention.sliding_window": "sliding_window", "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
OTHER = {
    "gpt2": {"block_count": "n_layer", "embedding_length": "n_embd", "attention.head_count": "n_head",
             "context_length": "n_positions", "attention.layer_norm_epsilon": "layer_norm_epsilon"},
    "bert": {"block_count": "num_hidden_layers", "embedding_length": "hidden_size",
             "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
             "context_length": "max_position_embeddings", "attention.layer_norm_epsilon": "layer_norm_eps"},
}
GGUF = {"llama": "llama", "llama-tied": "llama", "llama-linear": "llama", "llama-yarn": "llama", "mistral": None,
        "qwen2": "qwen2", "qwen3": "qwen3", "gemma2-plain": "gemma2", "gemma3-six": "gemma3", "phi3": "phi3", "gpt2": "gpt2", "bert": "bert"}


def gguf_form(name, config, shapes):
    """How llama.cpp's converter stores this model: metadata, and for each weight its name and what was done to it."""
    arch = GGUF.get(name)
    if arch is None:
        return None
    keys = OTHER.get(arch, COMMON)
    metadata = {f"{arch}.{k}": config[v] for k, v in keys.items() if config.get(v) is not None}
    metadata["general.architecture"] = arch
    if arch == "gpt2":
        metadata["gpt2.feed_forward_length"] = 4 * config["n_embd"]
    if arch in ("qwen2", "qwen3"):
        metadata.pop(f"{arch}.attention.sliding_window", None)
    if arch not in OTHER:
        rope = config["rope_parameters"]
        rope = rope.get("full_attention", rope)
        metadata[f"{arch}.rope.freq_base"] = float(rope["rope_theta"])
        metadata[f"{arch}.rope.dimension_count"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        if rope["rope_type"] in ("linear", "yarn"):
            metadata[f"{arch}.rope.scaling.type"] = rope["rope_type"]
            metadata[f"{arch}.rope.scaling.factor"] = float(rope["factor"])
        if rope["rope_type"] == "yarn":
            metadata[f"{arch}.rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    layers = metadata[f"{arch}.block_count"]
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), layers)
    weights = []
    for hf, shape in shapes:
        plain = hf.removeprefix("bert.")
        if "pooler" in plain or "position_ids" in plain:
            continue
        target = names.get_name(plain, try_suffixes=(".weight", ".bias"))
        assert target, plain
        if not target.endswith((".weight", ".bias")):
            target += ".weight"
        change = ""
        if arch == "llama" and ("q_proj" in hf or "k_proj" in hf):
            change = "interleave"
        if arch.startswith("gemma") and hf.endswith("norm.weight"):
            change = "add_one"
        if arch == "gpt2" and len(shape) == 2 and ("attn.c_" in hf or "mlp.c_" in hf):
            change = "transpose"
        weights.append([target, hf, change])
    return {"metadata": metadata, "weights": weights}


def changed(value, change, config, hf):
    if change == "add_one":
        return value + np.float32(1)
    if change == "transpose":
        return np.ascontiguousarray(value.T)
    if change == "interleave":
        heads = config["num_attention_heads" if "q_proj" in hf else "num_key_value_heads"]
        return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    return value


def llama_cpp(name, form, config, shapes, ids):
    """Logits that llama.cpp computes for the model stored as GGUF."""
    import llama_cpp
    arch = form["metadata"]["general.architecture"]
    sizes = dict(shapes)
    with tempfile.TemporaryDirectory() as d:
        path = f"{d}/model.gguf"
        writer = gguf.GGUFWriter(path, arch)
        for key, value in form["metadata"].items():
            if key == "general.architecture":
                continue
            {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)
        writer.add_uint32(f"{arch}.vocab_size", config["vocab_size"])
        writer.add_string("tokenizer.ggml.model", "no_vocab")
        for target, hf, change in form["weights"]:
            writer.add_tensor(target, np.ascontiguousarray(changed(weight(hf, sizes[hf]), change, config, hf)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        model = llama_cpp.Llama(path, n_ctx=64, logits_all=True, verbose=False, n_threads=1)
        model.eval(ids)
        return np.array(model.scores[:len(ids)])


def tensor(t):
    return {"shape": list(t.shape), "values": [float(f"{v:.7g}") for v in t.detach().flatten().tolist()]}


def ids(n, rows=1):
    return torch.tensor([[(7 * i + 11 * r * r + 5 * i * i) % 40 for i in range(n)] for r in range(rows)])


def write(target, name, stored, shapes, inputs, outputs):
    fixture = {"name": name, "config": stored, "weights": shapes,
               "inputs": {k: {"shape": list(v.shape), "values": v.flatten().tolist()} for k, v in inputs.items()},
               "outputs": {k: tensor(v) for k, v in outputs.items()}}
    form = gguf_form(name, stored, shapes)
    if form:
        fixture["gguf"] = form
        if "logits" in outputs:
            try:
                theirs = llama_cpp(name, form, stored, shapes, fixture["inputs"]["input_ids"]["values"])
                print("  llama.cpp differs by", np.abs(theirs - outputs["logits"][0].numpy()).max())
            except Exception as e:
                print("  llama.cpp:", e)
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
