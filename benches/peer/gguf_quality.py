"""Quality of llama.cpp's formats on weights that were trained: the weights of an exported model are put into a GGUF file in f32,
with zeros where neurons were cut from a layer, llama.cpp quantises that, and `tinsmith eval` holds each result against the exported model, on the same texts as `matrix.py`.

    python gguf_quality.py target/release/tinsmith FETCHED.gguf TRAINED.onnx OUT --home HOME

FETCHED.gguf gives names, metadata and tokenizer. What is evaluated are the weights as each format has them, in f32: llama.cpp itself
rounds the data to 8 bits on top.
"""
import argparse, ctypes, json, pathlib, subprocess

import gguf, llama_cpp, numpy as np, onnx
from onnx import numpy_helper

PEERS = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
         "Q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1}


def in_f32(fetched, trained, out):
    model = onnx.load(trained)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    reader = gguf.GGUFReader(fetched)
    heads, groups = (reader.fields[f"llama.attention.{n}"].contents() for n in ("head_count", "head_count_kv"))
    writer = gguf.GGUFWriter(out, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        w = weights[tensor.name]
        if w.ndim == 2 and tensor.name != "token_embd.weight":
            w = w.T
            if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
                # The format has the two halves of a head's rotation side by side, the exported model one behind the other.
                n = heads if tensor.name.endswith("attn_q.weight") else groups
                w = w.reshape(n, 2, len(w) // n // 2, -1).swapaxes(1, 2).reshape(w.shape)
            # GGUF tells the faster axis first.
            w = np.pad(w, [(0, int(n) - have) for n, have in zip(reversed(tensor.shape), w.shape)])
        writer.add_tensor(tensor.name, np.ascontiguousarray(w, dtype=np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("fetched", type=pathlib.Path)
    parser.add_argument("trained", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--home", type=pathlib.Path, required=True)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    whole = a.out / "F32.gguf"
    if not whole.exists():
        in_f32(a.fetched, a.trained, whole)
    texts = "text:" + ",".join(str(a.home / f"data/moby-dick/chapter_{n}.txt") for n in (1, 2))
    for name in ["F32", *PEERS]:
        path = a.out / f"{name}.gguf"
        if not path.exists():
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype = PEERS[name]
            if llama_cpp.llama_model_quantize(str(whole).encode(), str(path).encode(), ctypes.byref(settings)):
                raise RuntimeError(f"llama.cpp could not write {path}")
        told = subprocess.run([a.program, "--home", a.home, "--threads", "2", "--format", "json", "eval", path, "--task", "lm", "--data", texts,
                               "--vs", a.trained], capture_output=True, text=True)
        if told.returncode:
            print(f"| {name} | {told.stderr[-600:]} |")
            continue
        metrics = json.loads(told.stdout)["evaluations"][0]["metrics"]
        print(f"| {name} | {path.stat().st_size / 2**20:.1f} MiB | " + ", ".join(f"{m['name']} {m['value']:.5g}" for m in metrics) + " |", flush=True)


if __name__ == "__main__":
    main()
