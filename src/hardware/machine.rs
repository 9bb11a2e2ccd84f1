//! The machine as the kernel describes it. [`Machine::detect`] reads `/proc` and `/sys`; tests read
//! descriptions from files instead.

use crate::units::Bytes;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Cache sizes of one core, and of the last level as a whole; zero where unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Caches {
    /// First-level data cache.
    pub l1d_bytes: u64,
    /// Second level.
    pub l2_bytes: u64,
    /// Third level.
    pub l3_bytes: u64,
}

/// Limits that hold for this process.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// CPU time a second of wall time, in CPUs, where a quota is set.
    pub cpu_quota: Option<f64>,
    /// Memory limit, where one is set below the machine's memory.
    pub memory_bytes: Option<u64>,
    /// CPUs that this process may run on.
    pub cpus: Vec<usize>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Host name.
    pub host: String,
    /// Operating system and kernel.
    pub system: String,
    /// CPU model.
    pub cpu: String,
    /// `x86_64`, `aarch64`, ...
    pub arch: String,
    /// CPU features by the kernel's names.
    pub features: Vec<String>,
    /// Physical cores; logical ones where the kernel does not tell.
    pub cores: usize,
    /// Logical CPUs.
    pub cpus: usize,
    /// Caches.
    pub caches: Caches,
    /// Memory.
    pub memory_bytes: u64,
    /// Memory that is free or can be freed.
    pub available_bytes: u64,
    /// Limits.
    pub limits: Limits,
    /// Graphics processors by device file.
    pub gpus: Vec<String>,
    /// Whether this is a virtual machine.
    pub virtual_machine: bool,
}

/// The instruction-set tags, best first, each with the features that make it.
pub(super) const ISA: &[(&str, &[&str])] = &[
    ("amx", &["amx_int8", "amx_tile"]),
    ("avx512_vnni", &["avx512f", "avx512_vnni"]),
    ("avx_vnni", &["avx_vnni"]),
    ("avx512", &["avx512f", "avx512bw"]),
    ("avx2", &["avx2", "fma"]),
    ("sse4", &["sse4_2"]),
    ("neon_i8mm", &["i8mm"]),
    ("neon_dot", &["asimddp"]),
    ("neon", &["asimd"]),
];

