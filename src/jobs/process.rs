//! What the kernel tells about a process: whether it is still the same one, and whether the memory
//! limit killed it. A process is never signalled on its number alone.

use super::clock;
use crate::hardware::Machine;
use crate::units::Bytes;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot; 0 where the system does not tell.
    pub start: u64,
    /// Boot that `start` counts from.
    pub boot: String,
    /// Machine.
    pub host: String,
}

impl Identity {
    /// This process.
    pub fn own() -> Identity {
        let pid = std::process::id();
        Identity { pid, start: start_time(pid).unwrap_or(0), boot: clock::boot_id(), host: clock::host() }
    }

    /// Whether it ran on this machine since its last boot, so that the kernel here can be asked.
    pub fn is_local(&self) -> bool {
        self.boot == clock::boot_id() && self.host == clock::host()
    }

    /// Whether exactly this process lives (a zombie does not).
    pub fn is_alive(&self) -> bool {
        self.is_local() && start_time(self.pid).is_some_and(|t| t == self.start)
    }

    /// The signal that ended exactly this process, as long as its parent has not taken its exit status.
    pub(super) fn killed_by(&self) -> Option<i32> {
        if !self.is_local() {
            return None;
        }
        wait_status(self.pid, self.start).map(|status| status & 0x7f).filter(|signal| *signal != 0)
    }

    /// Sends `signal` if exactly this process lives; tells whether it was sent.
    pub fn signal(&self, signal: rustix::process::Signal) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw) else {
            return false;
        };
        #[cfg(target_os = "linux")]
        {
            use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
            // The descriptor is opened first: if the start time matches afterwards, it is this process's.
            let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
            self.is_alive() && pidfd_send_signal(&fd, signal).is_ok()
        }
        #[cfg(not(target_os = "linux"))]
        {
            self.is_alive() && rustix::process::kill_process(pid, signal).is_ok()
        }
    }
}

/// Start time of a living process in clock ticks since boot (proc(5), `stat` field 22).
#[cfg(target_os = "linux")]
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Wait status of a process that started at `start`: 0 while it lives, kept until its parent takes it (proc(5),
/// `stat` fields 22 and 52). A process lets go of its locks a moment before it is a zombie.
#[cfg(target_os = "linux")]
fn wait_status(pid: u32, start: u64) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let same = fields.get(19)?.parse() == Ok(start);
    same.then(|| fields.get(49)?.parse().ok())?
}

/// Without `/proc` only the parent learns how a process ended.
#[cfg(not(target_os = "linux"))]
fn wait_status(_: u32, _: u64) -> Option<i32> {
    None
}

/// Without `/proc` only existence can be asked; every process then starts at 0.
#[cfg(not(target_os = "linux"))]
fn start_time(pid: u32) -> Option<u64> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw)?;
    rustix::process::test_kill_process(pid).is_ok().then_some(0)
}

/// The memory cgroup of a process and how often its limit had killed when this was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryGroup {
    directory: PathBuf,
    oom_kill: u64,
}

impl MemoryGroup {
    /// The memory cgroup of this process, v1 or v2, if there is one that counts kills. `root` is `/`
    /// outside tests.
    pub fn own(root: &Path) -> Option<MemoryGroup> {
        let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
        let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
        let path = |controller: &str| {
            groups.lines().find_map(|l| {
                let mut parts = l.splitn(3, ':');
                let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
                let found = if controller.is_empty() {
                    controllers.is_empty()
                } else {
                    controllers.split(',').any(|c| c == controller)
                };
                found.then_some(path)
            })
        };
        let mount = |kind: &str, option: &str| {
            mounts.lines().find_map(|l| {
                let (left, right) = l.split_once(" - ")?;
                let mut right = right.split(' ');
                let of_kind = right.next()? == kind;
                let has = option.is_empty() || right.nth(1)?.split(',').any(|o| o == option);
                let mut left = left.split(' ').skip(3);
                (of_kind && has).then_some((left.next()?, left.next()?))
            })
        };
        let candidates = [path("memory").zip(mount("cgroup", "memory")), path("").zip(mount("cgroup2", ""))];
        candidates.into_iter().flatten().find_map(|(path, (mounted, point))| {
            let point = root.join(point.trim_start_matches('/'));
            let below = path.strip_prefix(mounted.trim_end_matches('/')).unwrap_or(path);
            // Inside a container the path may be the host's; the mount point itself is ours then.
            [point.join(below.trim_start_matches('/')), point.clone()]
                .into_iter()
                .find_map(|directory| Some(MemoryGroup { oom_kill: oom_kills(&directory)?, directory }))
        })
    }

