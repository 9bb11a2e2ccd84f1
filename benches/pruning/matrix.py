"""Quality of pruned models: every criterion, before repair, after repair and, where asked for, after training.

Runs `tinsmith prune` and `tinsmith eval` for each combination and prints tables. What is done is kept in the output directory, so
that the script goes on where it was stopped. Needs Python 3 alone.

    python3 benches/pruning/matrix.py target/release/tinsmith out --models sample minilm smollm2 --ratios 0.2 0.4
    python3 benches/pruning/matrix.py target/release/tinsmith out --models smollm2 --ratios 0.2 --recover-tokens 20000 --criteria taylor flap wanda
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

CRITERIA = ["random", "l1", "l2", "taylor", "llm-pruner", "obd", "activation", "frequency", "flap", "wanda", "minitron"]
REPAIRS = ["none", "bias", "ridge"]


def models(home):
    """Model, what it is pruned by, how it is judged."""
    whale = home / "data/moby-dick"
    mails = home / "data/spam-assassin"
    chapters = lambda numbers: "text:" + ",".join(str(whale / f"chapter_{n}.txt") for n in numbers)
    return {
        "sample": {
            "model": "assets/digits-resnet.onnx",
            "calibration": "digits:train#0..512",
            "compare": ["--seconds", "0.2", "--data", "digits:test"],
            "metric": "accuracy",
        },
        "minilm": {
            "model": str(home / "models/minilm-l6"),
            "calibration": f"text:{mails}?label=folder&shuffle=1&lossy=1#400..1200",
            "eval": ["--task", "embed", "--data", f"text:{mails}?label=folder&shuffle=1&lossy=1#0..400", "--window", "128", "--vs", "{original}"],
            "metric": "cosine",
            "also": "probe_accuracy",
        },
        "smollm2": {
            "model": str(home / "models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"),
            "calibration": chapters(range(20, 40)),
            "eval": ["--task", "lm", "--data", chapters([1, 2])],
            "metric": "perplexity",
        },
    }


def run(arguments):
    begin = time.time()
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode:
        print(" ".join(str(a) for a in arguments), done.stderr[-2000:], file=sys.stderr)
        return None, time.time() - begin
    return done.stdout, time.time() - begin


def forget(program, home, text):
    """Deletes the job of a finished run, which holds a second copy of the model."""
    job = next(line.split()[1] for line in text.splitlines() if line.startswith("job "))
    run([program, "--home", home, "jobs", "delete", "--yes", job])


def judged(program, home, model, original, entry, out):
    """The evaluation of a file, as JSON."""
    if out.exists():
        return json.loads(out.read_text())
    common = [program, "--home", home, "--threads", "2", "--format", "json"]
    if "compare" in entry and model != original:
        text, _ = run([*common, "compare", *entry["compare"], original, model])
    else:
        asked = [a.replace("{original}", str(original)) for a in entry.get("eval", entry.get("compare", [])[2:])]
        text, _ = run([*common, "eval", model, *asked])
    if text is None:
        return None
    out.write_text(text)
    return json.loads(text)


def figure(evaluation, metric):
    if rows := evaluation.get("rows"):
        return rows[1]["measurement"]["quality"]["value"]
    found = (evaluation.get("evaluations") or evaluation.get("measurements"))[0]
    if found.get("quality", {}).get("metric") == metric:
        return found["quality"]["value"]
    for m in found.get("metrics", []):
        if m["name"] == metric:
            return m["value"]
    raise KeyError(metric)


def cell(evaluation, entry):
    """The figure, and behind it a second one or the p of McNemar's test against the original."""
    if evaluation is None:
        return "failed"
    text = f"{figure(evaluation, entry['metric']):.5g}"
    if also := entry.get("also"):
        text += f" / {figure(evaluation, also):.4g}"
    if rows := evaluation.get("rows"):
        text += f" (p {rows[1]['quality']['p_value']:.2g})"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--home", type=pathlib.Path, default=pathlib.Path(os.environ.get("TINSMITH_HOME", "/tmp/home")))
    parser.add_argument("--models", nargs="+", default=["sample", "minilm", "smollm2"])
    parser.add_argument("--criteria", nargs="+", default=CRITERIA)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.4])
    parser.add_argument("--repairs", nargs="+", default=REPAIRS)
    parser.add_argument("--extra", nargs="*", default=[], help="further settings of the prune step, as KEY=VALUE in TOML")
    parser.add_argument("--recover-tokens", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--keep", action="store_true", help="keep the pruned models")
    a = parser.parse_args()
    all_out = a.out
    for name in a.models:
        # Tokenizers lie beside the models.
        a.out = all_out / name
        a.out.mkdir(parents=True, exist_ok=True)
        entry = models(a.home)[name]
        original = a.out / f"{name}.onnx"
        if not original.exists():
            if entry["model"].endswith(".onnx"):
                original.symlink_to(pathlib.Path(entry["model"]).resolve())
            else:
                run([a.program, "--home", a.home, "import", entry["model"], "-o", original])
        base = figure(judged(a.program, a.home, original, original, entry, a.out / f"{name}.json"), entry["metric"])
        print(f"\n## {name}: {entry['metric']} of the original {base:.5g}\n", flush=True)
        print("| criterion | ratio | " + " | ".join(a.repairs) + " | seconds |")
        print("|---|---|" + "---|" * (len(a.repairs) + 1), flush=True)
        for ratio in a.ratios:
            for criterion in a.criteria:
                cells, spent = [], 0.0
                for repair in a.repairs:
                    label = f"{name}-{criterion}-{ratio}-{repair}" + ("".join("-" + e for e in a.extra)).replace("/", "_")
                    label += f"-{a.recover_tokens}-{a.rate}" if a.recover_tokens else ""
                    result, pruned = a.out / f"{label}.json", a.out / f"{label}.onnx"
                    if not result.exists():
                        recipe = a.out / f"{label}.toml"
                        lines = [
                            "schema_version = 1", f'name = "{label}"', f"model = {json.dumps(str(pathlib.Path(entry['model']).resolve()))}",
                            "threads = 2", "[data]", f"calibration = {json.dumps(entry['calibration'])}", "[[step]]", 'pass = "prune"',
                            f'criterion = "{criterion}"', f"ratio = {ratio}", f'repair = "{repair}"', f"samples = {a.samples}", *a.extra,
                        ]
                        if a.recover_tokens:
                            lines += ["[step.recover]", f"tokens = {a.recover_tokens}", f"rate = {a.rate}"]
                        recipe.write_text("\n".join(lines) + "\n")
                        text, seconds = run([a.program, "--home", a.home, "run", recipe, "-o", pruned])
                        spent += seconds
                        if text is None:
                            cells.append("failed")
                            continue
                        forget(a.program, a.home, text)
                    evaluation = judged(a.program, a.home, pruned, original, entry, result)
                    cells.append(cell(evaluation, entry))
                    if not a.keep:
                        for file in a.out.glob(f"{label}.onnx*"):
                            file.unlink()
                print(f"| {criterion} | {ratio} | " + " | ".join(cells) + f" | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()
