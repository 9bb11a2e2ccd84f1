"""Integer products on a processor that holds sums of two 8-bit products in 16 bits (AVX2), against the
simulation of `tinsmith inspect --saturation` and the test `saturation`.

    python3 benches/quantisation/saturation.py make DIR           # models and inputs
    qemu-x86_64 -cpu Haswell python3 benches/quantisation/saturation.py run DIR avx2
    python3 benches/quantisation/saturation.py run DIR native
    python3 benches/quantisation/saturation.py write DIR FIXTURES # cases as the test reads them

Needs numpy, onnx and onnxruntime; `qemu-x86_64` is in Debian's package qemu-user. All scales are powers of
two, so that rounding of floats decides nothing.
"""

import json
import pathlib
import sys

import numpy as np

TYPES = {"u8": np.uint8, "s8": np.int8}


def tensors(rng, data, weight, shape, kernel):
    """Large magnitudes, so that many pairs saturate."""
    low, high = (170, 256) if data == "u8" else (60, 128)
    x = rng.integers(low, high, shape).astype(TYPES[data])
    if weight == "s8":
        w = (rng.integers(50, 128, kernel) * rng.choice([-1, 1], kernel)).astype(np.int8)
    else:
        w = rng.integers(0, 256, kernel).astype(np.uint8)
    return x, w


def cases():
    """Name, operator, signs, shape of the data, shape of the weight, zero point of the data, attributes."""
    conv = dict
    for m, k, n in [(1, 7, 5), (3, 37, 19), (1, 64, 32), (5, 769, 9), (1, 769, 9)]:
        yield f"matmulinteger_{m}x{k}x{n}", "MatMulInteger", "u8", "s8", (m, k), (k, n), 0, {}
    yield "matmulinteger_zero", "MatMulInteger", "u8", "s8", (3, 33), (33, 6), 9, {}
    yield "matmulinteger_batch", "MatMulInteger", "u8", "s8", (2, 3, 33), (33, 6), 9, {}
    yield "matmulinteger_u8u8", "MatMulInteger", "u8", "u8", (3, 33), (33, 6), 9, {}
    yield "matmulinteger_s8s8", "MatMulInteger", "s8", "s8", (3, 33), (33, 6), 0, {}
    yield "qlinearmatmul", "QLinearMatMul", "u8", "s8", (3, 37), (37, 19), 5, {}
    yield "qlinearmatmul_k770", "QLinearMatMul", "u8", "s8", (1, 770), (770, 8), 5, {}
    yield "qlinearconv_3x3", "QLinearConv", "u8", "s8", (1, 3, 6, 6), (8, 3, 3, 3), 9, conv(pads=[1] * 4)
    yield "qlinearconv_odd", "QLinearConv", "u8", "s8", (1, 5, 6, 6), (7, 5, 3, 3), 0, conv(strides=[2, 2])
    yield "qlinearconv_symmetric", "QLinearConv", "u8", "s8", (1, 16, 5, 5), (32, 16, 3, 3), 9, conv(pads=[1] * 4)
    yield "qlinearconv_1x1", "QLinearConv", "u8", "s8", (2, 16, 4, 4), (16, 16, 1, 1), 0, {}
    yield "qlinearconv_groups", "QLinearConv", "u8", "s8", (1, 6, 6, 6), (8, 3, 3, 3), 9, conv(group=2, pads=[1] * 4)
    yield "qlinearconv_depthwise", "QLinearConv", "u8", "s8", (1, 8, 6, 6), (8, 1, 3, 3), 9, conv(group=8, pads=[1] * 4)
    yield "qlinearconv_k567", "QLinearConv", "u8", "s8", (1, 63, 4, 4), (4, 63, 3, 3), 0, {}
    yield "convinteger_u8s8", "ConvInteger", "u8", "s8", (1, 6, 5, 5), (4, 6, 3, 3), 0, {}
    yield "convinteger_s8u8", "ConvInteger", "s8", "u8", (1, 6, 5, 5), (4, 6, 3, 3), 0, {}
    for op in ("MatMul", "Gemm", "GemmT"):
        weight = (19, 38) if op == "GemmT" else (38, 19)
        for data in ("u8", "s8"):
            yield f"qdq_{op.lower()}_{data}", f"QDQ {op}", data, "s8", (5, 38), weight, 3 if data == "u8" else 0, {}
    yield "qdq_matmul_float", "QDQ MatMul float", "u8", "s8", (4, 601), (601, 7), 3, {}
    yield "qdq_conv_u8", "QDQ Conv", "u8", "s8", (1, 6, 6, 6), (5, 6, 3, 3), 7, conv(pads=[1] * 4)
    yield "qdq_conv_s8", "QDQ Conv", "s8", "s8", (1, 6, 6, 6), (5, 6, 3, 3), 0, conv(pads=[1] * 4)
    yield "qdq_conv_relu", "QDQ Conv Relu", "u8", "s8", (1, 4, 6, 6), (16, 4, 3, 3), 0, conv(pads=[1] * 4)


