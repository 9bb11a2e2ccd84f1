"""Quality and size of quantised models: each scheme, rounding and calibrator beside the original.

Runs `tinsmith quantize` and `tinsmith eval` for each combination and prints a table. What is done is kept in the output directory, so
that the script goes on where it was stopped. Needs Python 3 alone, and the models and data of `tinsmith fetch`.

    python3 benches/quantisation/matrix.py target/release/tinsmith out --home HOME --models minilm smollm2
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

def blocks(*flags):
    return ["--scheme", "weight-int4", *flags]


ROUNDINGS = ["rtn", "mse", "hqq", "k-quant", "gptq", "awq", "awq-gptq"]
BLOCKS = [
    (f"weight-int4 {rounding}, blocks of {block}", blocks("--rounding", rounding, "--block", str(block)))
    for rounding in ROUNDINGS
    for block in [32, 128]
]
REAL = [
    (f"weight-int4 {rounding}, blocks of 32, real zero points", blocks("--rounding", rounding, "--zero-points", "real"))
    for rounding in ["rtn", "hqq", "k-quant", "gptq"]
]
TABLES = [
    ("weight-int4 mse, blocks of 32, tables kept", blocks("--rounding", "mse", "--embeddings", "keep")),
    ("weight-int4 mse, blocks of 32, tables int4", blocks("--rounding", "mse", "--embeddings", "int4")),
    ("weight-int8 rtn, blocks of 32", ["--scheme", "weight-int8"]),
]
LOSSLESS = [
    (f"lossless, accuracy level {level}", blocks("--rounding", "lossless", "--accuracy-level", str(level))) for level in [1, 4]
]
DYNAMIC = [("dynamic-int8", ["--scheme", "dynamic-int8"])]
STATIC = [
    (f"static-int8 {calibrator}", ["--scheme", "static-int8", "--calibrator", calibrator])
    for calibrator in ["minmax", "moving-average", "percentile", "entropy", "mse"]
]

REPAIRS = [
    (f"{scheme}, {name}", ["--scheme", scheme, *flags])
    for scheme in ["dynamic-int8", "static-int8"]
    for name, flags in [
        ("smooth 0.5", ["--smooth", "0.5"]),
        ("smooth auto", ["--smooth", "auto"]),
        ("rounding gptq", ["--rounding", "gptq"]),
        ("bias correction", ["--bias-correction"]),
        ("smooth auto, gptq and bias correction", ["--smooth", "auto", "--rounding", "gptq", "--bias-correction"]),
    ]
]
HALVES = [(scheme, ["--scheme", scheme]) for scheme in ["fp16", "bf16"]]


def models(home):
    whale = home / "data/moby-dick"
    chapters = lambda numbers: "text:" + ",".join(str(whale / f"chapter_{n}.txt") for n in numbers)
    mails = f"text:{home / 'data/spam-assassin'}?label=folder&shuffle=1&lossy=1"
    return {
        "minilm": {
            "model": home / "models/minilm-l6",
            "calibration": f"{mails}#400..528",
            "eval": ["--task", "embed", "--data", f"{mails}#0..400", "--window", "128", "--vs", "{original}"],
            "rows": DYNAMIC + BLOCKS + REAL + TABLES + STATIC + REPAIRS + HALVES,
        },
        "smollm2": {
            "model": home / "models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf",
            "calibration": chapters(range(20, 40)) + "#0..16",
            "eval": ["--task", "lm", "--data", chapters([1, 2]), "--vs", "{original}"],
            "rows": LOSSLESS + DYNAMIC + BLOCKS + REAL + TABLES + HALVES,
        },
        # Weights off the grid that the file has: a hundredth of the neurons leaves, and a short training moves the rest.
        "smollm2-trained": {
            "model": home / "models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf",
            "before": ["prune", "--criterion", "l2", "--ratio", "0.01", "--round-to", "64", "--train", chapters(range(41, 61)),
                       "--recover", "towards=task,steps=24,batch=1,rate=3e-4,looks=1,hold_out=0.02", "--length", "128"],
            "calibration": chapters(range(20, 40)) + "#0..16",
            "eval": ["--task", "lm", "--data", chapters([1, 2]), "--vs", "{original}"],
            "rows": BLOCKS + REAL + TABLES,
        },
    }


def run(arguments):
    start = time.monotonic()
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode:
        print(" ".join(str(a) for a in arguments), done.stderr[-1500:], file=sys.stderr)
    return (done.stdout if done.returncode == 0 else None), time.monotonic() - start


def size(path):
    return sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--home", type=pathlib.Path, required=True)
    parser.add_argument("--models", nargs="+", default=["minilm", "smollm2"])
    parser.add_argument("--only", default="", help="rows whose name holds this")
    a = parser.parse_args()
    for name in a.models:
        entry, out = models(a.home)[name], a.out / name
        out.mkdir(parents=True, exist_ok=True)
        common = [a.program, "--home", a.home, "--threads", "2"]
        original = out / f"{name}.onnx"
        if not original.exists():
            before = entry.get("before", ["import"])
            run([*common, before[0], entry["model"], *before[1:], "-o", original])
        if "before" in entry:
            entry["model"] = original
        print(f"\n## {name}, original {size(original) / 2**20:.1f} MiB\n", flush=True)
        for label, flags in entry["rows"]:
            if a.only not in label:
                continue
            stem = label.replace(" ", "-").replace(",", "")
            result, made = out / f"{stem}.json", out / f"{stem}.onnx"
            if not result.exists():
                text, seconds = run([*common, "quantize", entry["model"], *flags, "--calibration", entry["calibration"], "-o", made])
                if text is None:
                    continue
                job = next(line.split()[1] for line in text.splitlines() if line.startswith("job "))
                asked = [x.replace("{original}", str(original)) for x in entry["eval"]]
                judged, _ = run([*common, "--format", "json", "eval", made, *asked])
                run([*common, "jobs", "delete", "--yes", job])
                if judged is None:
                    continue
                metrics = json.loads(judged)["evaluations"][0]["metrics"]
                result.write_text(json.dumps({"metrics": metrics, "bytes": size(made), "seconds": seconds}))
                for file in out.glob(f"{made.name}*"):
                    file.unlink()
            found = json.loads(result.read_text())
            told = ", ".join(f"{m['name']} {m['value']:.5g}" for m in found["metrics"])
            print(f"| {label} | {found['bytes'] / 2**20:.1f} MiB | {told} | {found['seconds']:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
