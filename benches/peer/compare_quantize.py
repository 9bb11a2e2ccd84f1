"""Dynamic int8 of one ONNX file, whole process: tinsmith against ONNX Runtime's quantiser, alternating,
in one run. Prints medians of wall time and peak resident memory and their ratios.

    python compare_quantize.py TINSMITH MODEL.onnx [ROUNDS]

Peak memory counts the largest process of a tree: every process that was started below the command is
watched through /proc, since tinsmith computes in a worker of its own session.
"""
import os, pathlib, shutil, statistics, subprocess, sys, tempfile, threading, time

here = pathlib.Path(__file__).parent


def peak_kib(pid):
    try:
        for line in open(f"/proc/{pid}/status"):
            if line.startswith("VmHWM"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def marked(mark):
    """Processes whose environment carries the mark."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark in open(f"/proc/{pid}/environ", "rb").read():
                yield int(pid)
        except OSError:
            continue


def run(command, env):
    mark = f"QUANTIZE_RUN={time.monotonic_ns()}"
    peaks, done = {}, threading.Event()

    def watch():
        known = set()
        while not done.is_set():
            known.update(marked(mark.encode()))
            for pid in known:
                peaks[pid] = max(peaks.get(pid, 0), peak_kib(pid))
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    name, value = mark.split("=")
    process = subprocess.Popen(command, env={**os.environ, **env, name: value}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, errors = process.communicate()
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    if process.returncode:
        sys.exit(f"{command}: {errors.decode()}")
    return seconds, max(peaks.values(), default=0) / 1024


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
            figures[name].append(run(command, {}))
            size = next(work.glob("*.onnx")).stat().st_size / 1e6
            print(f"{name:12} {figures[name][-1][0]:6.2f} s  {figures[name][-1][1]:6.0f} MiB  result {size:.1f} MB", flush=True)
    middle = {n: [statistics.median(c) for c in zip(*v)] for n, v in figures.items()}
    (a, b), (c, d) = middle["tinsmith"], middle["onnxruntime"]
    print(f"median: {a:.2f} s and {b:.0f} MiB against {c:.2f} s and {d:.0f} MiB; time 1/{c / a:.1f}, memory 1/{d / b:.1f}")
    shutil.rmtree(work)


main(*sys.argv[1:])
