"""Quantised by Tinsmith, by onnxruntime.quantization and, where it is installed, by NNCF: the same models, the same calibration arrays, one table.

    python peer.py TINSMITH HOME OUT [--models cls rec ...] [--rounds N]

TINSMITH is the program, HOME a directory into which `tinsmith fetch` has put minilm-l6, magika, ppocr and moby-dick. For every model and scheme
each program runs as a whole process, watched through /proc (time, peak resident memory of its largest process); latencies are interleaved in one
process with 2 threads, quality is against the float model on data that no one calibrated with. On processors without VNNI all of them
use 7 bits for weights, so that no sum saturates. Needs numpy, onnx, onnxruntime, pillow, tokenizers, and nncf for its column.
"""

import argparse
import gzip
import importlib.util
import pathlib
import sys
import time

import numpy

here = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(here), str(here.parent / "peer")]
VNNI = any(flag in pathlib.Path("/proc/cpuinfo").read_text() for flag in ("avx512_vnni", "avx_vnni"))


def images(kind, seeds):
    import lines

    if kind == "rec":
        return {"x": lines.normalised([lines.line(s) for s in seeds])}
    if kind == "det":
        return {"x": lines.normalised([lines.page(s) for s in seeds])}
    turn = lambda s: lines.line(s, 192)[:: -1 if s % 2 else 1, :: -1 if s % 2 else 1]
    return {"x": lines.normalised([turn(s) for s in seeds])}


def digits(file, rows):
    with gzip.open(file, "rt") as table:
        pixels = numpy.loadtxt(table, delimiter=",", dtype=numpy.float32)[rows, :64]
    return {"image": (pixels / 16).reshape(-1, 1, 8, 8)}


def paragraphs(home, chapters, count):
    texts = [p for c in chapters for p in (home / f"data/moby-dick/chapter_{c}.txt").read_text().split("\n\n")]
    return [" ".join(p.split())[:400] for p in texts if len(p) > 200][:count]


def texts(home, model, chapters, count):
    """Paragraphs as a BERT reads them, padded to the longest one."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model.parent / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(paragraphs(home, chapters, count))
    parts = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: numpy.array([getattr(e, part) for e in found], numpy.int64) for name, part in parts.items()}


def sources(home, minilm):
    """Name: file, calibration arrays, held-out arrays, measure of quality."""
    ocr = home / "models/ppocr"
    root = here.parent.parent
    files = sorted((root / "src").rglob("*.rs")) + sorted((root / "docs").rglob("*.md"))
    table, small = root / "assets/digits/digits.csv.gz", root / "assets/digits-resnet.onnx"
    found = {
        "digits": (small, lambda: (digits(table, slice(0, 256, 2)), digits(table, slice(1, 900, 2))), "labels"),
        "cls": (ocr / "ch_ppocr_mobile_v2.0_cls_infer.onnx", lambda: (images("cls", range(100, 132)), images("cls", range(32))), "labels"),
        "det": (ocr / "ch_PP-OCRv4_det_infer.onnx", lambda: (images("det", range(100, 108)), images("det", range(6))), "mask"),
        "rec": (ocr / "ch_PP-OCRv4_rec_infer.onnx", lambda: (images("rec", range(100, 124)), images("rec", range(24))), "characters"),
        "magika": (home / "models/magika/model.onnx", lambda: (tokens(files[::2][:48]), tokens(files[1::2][:48])), "labels"),
    }
    if minilm:
        pair = lambda: (texts(home, minilm, range(20, 40), 64), texts(home, minilm, range(1, 12), 64))
        found["minilm"] = (minilm, pair, "vectors")
    return found


def tokens(files):
    """First and last 1,024 bytes of files, as magika reads them."""
    rows = []
    for file in files:
        data = file.read_bytes()
        ends = [data[:4096].lstrip()[:1024], data[-4096:].rstrip()[-1024:]]
        left, right = (numpy.frombuffer(e, numpy.uint8).astype(numpy.int32) for e in ends)
        row = numpy.full(2048, 256, numpy.int32)
        row[: len(left)] = left
        row[2048 - len(right) :] = right
        rows.append(row)
    return {"bytes": numpy.stack(rows)}


THEIRS = """
import sys, numpy, onnx
from onnx import version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
scheme, model, data, out, vnni = sys.argv[1:]
loaded = onnx.load(model)
if [o.version for o in loaded.opset_import if o.domain == ""][0] < 13:
    model = out + ".13"
    onnx.save(version_converter.convert_version(loaded, 13), model)
pre = out + ".pre"
try:
    quant_pre_process(model, pre)
except Exception:
    quant_pre_process(model, pre, skip_symbolic_shape=True)
rest = dict(per_channel=True, weight_type=QuantType.QInt8, reduce_range=vnni == "0")
class Reader(CalibrationDataReader):
    def __init__(self):
        self.rows = iter([{k: v[i : i + 1] for k, v in arrays.items()} for i in range(len(next(iter(arrays.values()))))])
    def get_next(self):
        return next(self.rows, None)
if scheme == "dynamic-int8":
    quantize_dynamic(pre, out, **rest)
else:
    arrays = dict(numpy.load(data))
    quantize_static(pre, out, Reader(), activation_type=QuantType.QUInt8, **rest)
"""

NNCF = """
import sys, numpy, onnx, nncf
scheme, model, data, out, vnni = sys.argv[1:]
from onnx import version_converter
loaded = onnx.load(model)
if [o.version for o in loaded.opset_import if o.domain == ""][0] < 13:
    loaded = version_converter.convert_version(loaded, 13)
