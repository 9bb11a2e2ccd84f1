"""Runs the model of this directory with plain onnxruntime, on the recorded inputs and with the settings in
session.json, and holds the outputs against those that were recorded when the bundle was made.

    pip install onnxruntime numpy
    python example.py
"""

import json
import pathlib
import sys
import time

import numpy as np
import onnxruntime as ort

HERE = pathlib.Path(__file__).resolve().parent
TYPES = {
    "f16": np.float16, "f32": np.float32, "f64": np.float64, "bool": np.bool_,
    "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64,
}  # fmt: skip
PROVIDERS = {
    "cpu": "CPUExecutionProvider", "xnnpack": "XnnpackExecutionProvider", "dnnl": "DnnlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider", "coreml": "CoreMLExecutionProvider",
    "acl": "ACLExecutionProvider", "cuda": "CUDAExecutionProvider",
}  # fmt: skip
LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def session(described):
    """The model as a session with the settings of session.json."""
    settings = described["settings"]
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    options.inter_op_num_threads = settings["branches"]
    parallel = settings["branches"] > 1
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if parallel else ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = LEVELS[settings["optimization"]]
    options.enable_cpu_mem_arena = settings["arena"]
    options.enable_mem_pattern = settings["memory_pattern"]
    spinning = "1" if settings["spinning"] else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    options.add_session_config_entry("session.inter_op.allow_spinning", spinning)
    options.add_session_config_entry("session.disable_prepacking", "0" if settings["prepacking"] else "1")
    if settings["denormals_as_zero"]:
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    wanted = PROVIDERS[settings["provider"]]
    if wanted not in ort.get_available_providers():
        sys.exit(f"this onnxruntime has no {wanted}, only {', '.join(ort.get_available_providers())}")
    providers = list(dict.fromkeys([wanted, "CPUExecutionProvider"]))
    return ort.InferenceSession(str(HERE / described["model"]), options, providers=providers)


def recorded(port):
    """A recorded input or output."""
    return np.fromfile(HERE / port["file"], dtype=TYPES[port["dtype"]]).reshape(port["shape"])


def main():
    described = json.loads((HERE / "session.json").read_text())
    model = session(described)
    inputs = {port["name"]: recorded(port) for port in described["inputs"]}
    names = [port["name"] for port in described["outputs"]]
    outputs = model.run(names or None, inputs)
    begin = time.perf_counter()
    model.run(names or None, inputs)
    print(f"{described['model']}: {(time.perf_counter() - begin) * 1e3:.3f} ms, onnxruntime {ort.__version__}")
    worst = 0.0
    for port, output in zip(described["outputs"], outputs):
        expected = recorded(port).astype(np.float64)
        if output.shape != expected.shape:
            sys.exit(f"{port['name']} has shape {output.shape}, recorded was {expected.shape}")
        scale = max(float(np.abs(expected).max(initial=0.0)), 1e-30)
        off = float(np.abs(output.astype(np.float64) - expected).max(initial=0.0)) / scale
        print(f"{port['name']} {list(output.shape)}: differs by {off:.2e} of the largest recorded element")
        worst = max(worst, off)
    if not worst <= described["tolerance"]:
        sys.exit(f"outputs differ by {worst:.2e}, {described['tolerance']:.0e} is allowed")


if __name__ == "__main__":
    main()
