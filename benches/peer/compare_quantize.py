"""Dynamic int8 of one ONNX file, whole process: tinsmith against ONNX Runtime's quantiser, alternating,
in one run. Prints medians of wall time, processor time and peak resident memory, and their ratios.

    python compare_quantize.py TINSMITH MODEL.onnx [ROUNDS]

Tinsmith computes in a worker of its own session, so that every process that was started below the
command is watched through /proc, by a mark in its environment. `peak` is that of the largest process,
`together` the largest sum at any moment; processor time counts all of them and does not depend on what
else the machine does.
"""
import pathlib, shutil, statistics, sys, tempfile

from watch import run

here = pathlib.Path(__file__).parent


def main(tinsmith, model, rounds=5):
    work = pathlib.Path(tempfile.mkdtemp())
    ours = [tinsmith, "quantize", model, "--scheme", "dynamic-int8", "-o", str(work / "ours.onnx"), "--home", str(work / "home"), "--quiet"]
    theirs = [sys.executable, str(here / "quantize.py"), model, str(work / "theirs.onnx")]
    figures = {"tinsmith": [], "onnxruntime": []}
    for _ in range(int(rounds)):
        for name, command in (("tinsmith", ours), ("onnxruntime", theirs)):
            for old in work.glob("*.onnx"):
                old.unlink()
            shutil.rmtree(work / "home", ignore_errors=True)
            figures[name].append(run(command))
            wall, cpu, peak, together = figures[name][-1]
            size = next(work.glob("*.onnx")).stat().st_size / 1e6
            print(f"{name:12} {wall:6.2f} s  {cpu:6.2f} s of processor  peak {peak:4.0f} MiB  together {together:4.0f} MiB  result {size:.1f} MB", flush=True)
    a, b = ([statistics.median(c) for c in zip(*figures[n])] for n in ("tinsmith", "onnxruntime"))
    print("median       " + "  ".join(f"{n} 1/{y / x:.1f}" for n, x, y in zip(("time", "processor", "peak", "together"), a, b)))
    print(f"median       {a[0]:.2f} s, {a[1]:.2f} s, {a[2]:.0f} MiB, {a[3]:.0f} MiB against {b[0]:.2f} s, {b[1]:.2f} s, {b[2]:.0f} MiB, {b[3]:.0f} MiB")
    shutil.rmtree(work)


main(*sys.argv[1:])
