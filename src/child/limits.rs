//! What a child may use. The parent states it, the child imposes it on itself before it works.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Limits of one child process.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Limits {
    /// Address space in bytes beyond what the program maps at its start (`RLIMIT_AS`), unlimited when
    /// absent.
    pub memory: Option<u64>,
    /// Longest time for one answer; the child is killed after it.
    pub wall: Duration,
    /// Longest answer in bytes.
    pub reply: usize,
    /// CPUs it may run on; all that the parent may use when empty.
    pub cpus: Vec<usize>,
    /// Additional environment.
    #[serde(skip)]
    pub env: Vec<(String, String)>,
}

impl Default for Limits {
    /// No memory limit, 10 minutes, 64 MiB, every CPU.
    fn default() -> Limits {
        Limits {
            memory: None,
            wall: Duration::from_secs(600),
            reply: 64 << 20,
            cpus: Vec::new(),
            env: Vec::new(),
        }
    }
}

impl Limits {
    /// Default limits with another time limit.
    pub fn within(wall: Duration) -> Limits {
        Limits { wall, ..Limits::default() }
    }

    /// Imposes the limits on this process. Each that the system refuses is named in the result.
    pub(super) fn impose(&self, parent: u32) -> Vec<String> {
        let mut refused = Vec::new();
        let mut note = |what: &str, result: rustix::io::Result<()>| {
            if let Err(e) = result {
                refused.push(format!("{what}: {e}"));
            }
        };
        use rustix::process::{Resource, Rlimit, setrlimit};
        let at = |value: u64| Rlimit { current: Some(value), maximum: Some(value) };
        note("core dumps", setrlimit(Resource::Core, at(0)));
        if let Some(bytes) = self.memory {
            note("memory limit", setrlimit(Resource::As, at(mapped().saturating_add(bytes))));
        }
        #[cfg(target_os = "linux")]
        {
            use rustix::process::{Signal, getppid, set_parent_process_death_signal};
            note("death signal", set_parent_process_death_signal(Some(Signal::KILL)));
            // The parent may have died before the signal was set.
            if getppid().is_none_or(|p| p.as_raw_nonzero().get().unsigned_abs() != parent) {
                std::process::exit(crate::error::Kind::Died.exit_code().into());
            }
            note("privileges", rustix::thread::set_no_new_privs(true));
            let _ = std::fs::write("/proc/self/oom_score_adj", "500");
            if !self.cpus.is_empty() {
                note("affinity", pin(&self.cpus));
            }
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = parent;
            if !self.cpus.is_empty() {
                refused.push("affinity: not available on this system".to_string());
            }
        }
        refused
    }
}

/// Bytes of address space that this process has mapped; 0 where the system does not tell.
fn mapped() -> u64 {
    std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|s| s.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |pages| pages.saturating_mul(rustix::param::page_size() as u64))
}

/// Pins the calling thread, and threads that it starts later, to `cpus`.
#[cfg(target_os = "linux")]
pub fn pin(cpus: &[usize]) -> rustix::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    for &cpu in cpus.iter().filter(|&&c| c < rustix::thread::CpuSet::MAX_CPU) {
        set.set(cpu);
    }
    rustix::thread::sched_setaffinity(None, &set)
}

/// Pinning is not available on this system.
#[cfg(not(target_os = "linux"))]
pub fn pin(_cpus: &[usize]) -> rustix::io::Result<()> {
    Err(rustix::io::Errno::NOSYS)
}
