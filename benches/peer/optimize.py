"""What `tinsmith optimize` brings on ONNX Runtime beside what ONNX Runtime's own optimiser does.

    python optimize.py TINSMITH OUT_DIR NAME=MODEL.onnx[:INPUT=SHAPE[,INPUT=SHAPE]] ...

SHAPE is like 1x3x320x320. For each model: nodes as given, after `optimize` (target standard and ort), and what ONNX
Runtime makes of each at level all; the largest difference of the outputs; the median of the latency ratio to the
model as given at levels basic and all, one thread, sample by sample in turn. TINSMITH_HOME must have a runtime.
"""
import os, pathlib, subprocess, sys, time
import numpy as np, onnx, onnxruntime as ort

LEVELS = {"none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL, "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
          "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL}
ROUNDS = int(os.environ.get("ROUNDS", "40"))


def session(path, level, saved=None):
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if saved:
        options.optimized_model_filepath = saved
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def nodes(path):
    return len(onnx.load(str(path), load_external_data=False).graph.node)


def feed(session, shapes):
    noise, out = np.random.default_rng(0), {}
    for i in session.get_inputs():
        shape = shapes.get(i.name) or [d if isinstance(d, int) else 1 for d in i.shape]
        if "int" in i.type:
            kind = np.int64 if "64" in i.type else np.int32
            if "mask" in i.name:
                value = np.ones(shape, kind)
            elif "type" in i.name:
                value = np.zeros(shape, kind)
            else:
                value = noise.integers(0, 256, shape).astype(kind)
        else:
            value = noise.normal(size=shape).astype(np.float32)
        out[i.name] = value
    return out


def main(tinsmith, folder, *models):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    print("| model | nodes | standard | ort | runtime alone | ort, then runtime | difference | basic: standard, ort | all: standard, ort |")
    print("|---|---|---|---|---|---|---|---|---|")
    for spec in models:
        name, rest = spec.split("=", 1)
        path, _, given = rest.partition(":")
        shapes = {k: [int(n) for n in v.split("x")] for k, v in (s.split("=") for s in given.split(",") if s)}
        files = [path]
        for target in ("standard", "ort"):
            made = folder / f"{name}-{target}.onnx"
            subprocess.run([tinsmith, "--quiet", "optimize", path, "--target", target, "-o", str(made)], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            files.append(made)
        after = []
        for f in files:
            saved = str(folder / "saved.onnx")
            session(f, "all", saved)
            after.append(nodes(saved))
        plain = [session(f, "none") for f in files]
        data = feed(plain[0], shapes)
        outputs = [s.run(None, data) for s in plain]
        far = max(float(np.abs(a.astype(np.float64) - b).max()) for o in outputs[1:] for a, b in zip(outputs[0], o))
        most = max(float(np.abs(a).max()) for a in outputs[0])
        ratios = []
        for level in ("basic", "all"):
            sessions = [session(f, level) for f in files]
            times = [[] for _ in files]
            for r in range(ROUNDS + 3):
                for k, s in enumerate(sessions):
                    start = time.perf_counter()
                    s.run(None, data)
                    if r >= 3:
                        times[k].append(time.perf_counter() - start)
            base = np.array(times[0])
            ratios.append(", ".join(f"{np.median(np.array(t) / base):.2f}" for t in times[1:]))
        counts = [nodes(f) for f in files]
        print(f"| {name} | {counts[0]} | {counts[1]} | {counts[2]} | {after[0]} | {after[2]} | {far:.1e} of {most:.2g} | "
              f"{ratios[0]} | {ratios[1]} |", flush=True)


main(*sys.argv[1:])
