"""Where one step of decoding spends its time: kernels of ONNX Runtime by operator, one token behind a cache.

    python decode_profile.py MODEL.onnx [PAST] [THREADS]

Needs numpy and onnxruntime.
"""

import collections
import json
import pathlib
import sys
import tempfile

import numpy
import onnxruntime

model, past, threads = sys.argv[1], int((sys.argv + ["461"])[2]), int((sys.argv + ["461", "2"])[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = threads, 4
options.enable_profiling, options.profile_file_prefix = True, str(pathlib.Path(tempfile.mkdtemp()) / "profile")
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
TYPES = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64, "tensor(int32)": numpy.int32}
feed = {}
for port in session.get_inputs():
    # Of the open sizes those of the past are the third of a cache and the last of a mask, all others are 1.
    cache, mask = port.name.startswith("past"), "mask" in port.name
    shape = [d if isinstance(d, int) else 1 for d in port.shape]
    if cache:
        shape[2] = past
    if mask:
        shape[-1] = past + 1
    value = past if "position" in port.name else 1
    feed[port.name] = numpy.full(shape, 0.01 if cache else value, TYPES[port.type])
WARM, RUNS = 5, 40
for _ in range(WARM + RUNS):
    session.run(None, feed)
events = json.loads(pathlib.Path(session.end_profiling()).read_text())
runs = sorted(e["dur"] for e in events if e["name"] == "model_run")
spent, count = collections.Counter(), collections.Counter()
for e in events:
    if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"):
        spent[e["args"]["op_name"]] += e["dur"]
        count[e["args"]["op_name"]] += 1
all_runs = WARM + RUNS
print(f"{model}: one token behind {past}, {threads} threads, median run {runs[len(runs) // 2] / 1e3:.2f} ms (profiled)\n")
print("| operator | nodes | ms a token | part of the kernels |\n|---|---|---|---|")
total = sum(spent.values())
for name, us in spent.most_common(12):
    print(f"| {name} | {count[name] // all_runs} | {us / all_runs / 1e3:.2f} | {100 * us / total:.0f} % |")
print(f"\nkernels together {total / all_runs / 1e3:.2f} ms, {sum(count.values()) // all_runs} nodes")
