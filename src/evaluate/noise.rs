//! What disturbed a measurement: time stolen by the hypervisor, throttling by the control group, other
//! work on the CPUs, waiting for a CPU, a drifting speed of the CPU itself. Where the system does not
//! tell (frequency and temperature on virtual machines), the reference loop stands in.

use super::stats;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Share of CPU time stolen from which a run is flagged.
const STEAL: f64 = 0.01;
/// CPUs busy with other work from which a run is flagged.
const OTHERS: f64 = 0.15;
/// Share of the time in which some task waited for a CPU from which a run is flagged.
const WAITING: f64 = 0.10;
/// Change of the reference loop from which a run is flagged.
const DRIFT: f64 = 0.03;

/// Counters of the system at one moment.
#[derive(Debug, Clone, Default)]
struct Counters {
    /// All CPU time, in ticks.
    total: u64,
    idle: u64,
    stolen: u64,
    /// CPU time of the measured process, in ticks.
    own: u64,
    throttled: u64,
    /// Microseconds in which some task waited for a CPU.
    waiting: Option<u64>,
}

fn stat(text: &str) -> Option<(u64, u64, u64)> {
    let fields: Vec<u64> = text
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .filter_map(|f| f.parse().ok())
        .collect();
    let at = |i: usize| fields.get(i).copied().unwrap_or(0);
    // user nice system idle iowait irq softirq steal; guest time is part of user time.
    Some((fields.iter().take(8).sum(), at(3) + at(4), at(7)))
}

fn own_ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = text.rsplit(") ").next().unwrap_or_default();
    after_name.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum()
}

/// Files that count throttling for this process's control groups (versions 1 and 2).
fn throttle_files() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let is_cpu = controllers.split(',').any(|c| c == "cpu");
        if !is_cpu && !controllers.is_empty() {
            continue;
        }
        let mounts: &[&str] = if is_cpu { &["cpu", "cpu,cpuacct"] } else { &["", "unified"] };
        for mount in mounts {
            // Inside a container the group's path is often not visible; its root then is the group.
            for place in [path.trim_start_matches('/'), ""] {
                files.push(root.join(mount).join(place).join("cpu.stat"));
            }
        }
    }
    files.dedup();
    files.retain(|f| f.is_file());
    files
}

fn throttled(files: &[PathBuf]) -> u64 {
    let count = |file: &PathBuf| {
        let text = std::fs::read_to_string(file).ok()?;
        text.lines().find_map(|l| l.strip_prefix("nr_throttled ")?.trim().parse::<u64>().ok())
    };
    files.iter().filter_map(count).max().unwrap_or(0)
}

fn waiting() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/pressure/cpu").ok()?;
    text.lines().find_map(|l| l.strip_prefix("some ")?.rsplit_once("total=")?.1.trim().parse().ok())
}

/// Watches the system while one process is measured, in as many pieces as there are rounds.
#[derive(Debug)]
pub struct Watch {
    pid: u32,
    files: Vec<PathBuf>,
    started: Option<(Instant, Counters)>,
    elapsed: Duration,
    sum: Counters,
    loops: Vec<f64>,
}

impl Watch {
    /// Watches the process `pid`.
    pub fn new(pid: u32) -> Watch {
        Watch {
            pid,
            files: throttle_files(),
            started: None,
            elapsed: Duration::ZERO,
            sum: Counters { waiting: Some(0), ..Counters::default() },
            loops: Vec::new(),
        }
    }

    fn counters(&self) -> Counters {
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let (total, idle, stolen) = stat(&text).unwrap_or_default();
        Counters {
            total,
            idle,
            stolen,
            own: own_ticks(self.pid),
            throttled: throttled(&self.files),
            waiting: waiting(),
        }
    }

    /// A piece of the measurement begins.
    pub fn start(&mut self) {
        self.started = Some((Instant::now(), self.counters()));
    }

