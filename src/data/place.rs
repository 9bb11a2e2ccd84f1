//! Where the data of a spec lie: names of fetched data sets stand for the files that were fetched.

use super::Spec;
use crate::config::Paths;
use crate::error::{Error, Result};
use crate::fetch;
use std::path::Path;

/// Names of fetched data, and what they stand for where nothing is said behind them.
const SETS: [(&str, &str); 3] =
    [("moby-dick", "data.txt"), ("mnist-5k", "mnist_5k.csv.gz"), ("spam-assassin", "")];

/// The spec with each place that names a fetched data set, such as `text:moby-dick` or
/// `text:moby-dick/chapter_1.txt`, as its path below the data directory. A file or directory of that
/// name in the working directory comes first.
///
/// # Errors
/// `Usage` where the data set was not fetched.
pub fn located(spec: &str, paths: &Paths) -> Result<String> {
    let Ok(parsed) = Spec::parse(spec) else { return Ok(spec.into()) };
    if !matches!(parsed.kind.as_str(), "text" | "csv" | "mnist") {
        return Ok(spec.into());
    }
    let place = |place: &str| -> Result<String> {
        let (name, rest) = place.split_once('/').unwrap_or((place, ""));
        let Some((name, main)) = SETS.iter().find(|(n, _)| *n == name).filter(|_| !Path::new(place).exists())
        else {
            return Ok(place.into());
        };
        let directory = paths.data().join(name);
        if !directory.is_dir() {
            let known = fetch::known().iter().any(|k| k.name == *name);
            return Err(Error::usage("DATA-FETCH", "these data were not fetched")
                .field(spec)
                .found(name)
                .hint(if known { format!("run `tinsmith fetch {name}`") } else { "name a file".into() }));
        }
        let path = match (rest, *main) {
            ("", "") => directory,
            ("", main) => directory.join(main),
            (rest, _) => directory.join(rest),
        };
        Ok(path.to_string_lossy().into_owned())
    };
    let places = parsed.place.split(',').map(place).collect::<Result<Vec<String>>>()?.join(",");
    let rest = &spec[parsed.kind.len() + 1 + parsed.place.len()..];
    Ok(format!("{}:{places}{rest}", parsed.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_fetched_data_become_paths() {
        let home = tempfile::tempdir().unwrap();
        let paths = Paths::under(home.path());
        let e = located("text:moby-dick", &paths).unwrap_err();
        assert!(e.kind().exit_code() == 2 && e.to_string().contains("fetch moby-dick"), "{e}");
        std::fs::create_dir_all(paths.data().join("moby-dick")).unwrap();
        let data = paths.data().display().to_string();
        let at = |spec: &str| located(spec, &paths).unwrap();
        assert_eq!(at("text:moby-dick#0..5"), format!("text:{data}/moby-dick/data.txt#0..5"));
        assert_eq!(
            at("text:moby-dick/a.txt,moby-dick/b.txt?by=line"),
            format!("text:{data}/moby-dick/a.txt,{data}/moby-dick/b.txt?by=line")
        );
        assert_eq!(at("digits:test"), "digits:test");
        assert_eq!(at("text:other.txt"), "text:other.txt");
    }
}
