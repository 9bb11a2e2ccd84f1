//! Whether what a pass will need can be had. An estimate enters; a refusal with the numbers leaves.

use super::Context;
use crate::error::{Error, Result};
use crate::hardware::Machine;
use crate::jobs::process;
use crate::jobs::worker::free;
use crate::monitor::Monitor;
use crate::passes::Estimate;
use crate::units::Bytes;

/// Copies of a result that lie on the disk at once: the checkpoint and, while it is written, its
/// successor or the artefact.
const COPIES: u64 = 2;

/// What is left for a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Memory that this process holds already.
    held: Bytes,
    /// Most memory that it may hold.
    memory: Bytes,
    /// Free bytes on the job's file system.
    disk: Bytes,
}

impl Room {
    /// On this machine, now.
    pub(super) fn here(ctx: &Context<'_>) -> Room {
        let held = process::resident();
        let usable = Bytes(Machine::detect().usable_memory().0.saturating_add(held.0));
        Room {
            held,
            memory: ctx.monitor.memory_cap().map_or(usable, |cap| cap.min(usable)),
            disk: Bytes(free(&ctx.job.dir).0),
        }
    }

    /// Kind `Limit`, with the numbers, where the step cannot fit.
    pub(super) fn fits(&self, pass: &str, estimate: &Estimate) -> Result<()> {
        let memory = Bytes(self.held.0.saturating_add(estimate.memory.0));
        if memory > self.memory {
            return Err(Error::limit_exceeded("STEP-MEMORY", format!("{pass} does not fit into the memory"))
                .found(format!("{memory}, {} of it held already", self.held))
                .limit(self.memory)
                .hint("give the job more memory, or run it on a larger machine"));
        }
        let disk = Bytes(estimate.disk.0.saturating_mul(COPIES));
        if disk > self.disk {
            return Err(Error::limit_exceeded(
                "STEP-DISK",
                format!("the result of {pass} does not fit on the disk"),
            )
            .found(disk)
            .limit(format!("{} free", self.disk))
            .hint("free some space, or choose another --home"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_fit_is_refused_with_the_numbers() {
        let room = Room { held: Bytes(100 << 20), memory: Bytes(400 << 20), disk: Bytes(50 << 20) };
        let need = |memory: u64, disk: u64| Estimate {
            seconds: 1.0,
            memory: Bytes(memory << 20),
            disk: Bytes(disk << 20),
        };
        assert!(room.fits("quantize", &need(300, 25)).is_ok());
        let e = room.fits("quantize", &need(301, 25)).unwrap_err();
        assert_eq!(e.kind().exit_code(), 5);
        assert!(e.to_string().contains("401.0 MiB") && e.to_string().contains("400.0 MiB"), "{e}");
        let e = room.fits("quantize", &need(10, 26)).unwrap_err();
        assert_eq!(e.kind().exit_code(), 5);
        assert!(e.to_string().contains("52.0 MiB") && e.to_string().contains("50.0 MiB"), "{e}");
        assert!(room.fits("quantize", &need(u64::MAX >> 20, u64::MAX >> 20)).is_err());
    }
}