    /// What happened since, in words, if the limit of the group killed something.
    pub fn killed_since(&self) -> Option<String> {
        let more = oom_kills(&self.directory)?.checked_sub(self.oom_kill).filter(|n| *n > 0)?;
        let mut facts = Vec::new();
        if let Some(limit) = figure(&self.directory, ["memory.max", "memory.limit_in_bytes"]) {
            facts.push(format!("limit {limit}"));
        }
        if let Some(peak) = figure(&self.directory, ["memory.peak", "memory.max_usage_in_bytes"]) {
            facts.push(format!("peak {peak}"));
        }
        facts.push(format!("oom_kill +{more}"));
        Some(format!("out of memory ({})", facts.join(", ")))
    }
}

/// The smallest memory limit of this process's group, if there is one. `root` is `/` outside tests.
pub fn memory_limit(root: &Path) -> Option<Bytes> {
    let group = MemoryGroup::own(root)?;
    figure(&group.directory, ["memory.max", "memory.limit_in_bytes"])
}

/// Most memory that this process may hold: the limit of its group, and what the machine can give it now.
pub fn memory_cap() -> Option<Bytes> {
    let usable = Some(Machine::detect().usable_memory()).filter(|b| b.0 > 0);
    let given = usable.map(|b| Bytes(b.0.saturating_add(resident().0)));
    memory_limit(Path::new("/")).into_iter().chain(given).min()
}

/// Memory that this process holds now; 0 where the system does not tell.
pub fn resident() -> Bytes {
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|s| s.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    Bytes(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// The first of the files `names` that holds a number of bytes; huge ones mean no limit.
fn figure(directory: &Path, names: [&str; 2]) -> Option<Bytes> {
    names.iter().find_map(|n| {
        let text = fs::read_to_string(directory.join(n)).ok()?;
        text.trim().parse().ok().filter(|b| *b < 1 << 60).map(Bytes)
    })
}

/// The kernel's count of processes killed by the group's limit.
fn oom_kills(directory: &Path) -> Option<u64> {
    ["memory.events.local", "memory.events", "memory.oom_control"].iter().find_map(|name| {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        text.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn what_killed_a_process_is_known_until_its_parent_has_asked() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut process = Identity::own();
        (process.pid, process.start) = (child.id(), start_time(child.id()).unwrap());
        assert_eq!(process.killed_by(), None);
        child.kill().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while process.killed_by().is_none() && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(process.killed_by(), Some(9));
        child.wait().unwrap();
        assert_eq!(process.killed_by(), None);
    }

    fn machine(groups: &str, mounts: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let all =
            files.iter().copied().chain([("proc/self/cgroup", groups), ("proc/self/mountinfo", mounts)]);
        for (path, text) in all {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn kills_are_counted_in_a_v1_layout() {
        let root = machine(
            "5:memory:/box\n0::/\n",
            "30 25 0:26 / /cg/memory rw - cgroup cgroup rw,memory\n31 25 0:27 / /cg/unified rw - cgroup2 cgroup2 rw\n",
            &[
                ("cg/memory/box/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
                ("cg/memory/box/memory.limit_in_bytes", "67108864\n"),
            ],
        );
        let group = MemoryGroup::own(root.path()).unwrap();
        assert_eq!(group.killed_since(), None);
        fs::write(root.path().join("cg/memory/box/memory.oom_control"), "oom_kill 3\n").unwrap();
        assert_eq!(group.killed_since().unwrap(), "out of memory (limit 64.0 MiB, oom_kill +1)");
    }

    #[test]
    fn kills_are_counted_in_a_v2_layout_inside_a_container() {
        let root = machine(
            "0::/system.slice/job.scope\n",
            "30 25 0:26 /system.slice/job.scope /cg rw - cgroup2 cgroup2 rw\n",
            &[("cg/memory.events", "low 0\noom 4\noom_kill 0\n"), ("cg/memory.max", "max\n")],
        );
        let group = MemoryGroup::own(root.path()).unwrap();
        fs::write(root.path().join("cg/memory.events"), "oom 5\noom_kill 2\n").unwrap();
        assert_eq!(group.killed_since().unwrap(), "out of memory (oom_kill +2)");
    }

    #[test]
    fn no_group_no_claim() {
        assert_eq!(MemoryGroup::own(machine("0::/\n", "", &[]).path()), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_reused_number_another_boot_and_a_kernel_thread_are_not_the_process() {
        let own = Identity::own();
        assert!(own.is_alive());
        assert!(!Identity { start: own.start + 1, ..own.clone() }.is_alive());
        assert!(!Identity { boot: "other".into(), ..own.clone() }.is_alive());
        assert!(!Identity { host: "other".into(), ..own.clone() }.is_alive());
        let foreign = Identity { pid: 1, start: own.start + 7, ..own };
        assert!(!foreign.signal(rustix::process::Signal::TERM), "a foreign process is not signalled");
    }
}
