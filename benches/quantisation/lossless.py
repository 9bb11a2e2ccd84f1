"""Largest difference of the weights of a float ONNX file and of `tinsmith quantize --rounding lossless` of the same model, each as
real numbers: `scale * (level - middle) + offset` in f64.

    python benches/quantisation/lossless.py FLOAT.onnx LOSSLESS.onnx
"""
import collections, sys

import numpy as np
import onnx
from onnx import numpy_helper


def main(original, stored):
    graphs = [onnx.load(path).graph for path in (original, stored)]
    tensors = [{t.name: t for t in g.initializer} for g in graphs]
    read = lambda which, name: numpy_helper.to_array(tensors[which][name])
    attributes = lambda node: {a.name: a.i for a in node.attribute}
    floats = {n.input[1]: n for n in graphs[0].node if n.op_type in ("MatMul", "Gemm") and n.input[1] in tensors[0]}
    made = {o: n for n in graphs[1].node for o in n.output}
    sums = {i: n for n in graphs[1].node if n.op_type == "Add" and n.name.endswith("_with_offsets") for i in n.input}
    worst, count, kinds = 0.0, 0, collections.Counter()
    for node in graphs[1].node:
        if node.op_type != "MatMulNBits":
            continue
        a = attributes(node)
        n, k, bits, block = a["N"], a["K"], a["bits"], a["block_size"]
        levels = read(1, node.input[1]).reshape(n, -1)
        if bits == 4:
            levels = np.stack([levels & 15, levels >> 4], -1).reshape(n, -1)
        zeros = np.full((n, k // block), 1 << bits - 1)
        if len(node.input) > 3 and node.input[3]:
            zeros = read(1, node.input[3]).reshape(n, -1)
            zeros = (np.stack([zeros & 15, zeros >> 4], -1).reshape(n, -1) if bits == 4 else zeros)[:, : k // block]
        scales = read(1, node.input[2]).reshape(n, -1, 1).astype(np.float64)
        w = (levels.reshape(n, -1, block).astype(np.float64) - zeros[..., None]) * scales
        kind = f"{bits} bits"
        if node.output[0] in sums:
            part = next(made[i] for i in sums[node.output[0]].input if i != node.output[0])
            w += read(1, part.input[1]).T[..., None].astype(np.float64)
            kind += " with offsets"
        name = node.input[1].removesuffix("_quantized")
        wanted = read(0, name)
        if not attributes(floats[name]).get("transB"):
            wanted = wanted.T
        worst = max(worst, np.abs(w.reshape(n, k) - wanted).max())
        count += n * k
        kinds[kind] += 1
    print(", ".join(f"{n} products on {kind}" for kind, n in kinds.items()), f"- {count} weights, largest difference {worst}")


if __name__ == "__main__":
    main(*sys.argv[1:])