    /// The piece ends; `reference` is the time of a fixed loop in it.
    pub fn stop(&mut self, reference: Option<f64>) {
        let Some((at, before)) = self.started.take() else { return };
        let now = self.counters();
        self.elapsed += at.elapsed();
        self.sum.total += now.total.saturating_sub(before.total);
        self.sum.idle += now.idle.saturating_sub(before.idle);
        self.sum.stolen += now.stolen.saturating_sub(before.stolen);
        self.sum.own += now.own.saturating_sub(before.own);
        self.sum.throttled += now.throttled.saturating_sub(before.throttled);
        self.sum.waiting = match (self.sum.waiting, now.waiting, before.waiting) {
            (Some(sum), Some(now), Some(before)) => Some(sum + now.saturating_sub(before)),
            _ => None,
        };
        self.loops.extend(reference);
    }

    /// What is worth a flag. Counters of the kernel are in ticks of 10 ms, so that pieces below half a
    /// second in all are judged by throttling and the reference loop alone.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        let seconds = self.elapsed.as_secs_f64();
        if seconds >= 0.5 && self.sum.total > 0 {
            let total = self.sum.total as f64;
            let stolen = self.sum.stolen as f64 / total;
            if stolen > STEAL {
                flags.push(format!("steal {:.1} %", stolen * 100.0));
            }
            let ours = self.sum.own + self.sum.stolen + self.sum.idle;
            let others = self.sum.total.saturating_sub(ours) as f64 / total;
            let cpus = others * std::thread::available_parallelism().map_or(1, usize::from) as f64;
            if cpus > OTHERS {
                flags.push(format!("load {cpus:.1}"));
            }
            if let Some(waited) = self.sum.waiting {
                let share = waited as f64 / 1e6 / seconds;
                if share > WAITING {
                    flags.push(format!("cpu pressure {:.0} %", share * 100.0));
                }
            }
        }
        if self.sum.throttled > 0 {
            flags.push(format!("throttled {}x", self.sum.throttled));
        }
        if let Some(drift) = drift(&self.loops).filter(|d| d.abs() > DRIFT) {
            flags.push(format!("drift {:+.1} %", drift * 100.0));
        }
        flags
    }
}

/// Change of the median from the first to the last third, as a share; none below six values.
fn drift(loops: &[f64]) -> Option<f64> {
    let third = loops.len() / 3;
    if third < 2 {
        return None;
    }
    let (first, last) = (stats::median(&loops[..third]), stats::median(&loops[loops.len() - third..]));
    (first > 0.0).then(|| last / first - 1.0)
}

/// Time of a fixed computation, in milliseconds: the fastest of three runs of about half a
/// millisecond of dependent integer operations, which no cache and no memory has a part in.
pub fn reference_loop() -> f64 {
    let run = || {
        let start = Instant::now();
        let mut x = std::hint::black_box(0x9e37_79b9_7f4a_7c15_u64);
        for _ in 0..300_000 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        std::hint::black_box(x);
        start.elapsed().as_secs_f64() * 1e3
    };
    (0..3).map(|_| run()).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_line_is_split_into_total_idle_and_stolen() {
        assert_eq!(stat("cpu  10 1 5 100 4 0 2 8 3 0\ncpu0 1 2\n"), Some((130, 104, 8)));
        assert_eq!(stat("intr 1"), None);
    }

    #[test]
    fn drift_needs_enough_values_and_sees_a_slower_end() {
        assert_eq!(drift(&[1.0; 5]), None);
        assert!(drift(&[1.0; 12]).unwrap().abs() < 1e-12);
        let slower: Vec<f64> = (0..12).map(|i| 1.0 + f64::from(i) * 0.01).collect();
        assert!(drift(&slower).unwrap() > DRIFT);
    }

    #[test]
    fn disturbances_are_flagged_and_their_absence_is_not() {
        let mut watch = Watch::new(std::process::id());
        watch.elapsed = Duration::from_secs(2);
        watch.sum = Counters { total: 400, idle: 200, own: 195, ..Counters::default() };
        assert!(watch.flags().is_empty(), "{:?}", watch.flags());
        watch.sum =
            Counters { total: 400, idle: 20, own: 195, stolen: 8, throttled: 3, waiting: Some(1_000_000) };
        let flags = watch.flags().join(", ");
        for part in ["steal 2.0 %", "load", "throttled 3x", "cpu pressure 50 %"] {
            assert!(flags.contains(part), "{part}: {flags}");
        }
    }
}
