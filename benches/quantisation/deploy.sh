#!/usr/bin/env bash
# Bundles of real models, run elsewhere: with onnxruntime in Python and, with RUST=1, with the crate `ort`.
#
#   deploy.sh TINSMITH PYTHON OUT MODEL...
#
# PYTHON has onnxruntime and numpy. Where RUST=1, ORT_DYLIB_PATH names the library. Each model is tuned
# where TUNE=1, deployed to OUT/NAME, checked, and run; the script stops at the first failure.
set -euo pipefail
tinsmith=$1 python=$2 out=$3
shift 3
mkdir -p "$out"
for model in "$@"; do
    name=$(basename "${model%.*}")
    copy=$out/$name.source
    mkdir -p "$copy"
    cp -r "$(dirname "$model")"/. "$copy" 2>/dev/null || true
    model=$copy/$(basename "$model")
    echo "== $name"
    if [ "${TUNE:-0}" = 1 ]; then "$tinsmith" --quiet optimize "$model" --tune --format csv; fi
    "$tinsmith" --quiet deploy "$model" --to "$out/$name" --force
    "$tinsmith" --quiet deploy --check "$out/$name" --format csv | wc -l
    (cd "$out/$name" && sha256sum --quiet -c SHA256SUMS)
    "$python" "$out/$name/example.py"
    if [ "${RUST:-0}" = 1 ]; then
        (cd "$out/$name" && CARGO_TARGET_DIR="$out/target" ${CARGO:-cargo} run --quiet --release)
    fi
done
