"""Structure of pruned models: every criterion at several ratios gives a file that ONNX Runtime runs, with the promised number of
parameters, and how much faster it is.

Runs `tinsmith run` and `tinsmith compare` for each combination and prints a table. What is done is kept in the output directory, so
that the script goes on where it was stopped. Needs Python 3 alone.

    python3 benches/pruning/structure.py target/release/tinsmith out --home HOME --models sample minilm cls rec det
"""

import argparse
import array
import json
import pathlib
import subprocess
import sys
from random import Random

# Sizes that a model is measured at, where the usual ones do not fit it.
BINDS = {"rec": ["--bind=x.2=48", "--bind=p2o.DynamicDimension.1=320"]}
CRITERIA = ["random", "l1", "l2", "taylor", "llm-pruner", "obd", "activation", "frequency", "flap", "wanda", "minitron"]


def pictures(path, count, height, width):
    """A .npy of [count, 3, height, width] f32: strokes on a plain ground, as the text models see; seeded."""
    if not path.exists():
        random, values = Random(5), array.array("f")
        for _ in range(count):
            plane = [1.0] * (height * width)
            for _ in range(width // 8):
                x, y = random.randrange(width), random.randrange(height)
                across, down, ink = random.randint(2, 12), random.randint(2, height // 2), random.uniform(-1, 0.5)
                for i in range(y, min(height, y + down)):
                    for j in range(x, min(width, x + across)):
                        plane[i * width + j] = ink
            values.extend(plane * 3)
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, 3, {height}, {width}), }}"
        header += " " * (-(len(header) + 11) % 64) + "\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + values.tobytes())
    return f"npy:{path}"


def models(home, out):
    whale = home / "data/moby-dick"
    text = "text:" + ",".join(str(whale / f"chapter_{n}.txt") for n in (20, 21, 22))
    return {
        "sample": ("assets/digits-resnet.onnx", "digits:train#0..64"),
        "minilm": (home / "models/minilm-l6", text + "?by=paragraph"),
        "smollm2": (home / "models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf", text),
        "cls": (home / "models/ppocr/ch_ppocr_mobile_v2.0_cls_infer.onnx", pictures(out / "cls.npy", 16, 48, 192)),
        "rec": (home / "models/ppocr/ch_PP-OCRv4_rec_infer.onnx", pictures(out / "rec.npy", 16, 48, 320)),
        "det": (home / "models/ppocr/ch_PP-OCRv4_det_infer.onnx", pictures(out / "det.npy", 4, 160, 160)),
    }


def run(arguments):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode:
        print(" ".join(str(a) for a in arguments), done.stderr[-1500:], file=sys.stderr)
        return None
    return done.stdout


def one(a, name, criterion, ratio, target, model, data, original):
    """Prunes, counts and measures once; what was found, as JSON."""
    label = f"{name}-{criterion}-{target}{ratio}"
    out, pruned = a.out / f"{label}.json", a.out / f"{label}.onnx"
    if out.exists():
        return json.loads(out.read_text())
    much = f"ratio = {ratio}" if target == "r" else f"target = {{ {target} = {round(1 - ratio, 4)} }}"
    lines = ["schema_version = 1", f'name = "{label}"', f"model = {json.dumps(str(pathlib.Path(model).resolve()))}", "threads = 1"]
    if data:
        lines += ["[data]", f"calibration = {json.dumps(data)}"]
    lines += ["[[step]]", 'pass = "prune"', f'criterion = "{criterion}"', much, f"samples = {a.samples}", *a.extra]
    recipe = a.out / f"{label}.toml"
    recipe.write_text("\n".join(lines) + "\n")
    text = run([a.program, "--home", a.home, "run", recipe, "-o", pruned])
    if text is None:
        return None
    job = next(line.split()[1] for line in text.splitlines() if line.startswith("job "))
    report = json.loads((a.home / "jobs" / job / "artifacts/01-prune.report.json").read_text())
    # It holds a second copy of the model.
    run([a.program, "--home", a.home, "jobs", "delete", "--yes", job])
    facts, groups = report["facts"], report["groups"]
    # One rounding step: `round_to` units of the group whose unit holds most, at most.
    unit = max(g["parameters_per_unit"] for g in groups if g["kept"] < g["units"])
    found = {**facts, "unit": unit}
    if a.seconds:
        text = run([a.program, "--home", a.home, "--threads", "1", "--format", "json", "compare", "--seconds", a.seconds, *BINDS.get(name, []), original, pruned])
        if text is None:
            return None
        before, after = json.loads(text)["rows"]
        found["latency"], found["parameters_in_file"] = after["latency"], after["measurement"]["parameters"]
        found["macs_before"], found["macs_after"] = before["measurement"]["macs"], after["measurement"]["macs"]
    if not a.keep:
        for file in a.out.glob(f"{label}.onnx*"):
            file.unlink()
    out.write_text(json.dumps(found))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--home", type=pathlib.Path, required=True)
    parser.add_argument("--models", nargs="+", default=["sample", "minilm", "cls", "rec", "det"])
    parser.add_argument("--criteria", nargs="+", default=CRITERIA)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.1, 0.3, 0.5])
    parser.add_argument("--targets", nargs="+", default=["r"], help="r for the ratio of parameters; or macs, latency")
    parser.add_argument("--extra", nargs="*", default=[], help="further settings of the prune step, as KEY=VALUE in TOML")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--keep", action="store_true")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    for name in a.models:
        model, data = models(a.home, a.out)[name]
        original = a.out / f"{name}.onnx"
        if str(model).endswith(".onnx"):
            original = pathlib.Path(model).resolve()
        elif not original.exists():
            run([a.program, "--home", a.home, "import", model, "-o", original])
        print(f"\n## {name}\n\n| criterion | asked | parameters removed, of those that may | off by, in steps of 8 units | MACs left | latency |\n|---|---|---|---|---|---|", flush=True)
        for target in a.targets:
            for ratio in a.ratios:
                for criterion in a.criteria:
                    f = one(a, name, criterion, ratio, target, model, data, original)
                    if f is None:
                        print(f"| {criterion} | {target} {ratio} | failed |", flush=True)
                        continue
                    off = abs(f["removed_parameters"] - ratio * f["removed_parameters"] / f["ratio"]) / (8 * f["unit"]) if target == "r" else float("nan")
                    macs = f["macs_after"] / max(1, f["macs_before"])
                    latency = "–"
                    if change := f.get("latency"):
                        interval = change["ci95"] or {"low": float("nan"), "high": float("nan")}
                        latency = f"{change['delta']:+.1%} ({interval['low']:+.1%}..{interval['high']:+.1%})"
                    print(f"| {criterion} | {target} {ratio} | {f['removed_parameters']:.0f} = {f['ratio']:.4f} | {off:.2f} | {macs:.3f} | {latency} |", flush=True)


if __name__ == "__main__":
    main()
