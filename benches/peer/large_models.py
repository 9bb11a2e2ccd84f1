"""Writes large ONNX files whose weights are holes in sparse files, so that they take no space on disk:
a stack of matrix products with the weights inline, and the same with external data.

    python large_models.py DIRECTORY [MEGABYTES_INLINE [MEGABYTES_EXTERNAL]]

They show what inspection reads: the structure, never the weights.
"""
import os, pathlib, sys

WIDTH = 4096  # one weight is WIDTH x WIDTH floats, 64 MiB
WEIGHT = WIDTH * WIDTH * 4


def varint(n):
    out = bytearray()
    while True:
        out.append((n & 0x7F) | (0x80 if n > 0x7F else 0))
        n >>= 7
        if not n:
            return bytes(out)


def field(number, payload):
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    payload = payload.encode() if isinstance(payload, str) else payload
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def value(name):
    dims = field(1, field(2, "batch")) + field(1, field(1, WIDTH))
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


def write(path, megabytes, external):
    layers = max(1, (megabytes << 20) // WEIGHT)
    nodes = b""
    for i in range(layers):
        node = field(1, f"h{i}") + field(1, f"w{i}") + field(2, f"h{i + 1}") + field(3, f"mm{i}") + field(4, "MatMul")
        nodes += field(1, node)
    ends = field(2, "large") + field(11, value("h0")) + field(12, value(f"h{layers}"))
    heads = []
    for i in range(layers):
        head = field(1, WIDTH) + field(1, WIDTH) + field(2, 1) + field(8, f"w{i}")
        if external:
            entry = lambda k, v: field(13, field(1, k) + field(2, v))
            head += entry("location", path.name + ".data") + entry("offset", str(i * WEIGHT))
            head += entry("length", str(WEIGHT)) + field(14, 1)
        else:
            head += varint(9 << 3 | 2) + varint(WEIGHT)  # raw_data follows as a hole
        heads.append(head)
    hole = 0 if external else WEIGHT
    tensors = sum(len(varint(5 << 3 | 2) + varint(len(h) + hole)) + len(h) + hole for h in heads)
    graph = len(nodes) + len(ends) + tensors
    with open(path, "wb") as f:
        f.write(field(1, 8) + field(8, field(1, "") + field(2, 17)) + varint(7 << 3 | 2) + varint(graph))
        f.write(nodes + ends)
        for head in heads:
            f.write(varint(5 << 3 | 2) + varint(len(head) + hole) + head)
            f.seek(hole, os.SEEK_CUR)
        f.truncate(f.tell())
    if external:
        with open(f"{path}.data", "wb") as f:
            f.truncate(layers * WEIGHT)


def main(directory, inline=2304, external=6144):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write(directory / "inline.onnx", int(inline), False)
    write(directory / "external.onnx", int(external), True)


main(*sys.argv[1:])
