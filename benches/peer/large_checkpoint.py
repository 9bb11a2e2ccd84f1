"""Writes a Llama checkpoint of 6 GB whose weights are a hole in a sparse file, so that it takes no space on disk, for
`tinsmith inspect`.

    python large_checkpoint.py DIRECTORY [LAYERS]
"""
import json, pathlib, struct, sys

WIDTH, MLP, VOCABULARY = 2048, 5632, 32000


def main(directory, layers=28):
    target = pathlib.Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    shapes = {"model.embed_tokens.weight": [VOCABULARY, WIDTH], "model.norm.weight": [WIDTH], "lm_head.weight": [VOCABULARY, WIDTH]}
    for i in range(int(layers)):
        at = f"model.layers.{i}."
        shapes |= {at + f"self_attn.{p}_proj.weight": [WIDTH, WIDTH] for p in "qkvo"}
        shapes |= {at + "mlp.gate_proj.weight": [MLP, WIDTH], at + "mlp.up_proj.weight": [MLP, WIDTH], at + "mlp.down_proj.weight": [WIDTH, MLP]}
        shapes |= {at + "input_layernorm.weight": [WIDTH], at + "post_attention_layernorm.weight": [WIDTH]}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for d in shape:
            size *= d
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(target / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + end)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "intermediate_size": MLP,
              "num_hidden_layers": int(layers), "num_attention_heads": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
              "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    (target / "config.json").write_text(json.dumps(config))
    print(target, f"{end / 1e9:.2f} GB,", len(shapes), "weights")


if __name__ == "__main__":
    main(*sys.argv[1:])
