"""Logits and perplexity of an exported SmolLM2 against `transformers` on the same dequantised weights.

    python import_smollm2.py MODEL.gguf EXPORTED.onnx MOBY_DICK_DIRECTORY
"""
import pathlib, sys, time

import numpy as np
import onnxruntime as ort
import torch
import transformers as tf

tf.logging.set_verbosity_error()


def cache_inputs(session):
    shape = lambda i: [1 if isinstance(d, str) and n == 0 else 0 if isinstance(d, str) else d for n, d in enumerate(i.shape)]
    return {i.name: np.zeros(shape(i), np.float32) for i in session.get_inputs() if i.name.startswith("past")}


def exported(session, ids):
    ids = np.asarray(ids, np.int64)[None]
    return session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids), **cache_inputs(session)})[0][0]


def losses(logits, ids):
    logits = torch.as_tensor(logits)[:-1].double()
    return torch.nn.functional.cross_entropy(logits, torch.as_tensor(ids)[1:], reduction="none")


def main(gguf, onnx, text):
    gguf = pathlib.Path(gguf)
    kwargs = dict(gguf_file=gguf.name)
    tokenizer = tf.AutoTokenizer.from_pretrained(gguf.parent, **kwargs)
    model = tf.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, attn_implementation="eager", **kwargs).eval()
    session = ort.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    reference = lambda ids: model(torch.tensor([ids])).logits[0]
    print("parameters", sum(p.numel() for p in model.parameters()))
    chapters = [(pathlib.Path(text) / f"chapter_{i}.txt").read_text() for i in range(1, 11)]
    ids = tokenizer(chapters[0] + chapters[1], add_special_tokens=False).input_ids[:2000]
    with torch.no_grad():
        a, b = reference(ids).numpy(), exported(session, ids)
        print("positions", len(ids), "max abs difference", np.abs(a - b).max(), "same top token", (a.argmax(-1) == b.argmax(-1)).mean())
        sums = np.zeros(3)
        started = time.time()
        whole = tokenizer("\n\n".join(chapters), add_special_tokens=False).input_ids
        for start in range(0, len(whole), 512):
            window = whole[start:start + 512]
            if len(window) > 1:
                sums += [losses(reference(window), window).sum(), losses(exported(session, window), window).sum(), len(window) - 1]
    theirs, ours = np.exp(sums[0] / sums[2]), np.exp(sums[1] / sums[2])
    print(f"perplexity of {int(sums[2])} tokens in windows of 512: reference {theirs:.5f}, exported {ours:.5f}, ratio {ours / theirs:.6f}, {time.time() - started:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
