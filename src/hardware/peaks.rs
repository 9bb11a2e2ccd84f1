//! What this machine reaches: floating products and memory bandwidth, measured in well under a second
//! and kept with the machine's description.

use super::Machine;
use crate::config::Paths;
use crate::error::{Error, Result};
use crate::save;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

const SCHEMA_VERSION: u32 = 1;
/// Rows of the square product.
const SIDE: usize = 512;
/// Bytes of the copied block, beyond common last-level caches.
const BLOCK: usize = 64 << 20;
const BUDGET: Duration = Duration::from_millis(120);

/// Measured peaks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peaks {
    /// Version of this format.
    pub schema_version: u32,
    /// The machine that they hold for: CPU, threads, host.
    pub machine: String,
    /// f32 matrix product, 10^9 operations a second (a multiply-accumulate is two).
    pub gflops: f64,
    /// Memory bandwidth of a copy, bytes read and written, 10^9 bytes a second.
    pub bandwidth_gbs: f64,
    /// Threads used.
    pub threads: usize,
}

fn key(machine: &Machine, threads: usize) -> String {
    format!("{} / {} / {threads} threads", machine.host, machine.cpu)
}

/// Best rate over repeated runs of `work`, which does `amount` a run.
fn best(amount: f64, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let (start, mut rate) = (Instant::now(), 0f64);
    while start.elapsed() < BUDGET {
        let run = Instant::now();
        work()?;
        rate = rate.max(amount / run.elapsed().as_secs_f64().max(1e-9));
    }
    Ok(rate)
}

impl Peaks {
    /// Measures now, on `threads` threads.
    pub fn measure(machine: &Machine, threads: usize) -> Result<Peaks> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| Error::internal("THREADS", e.to_string()))?;
        pool.install(|| {
            let (a, b) = (
                Tensor::ones((SIDE, SIDE), DType::F32, &Device::Cpu)?,
                Tensor::ones((SIDE, SIDE), DType::F32, &Device::Cpu)?,
            );
            let gflops = best(2.0 * (SIDE as f64).powi(3), || Ok(a.matmul(&b).map(drop)?))? / 1e9;
            let (source, mut target) = (vec![1u8; BLOCK], vec![0u8; BLOCK]);
            let piece = BLOCK / threads.max(1);
            let bandwidth = best(2.0 * BLOCK as f64, || {
                target
                    .par_chunks_mut(piece)
                    .zip(source.par_chunks(piece))
                    .for_each(|(t, s)| t.copy_from_slice(s));
                Ok(())
            })?;
            Ok(Peaks {
                schema_version: SCHEMA_VERSION,
                machine: key(machine, threads),
                gflops,
                bandwidth_gbs: bandwidth / 1e9,
                threads,
            })
        })
    }

    /// The kept peaks of this machine, or fresh ones, which are kept. A file that cannot be read or
    /// written is measured around, never an error.
    pub fn load_or_measure(paths: &Paths, machine: &Machine, threads: usize) -> Result<Peaks> {
        let path = paths.home().join("hardware.json");
        let mut known: Vec<Peaks> =
            std::fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        let key = key(machine, threads);
        if let Some(found) = known.iter().find(|p| p.schema_version == SCHEMA_VERSION && p.machine == key) {
            return Ok(found.clone());
        }
        let peaks = Peaks::measure(machine, threads)?;
        known.retain(|p| p.machine != key);
        known.push(peaks.clone());
        if std::fs::create_dir_all(paths.home()).is_ok() {
            let _ = save::json(&path, &known);
        }
        Ok(peaks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_plausible_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let machine = Machine::detect();
        let first = Peaks::load_or_measure(&paths, &machine, 1).unwrap();
        assert!(first.gflops > 0.1 && first.bandwidth_gbs > 0.1, "{first:?}");
        assert_eq!(Peaks::load_or_measure(&paths, &machine, 1).unwrap(), first);
        std::fs::write(dir.path().join("hardware.json"), "garbage").unwrap();
        assert!(Peaks::load_or_measure(&paths, &machine, 1).is_ok());
    }
}
