"""Token ids of reference tokenizers, as digests and small samples, for the tests of `formats::tokenizer`.

    python tokenize_reference.py SMOLLM2.gguf MINILM_DIR MOBY_DICK_DIR SAMPLE.txt > reference.json

`tinsmith fetch smollm2-135m minilm-l6 moby-dick` puts the inputs into the cache. The references are the
tokenizers library (Python, with the Oniguruma engine for patterns) over the model's own tokenizer.json,
and for SmolLM2 over the vocabulary in its GGUF with the pipeline of the original repository (single
digits, then byte level). transformers builds the tokenizer of a GGUF without the step that sets digits
apart; the number of texts in which that shows is printed.

Each corpus is a list of texts in the order of their names; the digest is SHA-256 over the ids of all
texts as little-endian u32, each text followed by 0xffffffff.
"""

import hashlib
import json
import pathlib
import struct
import sys

import tokenizers
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SAMPLES = [
    "Hello",
    " Hello",
    "Hello world! 123 Café déjà vu.\n  multiple   spaces",
    "The capital of France is",
    "汉字とかな 한국어 🙂👩‍👩‍👧‍👦",
    "fn main() {\n\tprintln!(\"{}\", 0x1F);\n}\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "it's I'LL we've 1234567 ½ x² Ⅷ",
    "   \n\n  \t\t x  ",
    "",
]


def smollm2(path):
    fields = GGUFReader(path).fields
    get = lambda key: fields[f"tokenizer.ggml.{key}"].contents()
    tokens, kinds, merges = get("tokens"), get("token_type"), get("merges")
    assert get("model") == "gpt2" and get("pre") == "smollm"
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds) if k == 3])
    return tokenizer


def digest(encode, texts):
    h, count = hashlib.sha256(), 0
    for text in texts:
        ids = encode(text)
        count += len(ids)
        h.update(struct.pack(f"<{len(ids) + 1}I", *ids, 0xFFFFFFFF))
    return {"texts": len(texts), "tokens": count, "sha256": h.hexdigest()}


def main():
    gguf, minilm, moby, sample = map(pathlib.Path, sys.argv[1:5])
    chapters = [p.read_text(encoding="utf-8") for p in sorted(moby.glob("*.txt"))]
    sample = sample.read_text(encoding="utf-8")
    plain = {"smollm2-135m": smollm2(str(gguf)), "minilm-l6": Tokenizer.from_file(str(minilm / "tokenizer.json"))}
    out = {"made_by": f"tokenizers {tokenizers.__version__}", "models": {}}
    for name, tokenizer in plain.items():
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for special in (False, True):
            encode = lambda text: tokenizer.encode(text, add_special_tokens=special).ids
            out["models"][f"{name}{'+special' if special else ''}"] = {
                "moby-dick": digest(encode, chapters),
                "sample": digest(encode, [sample]),
                "lines": digest(encode, sample.split("\n")),
                "samples": [{"text": t, "ids": encode(t)} for t in SAMPLES],
                "decoded": [tokenizer.decode(encode(t), skip_special_tokens=True) for t in SAMPLES],
            }
    try:
        from transformers import AutoTokenizer

        other = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        lines = [line for text in chapters + [sample] for line in text.split("\n")]
        different = sum(plain["smollm2-135m"].encode(line).ids != other.encode(line) for line in lines)
        print(f"transformers differs in {different} of {len(lines)} lines", file=sys.stderr)
    except ImportError:
        print("transformers is not installed: not checked against it", file=sys.stderr)
    json.dump(out, sys.stdout, indent=1, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
