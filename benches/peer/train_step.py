"""One side of `cargo bench --bench train`: the same training step in PyTorch, from the same weights and tokens.

    python train_step.py DIRECTORY STEPS        decoder written by the bench
    python train_step.py DIRECTORY STEPS conv   convolutions of the bench's sizes

Prints one JSON object a step or case on stdout.
"""
import json, pathlib, sys, time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

torch.set_num_threads(2)


def peak_rss():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024


def decoder(directory, steps):
    config = json.loads((directory / "config.json").read_text())
    layers, heads, eps = config["num_hidden_layers"], config["num_attention_heads"], config["rms_norm_eps"]
    size = config["hidden_size"] // heads
    w = {k: torch.nn.Parameter(v) for k, v in load_file(directory / "model.safetensors").items()}
    data = json.loads((directory / "tokens.json").read_text())
    batch, seq = data["batch"], data["seq"]
    tokens = torch.tensor(data["tokens"]).view(-1, batch, seq + 1)
    angle = torch.outer(torch.arange(seq).float(), 10000.0 ** (-torch.arange(0, size, 2).float() / size))
    cos, sin = torch.cat([angle, angle], 1).cos(), torch.cat([angle, angle], 1).sin()

    def rotate(x):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def split(x):
        return x.view(batch, seq, heads, size).transpose(1, 2)

    def forward(ids):
        x = F.embedding(ids, w["model.embed_tokens.weight"])
        for i in range(layers):
            p = lambda name: w[f"model.layers.{i}.{name}.weight"]
            h = F.rms_norm(x, (x.shape[-1],), p("input_layernorm"), eps)
            q, k, v = (split(F.linear(h, p(f"self_attn.{n}_proj"))) for n in "qkv")
            y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
            x = x + F.linear(y.transpose(1, 2).reshape(batch, seq, -1), p("self_attn.o_proj"))
            h = F.rms_norm(x, (x.shape[-1],), p("post_attention_layernorm"), eps)
            x = x + F.linear(F.silu(F.linear(h, p("mlp.gate_proj"))) * F.linear(h, p("mlp.up_proj")), p("mlp.down_proj"))
        x = F.rms_norm(x, (x.shape[-1],), w["model.norm.weight"], eps)
        return F.linear(x, w["model.embed_tokens.weight"])

    groups = [
        dict(params=[p for p in w.values() if p.dim() > 1], weight_decay=data["decay"]),
        dict(params=[p for p in w.values() if p.dim() == 1], weight_decay=0.0),
    ]
    adam = torch.optim.AdamW(groups, lr=data["rate"], betas=(0.9, 0.999), eps=1e-8, fused=True)
    for step in range(steps):
        chunk = tokens[step % len(tokens)]
        t0 = time.perf_counter()
        logits = forward(chunk[:, :-1])
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), chunk[:, 1:].reshape(-1))
        t1 = time.perf_counter()
        loss.backward()
        t2 = time.perf_counter()
        adam.step()
        adam.zero_grad(set_to_none=True)
        t3 = time.perf_counter()
        print(json.dumps(dict(loss=loss.item(), forward=t1 - t0, backward=t2 - t1, optimizer=t3 - t2, peak=peak_rss())), flush=True)


def conv(directory, steps):
    cases = json.loads((directory / "convs.json").read_text())
    for case in cases:
        torch.manual_seed(0)
        x = torch.rand(case["x"], requires_grad=True)
        convs = [(torch.rand(c["w"], requires_grad=True), c) for c in case["layers"]]
        forward, backward = [], []
        for _ in range(steps):
            t0 = time.perf_counter()
            y = x
            for w, c in convs:
                y = F.conv2d(y, w, stride=c["stride"], padding=c["pad"], groups=c["groups"])
                if case["relu"]:
                    y = F.relu(y)
            t1 = time.perf_counter()
            y.backward(torch.ones_like(y))
            t2 = time.perf_counter()
            x.grad = None
            for w, _ in convs:
                w.grad = None
            forward.append(t1 - t0)
            backward.append(t2 - t1)
        print(json.dumps(dict(name=case["name"], forward=sorted(forward)[steps // 2], backward=sorted(backward)[steps // 2])), flush=True)


if __name__ == "__main__":
    directory, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    (conv if sys.argv[3:] == ["conv"] else decoder)(directory, steps)
