"""Prefill and decoding of SmolLM2 by llama.cpp on the GGUF file, beside `tinsmith generate` on the exported model:
the same prompt, greedy, the same number of threads, alternating.

    python decode_speed.py target/release/tinsmith MODEL.gguf EXPORTED.onnx [THREADS]
"""
import json, statistics, subprocess, sys, time

import llama_cpp

PROMPT = "Call me Ishmael. Some years ago - never mind how long precisely - having little or no money in my purse, " * 20
TOKENS = 64


def peer(model, ids):
    model.reset()
    start = time.perf_counter()
    model.eval(ids)
    prefill = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(TOKENS):
        model.eval([int(model.scores[model.n_tokens - 1].argmax())])
    return len(ids) / prefill, TOKENS / (time.perf_counter() - start)


def ours(program, onnx, threads, text):
    out = subprocess.run([program, "--threads", str(threads), "--format", "json", "generate", onnx, "--prompt", text,
                          "--max-tokens", str(TOKENS)], capture_output=True, text=True, check=True).stdout
    rates = json.loads(out)["tokens_per_s"]
    return rates["prefill"], rates["decode"]


def main(program, gguf, onnx, threads=2):
    model = llama_cpp.Llama(gguf, n_ctx=2048, n_threads=int(threads), n_threads_batch=int(threads), n_batch=512, logits_all=True, verbose=False)
    ids = model.tokenize(PROMPT.encode(), add_bos=False)[:512]
    text = model.detokenize(ids).decode()
    rounds = [(peer(model, ids), ours(program, onnx, threads, text)) for _ in range(5)]
    for i, what in enumerate(("prefill", "decode")):
        a, b = (statistics.median(r[side][i] for r in rounds) for side in (0, 1))
        print(f"{what}: llama.cpp {a:.1f}, tinsmith {b:.1f} tokens/s, ratio {b / a:.2f} ({len(ids)} tokens, {threads} threads, median of 5)")


if __name__ == "__main__":
    main(*sys.argv[1:])