arrays = dict(numpy.load(data))
rows = [{k: v[i : i + 1] for k, v in arrays.items()} for i in range(len(next(iter(arrays.values()))))]
device = nncf.TargetDevice.ANY if vnni == "1" else nncf.TargetDevice.CPU
onnx.save(nncf.quantize(loaded, nncf.Dataset(rows), subset_size=len(rows), target_device=device), out)
"""

RECIPE = """schema_version = 1
name = "{stem}"
model = "{model}"
[data]
calibration = "{data}"
[[step]]
pass = "optimize"
[[step]]
pass = "quantize"
scheme = "{scheme}"
reduce_range = {reduce}
{extra}
"""


def commands(a, name, scheme, model, arrays, out):
    data = out / f"{name}.npz"
    numpy.savez(data, **arrays)
    vnni = "1" if VNNI else "0"
    made = {who: out / f"{name}-{scheme}-{who}.onnx" for who in ("tinsmith", "onnxruntime", "nncf")}
    spec = f"npz:{data}?input={next(iter(arrays))}"
    if len(arrays) > 1:
        folder = out / f"{name}-texts"
        folder.mkdir(exist_ok=True)
        for i, text in enumerate(paragraphs(a.home, range(20, 40), 64)):
            (folder / f"{i:03}.txt").write_text(text)
        spec = f"text:{folder}"
    recipe = out / f"{name}-{scheme}.toml"
    extra = 'calibrator = "mse"' if scheme == "static-int8" else ""
    recipe.write_text(RECIPE.format(stem=name, model=model, data=spec, scheme=scheme, reduce=str(not VNNI).lower(), extra=extra))
    found = {"tinsmith": [a.program, "--home", a.home, "--threads", "2", "run", recipe, "-o", made["tinsmith"]]}
    found["onnxruntime"] = [sys.executable, "-c", THEIRS, scheme, model, data, made["onnxruntime"], vnni]
    if scheme == "static-int8" and importlib.util.find_spec("nncf"):
        found["nncf"] = [sys.executable, "-c", NNCF, scheme, model, data, made["nncf"], vnni]
    return {who: ([str(x) for x in command], made[who]) for who, command in found.items()}


def session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 4
    # Threads that wait by spinning would take the cores from the session whose turn it is.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def rows(arrays):
    return [{k: v[i : i + 1] for k, v in arrays.items()} for i in range(len(next(iter(arrays.values()))))]


def read(y):
    path = y[0].argmax(-1)
    return [c for i, c in enumerate(path) if c and (i == 0 or c != path[i - 1])]


def edits(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        before, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            before, row[j + 1] = row[j + 1], min(before + (x != y), row[j + 1] + 1, row[j] + 1)
    return row[-1]


def quality(kind, wanted, found):
    flat = [(w.ravel().astype(float), f.ravel().astype(float)) for w, f in zip(wanted, found)]
    cosine = numpy.mean([w @ f / numpy.sqrt((w @ w) * (f @ f)) for w, f in flat])
    if kind == "characters":
        pairs = [(read(w), read(f)) for w, f in zip(wanted, found)]
        part = 1 - sum(edits(w, f) for w, f in pairs) / max(1, sum(len(w) for w, _ in pairs))
    elif kind == "mask":
        both = sum(((w > 0.3) & (f > 0.3)).sum() for w, f in flat)
        part = both / max(1, sum(((w > 0.3) | (f > 0.3)).sum() for w, f in flat))
    elif kind == "vectors":
        return f"cosine {cosine:.4f}"
    else:
        part = numpy.mean([w.argmax() == f.argmax() for w, f in flat])
    return f"cosine {cosine:.4f}, {kind} {part:.4f}"


def latencies(sessions, feed, rounds):
    taken = {who: [] for who in sessions}
    for r in range(rounds + 2):
        for who, s in sessions.items():
            begin = time.perf_counter()
            s.run(None, feed)
            if r >= 2:
                taken[who].append(time.perf_counter() - begin)
    return {who: numpy.array(t) for who, t in taken.items()}


def watched(command):
    """Seconds, and MiB of the largest process."""
    import watch

    seconds, _, peak, _ = watch.run(command)
    return seconds, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("home", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--minilm", type=pathlib.Path, help="its f32 ONNX file, with tokenizer.json beside it")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--schemes", nargs="+", default=["dynamic-int8", "static-int8"])
    parser.add_argument("--rounds", type=int, default=30)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    known = sources(a.home, a.minilm)
    print("| model | scheme | by | time | peak | size | latency / float's | quality |\n|---|---|---|---|---|---|---|---|", flush=True)
    for name in a.models or known:
        model, data, kind = known[name]
        calibration, held = data()
        feeds = rows(held)
        for scheme in a.schemes:
            sessions, told = {"float": session(model)}, {}
            for who, (command, made) in commands(a, name, scheme, model, calibration, a.out).items():
                made.unlink(missing_ok=True)
                try:
                    seconds, peak = watched(command)
                    sessions[who] = session(made)
                    told[who] = f"{seconds:.1f} s | {peak:.0f} MiB | {made.stat().st_size / 2**20:.2f} MiB"
                except (SystemExit, Exception) as e:
                    print(f"| {name} | {scheme} | {who} | {str(e).strip().splitlines()[-1][:90]} | | | | |", flush=True)
            which = -1 if kind == "vectors" else 0
            wanted = [sessions["float"].run(None, f)[which] for f in feeds]
            taken = latencies(sessions, feeds[0], a.rounds)
            for who in told:
                ratio = numpy.median(taken[who] / taken["float"])
                found = [sessions[who].run(None, f)[which] for f in feeds]
                print(f"| {name} | {scheme} | {who} | {told[who]} | {ratio:.2f} | {quality(kind, wanted, found)} |", flush=True)


if __name__ == "__main__":
    main()