def build(case, rng):
    from onnx import TensorProto as T, helper as h, numpy_helper as nh

    name, op, data, weight, shape, kernel, zero, attributes = case
    types = {"u8": T.UINT8, "s8": T.INT8, "f": T.FLOAT, "i": T.INT32}
    x, w = tensors(rng, data, weight, shape, kernel)
    fan = float(np.prod(kernel[1:])) if len(kernel) == 4 else float(kernel[0])
    fan = 38.0 if "GemmT" in op else fan
    out_scale = np.float32(2.0 ** np.ceil(np.log2(fan * 220 * 100 / 200)))
    consts = {
        "zx": TYPES[data](zero), "zw": TYPES[weight](0), "w": w, "one": np.float32(1), "half": np.float32(0.5),
        "sy": out_scale * np.float32(0.5), "zy": TYPES[data](128 if data == "u8" else 0),
    }
    if "Relu" in op:
        consts["zy"] = TYPES[data](0)
    features = kernel[1] if len(kernel) == 2 and "GemmT" not in op else kernel[0]
    consts["bias"] = rng.integers(-5000, 5000, features).astype(np.int32)
    node = h.make_node
    kind, result = data, data
    if op in ("MatMulInteger", "ConvInteger"):
        nodes, result = [node(op, ["x", "w", "zx"], ["y"], **attributes)], "i"
    elif op == "QLinearMatMul":
        nodes = [node(op, ["x", "one", "zx", "w", "half", "zw", "sy", "zy"], ["y"])]
    elif op == "QLinearConv":
        nodes = [node(op, ["x", "one", "zx", "w", "half", "zw", "sy", "zy", "bias"], ["y"], **attributes)]
    else:
        kind, result = "f", "f"
        x = (x.astype(np.int32) - zero).astype(np.float32)
        nodes = [
            node("QuantizeLinear", ["x", "one", "zx"], ["xq"]),
            node("DequantizeLinear", ["xq", "one", "zx"], ["xf"]),
            node("DequantizeLinear", ["w", "half", "zw"], ["wf"]),
        ]
        inputs = ["xf", "wf"]
        if "MatMul" not in op:
            nodes.append(node("DequantizeLinear", ["bias", "half"], ["bf"]))
            inputs.append("bf")
        inner = op.split()[1].replace("GemmT", "Gemm")
        if "GemmT" in op:
            attributes = {"transB": 1}
        if op.endswith("float"):
            nodes.append(node(inner, inputs, ["y"], **attributes))
        else:
            nodes.append(node(inner, inputs, ["p"], **attributes))
            if "Relu" in op:
                nodes.append(node("Relu", ["p"], ["r"]))
            nodes.append(node("QuantizeLinear", ["r" if "Relu" in op else "p", "sy", "zy"], ["yq"]))
            nodes.append(node("DequantizeLinear", ["yq", "sy", "zy"], ["y"]))
    used = {i for n in nodes for i in n.input}
    graph = h.make_graph(
        nodes, name, [h.make_tensor_value_info("x", types[kind], list(x.shape))],
        [h.make_tensor_value_info("y", types[result], None)],
        [nh.from_array(np.asarray(v), k) for k, v in consts.items() if k in used],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 13)], ir_version=8), x


def make(where):
    import onnx

    where.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20261127)
    for case in cases():
        model, x = build(case, rng)
        onnx.save(model, where / f"{case[0]}.onnx")
        np.save(where / f"{case[0]}.x.npy", x)


def run(where, tag):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for path in sorted(where.glob("*.onnx")):
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        y = session.run(None, {"x": np.load(path.with_suffix(".x.npy"))})[0]
        np.save(path.with_suffix(f".{tag}.npy"), y)


def write(where, fixtures):
    """Models, and inputs and outputs in one file; where a native run is there, how it differs is told."""
    fixtures.mkdir(parents=True, exist_ok=True)
    found = {}
    for path in sorted(where.glob("*.onnx")):
        x, y = (np.load(path.with_suffix(f".{part}.npy")) for part in ("x", "avx2"))
        (fixtures / path.name).write_bytes(path.read_bytes())
        whole = lambda v: [int(e) if float(e) == int(e) else float(e) for e in v.reshape(-1)]
        found[path.stem] = {"x": whole(x), "shape": list(x.shape), "avx2": whole(y)}
        native = path.with_suffix(".native.npy")
        if native.exists():
            other = np.load(native)
            print(f"{path.stem}: {int((other != y).sum())} of {y.size} elements differ from this machine's")
    (fixtures / "cases.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    command, where = sys.argv[1], pathlib.Path(sys.argv[2])
    if command == "make":
        make(where)
    elif command == "run":
        run(where, sys.argv[3])
    else:
        write(where, pathlib.Path(sys.argv[3]))