impl Machine {
    /// This machine.
    pub fn detect() -> Machine {
        let mut machine = Machine::read(Path::new("/"));
        machine.arch = std::env::consts::ARCH.into();
        let uname = rustix::system::uname();
        machine.host = uname.nodename().to_string_lossy().into_owned();
        machine.system =
            format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy());
        if let Ok(set) = rustix::thread::sched_getaffinity(None) {
            machine.limits.cpus = (0..rustix::thread::CpuSet::MAX_CPU).filter(|i| set.is_set(*i)).collect();
        }
        if machine.cpus == 0 {
            machine.cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            machine.cores = machine.cpus;
        }
        machine
    }

    /// What the files below `root` (`/proc`, `/sys`) tell.
    pub fn read(root: &Path) -> Machine {
        let mut machine = Machine::default();
        let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
        machine.read_cpuinfo(&text("proc/cpuinfo"));
        machine.read_meminfo(&text("proc/meminfo"));
        for index in 0..6 {
            let at = |name: &str| text(&format!("sys/devices/system/cpu/cpu0/cache/index{index}/{name}"));
            let size = kibibytes(at("size").trim());
            match (at("level").trim(), at("type").trim()) {
                ("1", "Data") => machine.caches.l1d_bytes = size,
                ("2", _) => machine.caches.l2_bytes = size,
                ("3", _) => machine.caches.l3_bytes = size,
                _ => {}
            }
        }
        machine.read_cgroups(root, &text("proc/self/cgroup"));
        let devices =
            [("dev/nvidia0", "NVIDIA"), ("dev/kfd", "AMD"), ("dev/dri/renderD128", "DRM render node")];
        machine.gpus = devices
            .iter()
            .filter(|(path, _)| root.join(path).exists())
            .map(|(path, name)| format!("{name} (/{path})"))
            .collect();
        machine
    }

    fn read_cpuinfo(&mut self, text: &str) {
        let mut cores = std::collections::BTreeSet::new();
        let (mut package, mut model) = (String::new(), String::new());
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key.trim() {
                "processor" => self.cpus += 1,
                "model name" | "Model" => model = value.into(),
                "flags" | "Features" if self.features.is_empty() => {
                    self.features = value.split_whitespace().map(str::to_string).collect();
                }
                "physical id" => package = value.into(),
                "core id" => {
                    cores.insert((package.clone(), value.to_string()));
                }
                "CPU part" if self.cpu.is_empty() => self.cpu = arm_part(value).into(),
                _ => {}
            }
        }
        if !model.is_empty() {
            self.cpu = model;
        }
        self.cores = if cores.is_empty() { self.cpus } else { cores.len() };
        self.virtual_machine = self.has("hypervisor");
    }

    fn read_meminfo(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let value = |w: Option<&str>| w.and_then(|v| v.parse::<u64>().ok()).unwrap_or(0) * 1024;
            match words.next() {
                Some("MemTotal:") => self.memory_bytes = value(words.next()),
                Some("MemAvailable:") => self.available_bytes = value(words.next()),
                _ => {}
            }
        }
    }

    /// Control groups of version 2 (`0::/path`) and version 1 (`N:cpu,cpuacct:/path`).
    fn read_cgroups(&mut self, root: &Path, table: &str) {
        let read = |path: String| std::fs::read_to_string(root.join(path)).ok();
        let number = |t: Option<String>| t.and_then(|t| t.trim().parse::<f64>().ok());
        for line in table.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            let has = |name: &str| controllers.split(',').any(|c| c == name);
            // Inside a container the group's own path is mounted as the root.
            for path in [path, "/"] {
                let base =
                    |controller: &str| format!("sys/fs/cgroup/{controller}/{}", path.trim_start_matches('/'));
                if controllers.is_empty() {
                    if let Some(text) = read(format!("{}/cpu.max", base(""))) {
                        let mut words = text.split_whitespace().map(|w| w.parse::<f64>().ok());
                        if let (Some(Some(quota)), Some(Some(period))) = (words.next(), words.next()) {
                            self.limits.cpu_quota.get_or_insert(quota / period);
                        }
                    }
                    self.limit_memory(number(read(format!("{}/memory.max", base("")))));
                }
                if has("cpu") {
                    let quota = number(read(format!("{}/cpu.cfs_quota_us", base("cpu"))));
                    let period = number(read(format!("{}/cpu.cfs_period_us", base("cpu"))));
                    if let (Some(quota), Some(period)) = (quota, period)
                        && quota > 0.0
                    {
                        self.limits.cpu_quota.get_or_insert(quota / period);
                    }
                }
                if has("memory") {
                    self.limit_memory(number(read(format!("{}/memory.limit_in_bytes", base("memory")))));
                }
            }
        }
    }

    fn limit_memory(&mut self, limit: Option<f64>) {
        if let Some(limit) = limit.map(|l| l as u64)
            && limit > 0
            && (self.memory_bytes == 0 || limit < self.memory_bytes)
        {
            let smallest = self.limits.memory_bytes.map_or(limit, |m| m.min(limit));
            self.limits.memory_bytes = Some(smallest);
        }
    }

    /// Whether the CPU has a feature.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|f| f == feature)
    }

    /// The best instruction set for integer products: `avx512_vnni`, `avx2`, `neon_dot`, ...;
    /// `scalar` where none is known.
    pub fn isa(&self) -> &'static str {
        ISA.iter().find(|(_, needs)| needs.iter().all(|f| self.has(f))).map_or("scalar", |(tag, _)| tag)
    }

    /// Threads that can compute at the same time under the limits of this process.
    pub fn usable_threads(&self) -> usize {
        let allowed = if self.limits.cpus.is_empty() { self.cpus } else { self.limits.cpus.len() };
        let quota = self.limits.cpu_quota.map_or(allowed, |q| q.ceil().max(1.0) as usize);
        allowed.min(quota).max(1)
    }

    /// Memory that this process can still take.
    pub fn usable_memory(&self) -> Bytes {
        Bytes(self.limits.memory_bytes.unwrap_or(u64::MAX).min(self.available_bytes))
    }
}

