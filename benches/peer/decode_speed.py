"""Prefill and decoding of a language model by llama.cpp on GGUF files, beside `tinsmith generate` on ONNX files: the
same prompt, greedy, the same number of threads, alternating.

    python decode_speed.py target/release/tinsmith [--threads 2] [--rounds 5] [--requantize DIR] MODEL.gguf EXPORTED.onnx...

Every file is a row; ratios are to the first one. `--requantize` writes Q8_0, Q4_K_M and Q4_0 of the first GGUF file into
a directory, where they are not there yet, and runs them too.
"""
import argparse, ctypes, json, pathlib, statistics, subprocess, time

import llama_cpp

PROMPT = "Call me Ishmael. Some years ago - never mind how long precisely - having little or no money in my purse, " * 20
TOKENS = 64
PEERS = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


def requantized(gguf, directory):
    directory.mkdir(parents=True, exist_ok=True)
    for name, kind in PEERS.items():
        path = directory / f"{gguf.stem.rsplit('.', 1)[0]}.{name}.gguf"
        if not path.exists():
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype, settings.allow_requantize = kind, True
            if llama_cpp.llama_model_quantize(str(gguf).encode(), str(path).encode(), ctypes.byref(settings)):
                raise RuntimeError(f"llama.cpp could not write {path}")
        yield path


def opened(gguf, threads):
    return llama_cpp.Llama(str(gguf), n_ctx=1024, n_threads=threads, n_threads_batch=threads, n_batch=512, logits_all=True, verbose=False)


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


def size(path):
    return sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requantize", type=pathlib.Path)
    a = parser.parse_args()
    models = list(a.models)
    if a.requantize:
        models[1:1] = requantized(next(m for m in models if m.suffix == ".gguf"), a.requantize)
    loaded = {m: opened(m, a.threads) for m in models if m.suffix == ".gguf"}
    some = next(iter(loaded.values()))
    ids = some.tokenize(PROMPT.encode(), add_bos=False)[:512]
    text = some.detokenize(ids).decode()
    run = lambda m: peer(loaded[m], ids) if m in loaded else ours(a.program, m, a.threads, text)
    rounds = [[run(m) for m in models] for _ in range(a.rounds)]
    print(f"{len(ids)} tokens, then {TOKENS}; {a.threads} threads; median of {a.rounds} rounds\n")
    print("| file | MiB | prefill tokens/s | ratio | decode tokens/s | ratio |\n|---|---|---|---|---|---|")
    for i, model in enumerate(models):
        cells = []
        for what in (0, 1):
            rate = statistics.median(r[i][what] for r in rounds)
            ratio = statistics.median(r[i][what] / r[0][what] for r in rounds)
            cells += [f"{rate:.1f}", f"{ratio:.2f}"]
        print(f"| {model.name} | {size(model) / 2**20:.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
