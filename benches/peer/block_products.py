"""Time and error of ONNX Runtime's MatMulNBits on this processor: kinds of zero point, accuracy levels, 4 and 8 bits, for
one row (decoding) and 128 (prefill), alternating, beside MatMul in f32.

    python block_products.py [THREADS]

Zero points: in the middle, whole (a byte), f32, and in the middle with sums over blocks of the data times an offset added.
Errors are the largest, relative to the largest output in f64.
"""
import sys, time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

BLOCK, KINDS, LEVELS, SHAPES = 32, ["middle", "whole", "f32", "offsets"], [0, 1, 4], [(576, 1536), (1536, 576)]


def packed(q, bits):
    q = np.pad(q, [(0, 0)] * (q.ndim - 1) + [(0, q.shape[-1] % (8 // bits))])
    return q if bits == 8 else q[..., 0::2] | q[..., 1::2] << 4


def product(kind, k, n, level, bits, threads):
    rng = np.random.default_rng(0)
    blocks, middle = k // BLOCK, 1 << bits - 1
    q = rng.integers(0, 1 << bits, (n, blocks, BLOCK), dtype=np.uint8)
    half = lambda a: a.astype(np.float16).astype(np.float32)
    d = half(rng.random((n, blocks)) * 0.01 + 0.01)
    m = half(-d * (rng.random((n, blocks)) * 6 + 5))
    constants = {"q": packed(q, bits), "d": d.reshape(-1)}
    inputs, output, nodes = ["x", "q", "d"], "y", []
    least = {"middle": -middle * d, "whole": -np.round(-m / d) * d}.get(kind, m).astype(np.float64)
    if kind == "whole":
        constants["z"] = packed(np.round(-m / d).astype(np.uint8), bits).reshape(-1)
        inputs.append("z")
    elif kind == "f32":
        constants["z"] = (-m / d).reshape(-1)
        inputs.append("z")
    elif kind == "offsets":
        output = "levels"
        constants |= {"o": np.ascontiguousarray((m + middle * d).T), "shape": np.array([0, 0, blocks, BLOCK]), "axis": np.array([3])}
        nodes = [
            helper.make_node("Reshape", ["x", "shape"], ["split"]),
            helper.make_node("ReduceSum", ["split", "axis"], ["sums"], keepdims=0),
            helper.make_node("MatMul", ["sums", "o"], ["part"]),
            helper.make_node("Add", ["levels", "part"], ["y"]),
        ]
    w = (d[..., None].astype(np.float64) * q + least[..., None]).reshape(n, k)
    if kind == "float":
        constants, nodes = {"w": np.ascontiguousarray(w.T.astype(np.float32))}, [helper.make_node("MatMul", ["x", "w"], ["y"])]
    else:
        sizes = dict(K=k, N=n, bits=bits, block_size=BLOCK, **({"accuracy_level": level} if level else {}))
        nodes.insert(0, helper.make_node("MatMulNBits", inputs, [output], domain="com.microsoft", **sizes))
    port = lambda name, width: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "rows", width])
    graph = helper.make_graph(nodes, "g", [port("x", k)], [port("y", n)], [numpy_helper.from_array(a, name) for name, a in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]), w


def main(threads=2):
    print("| bits | shape | rows | zero points | accuracy level | time, us | error |\n|---|---|---|---|---|---|---|")
    for bits in (4, 8):
        for k, n in SHAPES:
            sessions = {}
            for kind, level in [("float", 0)] + [(kind, level) for level in LEVELS for kind in KINDS]:
                try:
                    sessions[kind, level] = product(kind, k, n, level, bits, int(threads))
                except Exception as e:
                    print(f"| {bits} | {k} x {n} | | {kind} | {level} | refused | {str(e).strip().splitlines()[-1][-120:]} |")
            for rows in (1, 128):
                x = np.random.default_rng(1).standard_normal((1, rows, k)).astype(np.float32)
                times, errors = {key: [] for key in sessions}, {}
                for key, (session, w) in sessions.items():
                    wanted = x[0].astype(np.float64) @ w.T
                    errors[key] = np.abs(session.run(None, {"x": x})[0][0] - wanted).max() / np.abs(wanted).max()
                for _ in range(20):
                    for key, (session, _) in sessions.items():
                        times_of = 10 if rows == 1 else 2
                        start = time.perf_counter()
                        for _ in range(times_of):
                            session.run(None, {"x": x})
                        times[key].append((time.perf_counter() - start) / times_of)
                for (kind, level), taken in times.items():
                    print(f"| {bits} | {k} x {n} | {rows} | {kind} | {level} | {1e6 * np.median(taken):.0f} | {errors[kind, level]:.1e} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