/// `32K`, `1024K`, `32M` in bytes.
fn kibibytes(text: &str) -> u64 {
    let (digits, unit) = text.split_at(text.trim_end_matches(char::is_alphabetic).len());
    let scale = match unit {
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => 1,
    };
    digits.parse::<u64>().unwrap_or(0) * scale
}

/// Names of ARM cores by part number, those of boards that people deploy to.
fn arm_part(part: &str) -> &'static str {
    match part {
        "0xd03" => "ARM Cortex-A53",
        "0xd05" => "ARM Cortex-A55",
        "0xd08" => "ARM Cortex-A72",
        "0xd0b" => "ARM Cortex-A76",
        "0xd0c" => "ARM Neoverse-N1",
        "0xd40" => "ARM Neoverse-V1",
        "0xd49" => "ARM Neoverse-N2",
        "0xd4f" => "ARM Neoverse-V2",
        _ => "ARM core",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(name: &str) -> Machine {
        let path = format!("tests/machines/{name}.toml");
        toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn descriptions_give_their_instruction_set_and_threads() {
        let cases = [
            ("vnni-vm", "avx512_vnni", 2),
            ("avx2-desktop", "avx2", 12),
            ("raspberry-pi-5", "neon_dot", 4),
            ("container", "avx512", 2),
        ];
        for (name, isa, threads) in cases {
            let machine = described(name);
            assert_eq!((machine.isa(), machine.usable_threads()), (isa, threads), "{name}");
        }
        assert_eq!(described("container").usable_memory(), Bytes(512 << 20));
    }

    #[test]
    fn kernel_files_of_both_cgroup_versions_are_read() {
        let write = |root: &Path, path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for version in [1, 2] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            write(
                root,
                "proc/cpuinfo",
                "processor\t: 0\nmodel name\t: Some CPU\nphysical id\t: 0\ncore id\t: 0\nflags\t\t: avx2 fma hypervisor\n\nprocessor\t: 1\nphysical id\t: 0\ncore id\t: 0\n",
            );
            write(root, "proc/meminfo", "MemTotal:  1000000 kB\nMemAvailable:  900000 kB\n");
            write(root, "sys/devices/system/cpu/cpu0/cache/index0/level", "1\n");
            write(root, "sys/devices/system/cpu/cpu0/cache/index0/type", "Data\n");
            write(root, "sys/devices/system/cpu/cpu0/cache/index0/size", "32K\n");
            if version == 1 {
                write(root, "proc/self/cgroup", "4:memory:/a\n3:cpu,cpuacct:/a\n");
                write(root, "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "150000\n");
                write(root, "sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
                write(root, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", "104857600\n");
            } else {
                write(root, "proc/self/cgroup", "0::/a\n");
                write(root, "sys/fs/cgroup/a/cpu.max", "150000 100000\n");
                write(root, "sys/fs/cgroup/a/memory.max", "104857600\n");
            }
            let machine = Machine::read(root);
            assert_eq!((machine.cpus, machine.cores, machine.cpu.as_str()), (2, 1, "Some CPU"));
            assert_eq!(machine.limits.cpu_quota, Some(1.5), "version {version}");
            assert_eq!(machine.limits.memory_bytes, Some(100 << 20));
            assert_eq!(
                (machine.caches.l1d_bytes, machine.isa(), machine.virtual_machine),
                (32 << 10, "avx2", true)
            );
        }
    }

    #[test]
    fn this_machine_can_be_detected() {
        let machine = Machine::detect();
        assert!(machine.cpus >= 1 && machine.usable_threads() >= 1 && machine.memory_bytes > 0);
    }
}
