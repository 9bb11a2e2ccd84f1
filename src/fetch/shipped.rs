//! The sample model that ships within the program.

use crate::config::Paths;
use crate::error::{Error, Result};
use crate::save;
use std::path::PathBuf;

/// Name of the sample, and of its directory among the models.
pub const SAMPLE: &str = "digits-resnet";

static MODEL: &[u8] = include_bytes!("../../assets/digits-resnet.onnx");

/// The sample model as a file below `models/`, whole and unchanged: written where it is missing or is
/// not what ships.
pub fn sample(paths: &Paths) -> Result<PathBuf> {
    let directory = paths.models().join(SAMPLE);
    let path = directory.join(format!("{SAMPLE}.onnx"));
    let whole = save::digest(&path).is_ok_and(|(sha256, _)| sha256 == save::sha256(MODEL));
    if !whole {
        std::fs::create_dir_all(&directory).map_err(|e| Error::io("create the directory", &directory, e))?;
        save::bytes(&path, MODEL)?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_written_once_and_mended_where_it_was_changed() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let path = sample(&paths).unwrap();
        assert!(crate::formats::load(&path).is_ok());
        let written = path.metadata().unwrap().modified().unwrap();
        assert_eq!(sample(&paths).unwrap(), path);
        assert_eq!(path.metadata().unwrap().modified().unwrap(), written);
        std::fs::write(&path, "no model").unwrap();
        sample(&paths).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), MODEL);
    }
}
