//! Device profiles: what a model will have on the device it must run on. Shipped ones are nominal, from
//! data sheets; users add their own below `devices/` of the home directory.

use super::{Machine, Peaks};
use crate::config::Paths;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

const SCHEMA_VERSION: u32 = 1;

/// A profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Version of this format.
    pub schema_version: u32,
    /// Name, as passed to `--device`.
    pub name: String,
    /// What it is.
    pub description: String,
    /// Instruction set for integers, as [`Machine::isa`].
    pub isa: String,
    /// Cores that an inference uses.
    pub cores: usize,
    /// f32 matrix products that one core sustains, 10^9 operations a second.
    pub gflops_per_core: f64,
    /// Memory bandwidth that all cores together sustain, 10^9 bytes a second.
    pub bandwidth_gbs: f64,
    /// Memory, 10^6 bytes.
    pub ram_mb: u64,
    /// Power at idle and at full load, watts; none where unknown.
    pub watts: Option<(f64, f64)>,
    /// Relative uncertainty of a predicted latency: 0.4 means a factor of 1.4 either way.
    pub uncertainty: f64,
    /// Where the figures come from.
    pub source: String,
}

const SHIPPED: &[(&str, &str)] = &[
    ("raspberry-pi-5.toml", include_str!("../../assets/devices/raspberry-pi-5.toml")),
    ("raspberry-pi-4.toml", include_str!("../../assets/devices/raspberry-pi-4.toml")),
    ("n100-mini-pc.toml", include_str!("../../assets/devices/n100-mini-pc.toml")),
];

impl Device {
    /// A profile from TOML; the error names file and field.
    pub fn parse(text: &str, path: &Path) -> Result<Device> {
        let device: Device = toml::from_str(text).map_err(|e| {
            Error::usage("DEVICE", e.message().to_string())
                .file(path)
                .hint("`tinsmith device show NAME` prints a whole profile")
        })?;
        let checks = [
            ("schema_version", device.schema_version == SCHEMA_VERSION),
            ("cores", device.cores > 0),
            ("gflops_per_core", device.gflops_per_core > 0.0 && device.gflops_per_core.is_finite()),
            ("bandwidth_gbs", device.bandwidth_gbs > 0.0 && device.bandwidth_gbs.is_finite()),
            ("uncertainty", device.uncertainty >= 0.0 && device.uncertainty.is_finite()),
        ];
        match checks.iter().find(|(_, holds)| !holds) {
            Some((field, _)) => Err(Error::usage("DEVICE", "value is out of range").file(path).field(*field)),
            None => Ok(device),
        }
    }

    /// This machine with its measured peaks.
    pub fn host(machine: &Machine, peaks: &Peaks) -> Device {
        Device {
            schema_version: SCHEMA_VERSION,
            name: "host".into(),
            description: format!("{}, this machine", machine.cpu),
            isa: machine.isa().into(),
            cores: peaks.threads,
            gflops_per_core: peaks.gflops / peaks.threads.max(1) as f64,
            bandwidth_gbs: peaks.bandwidth_gbs,
            ram_mb: machine.limits.memory_bytes.unwrap_or(machine.memory_bytes) / 1_000_000,
            watts: None,
            uncertainty: 0.3,
            source: "measured on this machine".into(),
        }
    }

    /// Shipped profiles and the user's own, which replace shipped ones of their name.
    pub fn all(paths: &Paths) -> Result<Vec<Device>> {
        let mut devices = Vec::new();
        for (name, text) in SHIPPED {
            devices.push(Device::parse(text, name.as_ref())?);
        }
        let dir = paths.home().join("devices");
        let mut own: Vec<_> = std::fs::read_dir(&dir)
            .map(|d| d.filter_map(|e| e.ok()).map(|e| e.path()).collect())
            .unwrap_or_default();
        own.sort();
        for path in own.iter().filter(|p| p.extension().is_some_and(|e| e == "toml")) {
            let text =
                std::fs::read_to_string(path).map_err(|e| Error::io("read the device profile", path, e))?;
            let device = Device::parse(&text, path)?;
            devices.retain(|d: &Device| d.name != device.name);
            devices.push(device);
        }
        Ok(devices)
    }

    /// The instruction set of a device by name; nothing is measured.
    pub fn isa_of(name: &str, paths: &Paths) -> Result<String> {
        match name {
            "host" => Ok(Machine::detect().isa().into()),
            _ => Device::named(name, paths).map(|d| d.isa),
        }
    }

    /// The profile of a name; `host` measures this machine where it must.
    pub fn named(name: &str, paths: &Paths) -> Result<Device> {
        if name == "host" {
            let machine = Machine::detect();
            let peaks = Peaks::load_or_measure(paths, &machine, machine.usable_threads())?;
            return Ok(Device::host(&machine, &peaks));
        }
        let all = Device::all(paths)?;
        let names: Vec<String> =
            std::iter::once("host".into()).chain(all.iter().map(|d| d.name.clone())).collect();
        all.into_iter().find(|d| d.name == name).ok_or_else(|| {
            Error::usage("DEVICE", "unknown device")
                .found(name)
                .limit(names.join(", "))
                .hint("add a profile below devices/ of the home directory")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_profiles_parse_and_own_ones_replace_them() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        assert!(Device::all(&paths).unwrap().len() >= 3);
        std::fs::create_dir(dir.path().join("devices")).unwrap();
        let text = SHIPPED[0].1.replace("cores = 4", "cores = 3");
        std::fs::write(dir.path().join("devices/a.toml"), text).unwrap();
        assert_eq!(Device::named("raspberry-pi-5", &paths).unwrap().cores, 3);
        let e = Device::named("toaster", &paths).unwrap_err();
        assert!(e.kind().exit_code() == 2 && e.to_string().contains("raspberry-pi-4"), "{e}");
        std::fs::write(dir.path().join("devices/b.toml"), "name = 3").unwrap();
        assert!(Device::all(&paths).unwrap_err().to_string().contains("b.toml"));
    }
}
