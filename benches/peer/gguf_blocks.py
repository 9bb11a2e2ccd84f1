"""Writes random blocks of every GGUF encoding with what the `gguf` package makes of them.

Usage: gguf_blocks.py [OUT=tests/fixtures/gguf_blocks.bin] [VALUES=512]

Records one after the other: length of the name (1 byte), name, number of blocks and elements of a block
(4 bytes each, little-endian), the blocks, the elements as little-endian f32. Only blocks whose elements
are finite are kept. `tests/checkpoint.rs` compares every bit.
"""

import struct
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

PLAIN = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures/gguf_blocks.bin"
    values = int(sys.argv[2]) if len(sys.argv) > 2 else 512
    random = np.random.default_rng(7)
    with open(out, "wb") as file:
        for kind in GGMLQuantizationType:
            if kind.name in PLAIN:
                continue
            elements, size = GGML_QUANT_SIZES[kind]
            count = max(2, values // elements // 2)
            blocks, results = [], []
            while len(blocks) < count:
                block = random.integers(0, 256, (1, size), dtype=np.uint8)
                try:
                    with np.errstate(all="ignore"):
                        result = dequantize(block, kind)
                except NotImplementedError:
                    break
                if np.isfinite(result).all():
                    blocks.append(block.tobytes())
                    results.append(result.astype("<f4").tobytes())
            if not blocks:
                print(f"{kind.name}: not supported by the package")
                continue
            name = kind.name.encode()
            file.write(struct.pack("<B", len(name)) + name + struct.pack("<II", count, elements))
            file.write(b"".join(blocks) + b"".join(results))
            print(f"{kind.name}: {count} blocks")


main()
