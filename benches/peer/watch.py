"""Time, processor time and memory of a command with all processes that it starts, wherever they go."""

import os, subprocess, sys, threading, time

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
