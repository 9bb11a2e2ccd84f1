"""Dynamic int8 of one ONNX file, whole process: tinsmith against ONNX Runtime's quantiser, alternating,
in one run. Prints medians of wall time, processor time and peak resident memory, and their ratios.

    python compare_quantize.py TINSMITH MODEL.onnx [ROUNDS]

Tinsmith computes in a worker of its own session, so that every process that was started below the
command is watched through /proc, by a mark in its environment. `peak` is that of the largest process,
`together` the largest sum at any moment; processor time counts all of them and does not depend on what
else the machine does.
"""
import os, pathlib, shutil, statistics, subprocess, sys, tempfile, threading, time

here = pathlib.Path(__file__).parent
TICK = os.sysconf("SC_CLK_TCK")


def memory(pid):
    """Peak and current resident KiB."""
    found = {}
    try:
        for line in open(f"/proc/{pid}/status"):
            if line.startswith(("VmHWM", "VmRSS")):
                found[line[:5]] = int(line.split()[1])
    except OSError:
        pass
    return found.get("VmHWM", 0), found.get("VmRSS", 0)


def processor(pid):
    """Seconds of user and system time."""
    try:
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK
    except (OSError, IndexError):
        return 0.0


class Watch(threading.Thread):
    """Follows all processes whose environment carries the mark."""

    def __init__(self, mark):
        super().__init__()
        self.mark, self.done = mark.encode(), threading.Event()
        self.peaks, self.cpu, self.together, self.looks = {}, {}, 0, {}

    def look(self):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            # A process may be seen between its fork and its exec, so it is looked at a few times.
            if pid in self.peaks or self.looks.get(pid, 0) >= 4:
                continue
            self.looks[pid] = self.looks.get(pid, 0) + 1
            try:
                if self.mark in open(f"/proc/{pid}/environ", "rb").read():
                    self.peaks[pid] = 0
            except OSError:
                continue
        now = 0
        for pid in self.peaks:
            peak, current = memory(pid)
            self.peaks[pid] = max(self.peaks[pid], peak)
            self.cpu[pid] = max(self.cpu.get(pid, 0.0), processor(pid))
            now += current
        self.together = max(self.together, now)

    def run(self):
        while not self.done.is_set():
            self.look()
            time.sleep(0.004)


def run(command):
    name, value = "QUANTIZE_RUN", str(time.monotonic_ns())
    watch = Watch(f"{name}={value}")
    watch.start()
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, name: value}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, errors = process.communicate()
    seconds = time.perf_counter() - start
    watch.done.set()
    watch.join()
    if process.returncode:
        sys.exit(f"{command}: {errors.decode()}")
    peak = max(watch.peaks.values(), default=0)
    return seconds, sum(watch.cpu.values()), peak / 1024, watch.together / 1024


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
