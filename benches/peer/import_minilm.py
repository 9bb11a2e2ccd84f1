"""Sentence embeddings of an exported MiniLM against `transformers` with mean pooling and length 1.

    python import_minilm.py MODEL_DIRECTORY MOBY_DICK_DIRECTORY EXPORTED.onnx [EXPORTED.onnx ...]
"""
import pathlib, re, sys

import numpy as np
import onnxruntime as ort
import torch
import transformers as tf

tf.logging.set_verbosity_error()


def sentences(text, count):
    joined = " ".join((pathlib.Path(text) / f"chapter_{i}.txt").read_text() for i in range(1, 11))
    found = [s.strip() for s in re.split(r"(?<=[.!?])\s+", joined) if len(s.split()) > 4]
    return found[:count]


def main(directory, text, *exported):
    tokenizer = tf.AutoTokenizer.from_pretrained(directory)
    model = tf.AutoModel.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
    print("parameters", sum(p.numel() for p in model.parameters()), "without pooler", sum(p.numel() for n, p in model.named_parameters() if "pooler" not in n))
    batch = tokenizer(sentences(text, 200), padding=True, truncation=True, max_length=256, return_tensors="pt")
    print("sentences", len(batch["input_ids"]), "longest", batch["input_ids"].shape[1])
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    reference = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)).numpy()
    feed = {k: v.numpy() for k, v in batch.items()}
    for path in exported:
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        wanted = {i.name for i in session.get_inputs()}
        ours = session.run(["sentence_embedding"], {k: v for k, v in feed.items() if k in wanted})[0]
        print(path, "lowest cosine", (ours * reference).sum(-1).min(), "max abs difference", np.abs(ours - reference).max())


if __name__ == "__main__":
    main(*sys.argv[1:])
