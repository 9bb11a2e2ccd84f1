//! Chosen members of a package file (zip, gzipped tar) into a directory. A member's path may not
//! leave the directory, its size and the whole are limited while they are written, whatever the
//! archive claims, and only plain files are made.

use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::units::Bytes;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Component, Path, PathBuf};

/// Which members are taken, and to where.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    from: &'static str,
    to: &'static str,
    suffix: &'static str,
    kind: Match,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    /// Members whose path starts with `from`; the rest of it is appended to `to`.
    Prefix,
    /// The member `from`, written to `to`.
    Exact,
    /// The member `from`, an archive that is unpacked to below `to`.
    Archive,
}

impl Rule {
    /// Every file whose path starts with `from`, which is replaced by `to`.
    pub const fn directory(from: &'static str, to: &'static str) -> Rule {
        Rule { from, to, suffix: "", kind: Match::Prefix }
    }
    /// One file, under another path.
    pub const fn file(from: &'static str, to: &'static str) -> Rule {
        Rule { from, to, suffix: "", kind: Match::Exact }
    }
    /// A zip archive inside the archive, whose files go to below `to`.
    pub const fn archive(from: &'static str, to: &'static str) -> Rule {
        Rule { from, to, suffix: "", kind: Match::Archive }
    }
    /// Only files whose path ends so.
    pub const fn only(mut self, suffix: &'static str) -> Rule {
        self.suffix = suffix;
        self
    }

    fn target(&self, member: &str) -> Option<String> {
        if !member.ends_with(self.suffix) || member.ends_with('/') {
            return None;
        }
        if self.kind == Match::Prefix {
            return Some(format!("{}{}", self.to, member.strip_prefix(self.from)?));
        }
        (member == self.from).then(|| self.to.to_string())
    }
}

/// Limits of unpacking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Longest single file.
    pub file: u64,
    /// All files together.
    pub total: u64,
    /// Number of members of an archive.
    pub members: usize,
}

impl Default for UnpackLimits {
    fn default() -> UnpackLimits {
        UnpackLimits { file: 8 << 30, total: 16 << 30, members: 200_000 }
    }
}

struct Budget<'a> {
    limits: &'a UnpackLimits,
    total: u64,
    files: usize,
    monitor: &'a dyn Monitor,
}

/// Unpacks the members of `archive` that `rules` name below `into`, which is created.
///
/// # Errors
/// `Integrity` for a member that would leave the directory, for one that a rule names and that is not
/// there, and for a broken archive; `Limit` beyond `limits`.
pub fn unpack(
    archive: &Path,
    rules: &[Rule],
    into: &Path,
    limits: &UnpackLimits,
    monitor: &dyn Monitor,
) -> Result<usize> {
    fs::create_dir_all(into).map_err(|e| Error::io("create a directory", into, e))?;
    let mut budget = Budget { limits, total: 0, files: 0, monitor };
    let name = archive.to_string_lossy();
    let file = File::open(archive).map_err(|e| Error::io("open", archive, e))?;
    if name.ends_with(".tgz") || name.ends_with(".tar.gz") {
        from_tar(file, archive, rules, into, &mut budget)?;
    } else {
        from_zip(file, archive, rules, into, &mut budget)?;
    }
    if budget.files == 0 {
        return Err(
            Error::integrity("UNPACK-NONE", "the package holds none of the expected files").file(archive)
        );
    }
    Ok(budget.files)
}

fn broken(archive: &Path, what: impl std::fmt::Display) -> Error {
    Error::integrity("UNPACK-BROKEN", format!("the archive cannot be read: {what}"))
        .file(archive)
        .hint("fetch it again")
}

fn from_zip(
    file: impl Read + Seek,
    archive: &Path,
    rules: &[Rule],
    into: &Path,
    budget: &mut Budget<'_>,
) -> Result<()> {
    let mut zip = zip::ZipArchive::new(file).map_err(|e| broken(archive, e))?;
    if zip.len() > budget.limits.members {
        return Err(Error::limit_exceeded("UNPACK-MEMBERS", "the archive has too many members")
            .file(archive)
            .found(zip.len())
            .limit(budget.limits.members));
    }
    for index in 0..zip.len() {
        budget.monitor.check()?;
        let mut member = zip.by_index(index).map_err(|e| broken(archive, e))?;
        let name = member.name().map_err(|e| broken(archive, e))?.into_owned();
        if !member.is_file() {
            continue;
        }
        let Some((rule, target)) = rules.iter().find_map(|r| Some((r, r.target(&name)?))) else { continue };
        if rule.kind == Match::Archive {
            let mut inner =
                tempfile::tempfile_in(into).map_err(|e| Error::io("create a file in", into, e))?;
            copy(&mut member, &mut inner, archive, &name, budget)?;
            let inner_rules = [Rule::directory("", rule.to)];
            from_zip(inner, archive, &inner_rules, into, budget)?;
        } else {
            write(&mut member, archive, &name, &target, into, budget)?;
        }
    }
    Ok(())
}

fn from_tar(file: File, archive: &Path, rules: &[Rule], into: &Path, budget: &mut Budget<'_>) -> Result<()> {
    let mut tar = tar::Archive::new(flate2::read::MultiGzDecoder::new(std::io::BufReader::new(file)));
    for (count, member) in tar.entries().map_err(|e| broken(archive, e))?.enumerate() {
        budget.monitor.check()?;
        if count >= budget.limits.members {
            return Err(Error::limit_exceeded("UNPACK-MEMBERS", "the archive has too many members")
                .file(archive)
                .limit(budget.limits.members));
        }
        let mut member = member.map_err(|e| broken(archive, e))?;
        if !member.header().entry_type().is_file() {
            continue;
        }
        let name = member.path().map_err(|e| broken(archive, e))?.to_string_lossy().into_owned();
        if let Some(target) = rules.iter().find_map(|r| r.target(&name)) {
            write(&mut member, archive, &name, &target, into, budget)?;
        }
    }
    Ok(())
}

/// The path below `into`, refused where it could lie outside.
fn below(into: &Path, target: &str, archive: &Path, member: &str) -> Result<PathBuf> {
    let escapes = target.is_empty()
        || target.contains(['\\', '\0'])
        || Path::new(target).components().any(|c| !matches!(c, Component::Normal(_)));
    if escapes {
        return Err(Error::integrity(
            "UNPACK-PATH",
            "a member of the archive would be written outside its directory",
        )
        .file(archive)
        .field(member)
        .hint("do not use this file"));
    }
    Ok(into.join(target))
}

fn write(
    from: &mut impl Read,
    archive: &Path,
    member: &str,
    target: &str,
    into: &Path,
    budget: &mut Budget<'_>,
) -> Result<()> {
    let path = below(into, target, archive, member)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|e| Error::io("create a directory", parent, e))?;
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(|e| Error::io("create", &path, e))?;
    copy(from, &mut file, archive, member, budget)?;
    file.sync_all().map_err(|e| Error::io("write", &path, e))?;
    budget.files += 1;
    Ok(())
}

fn copy(
    from: &mut impl Read,
    to: &mut impl Write,
    archive: &Path,
    member: &str,
    budget: &mut Budget<'_>,
) -> Result<()> {
    let mut chunk = vec![0; 256 << 10];
    let mut length = 0u64;
    loop {
        budget.monitor.check()?;
        let n = from.read(&mut chunk).map_err(|e| broken(archive, e).field(member))?;
        if n == 0 {
            return Ok(());
        }
        length += n as u64;
        budget.total += n as u64;
        if length > budget.limits.file || budget.total > budget.limits.total {
            return Err(Error::limit_exceeded("UNPACK-SIZE", "the archive unpacks to too much")
                .file(archive)
                .field(member)
                .limit(Bytes(if length > budget.limits.file {
                    budget.limits.file
                } else {
                    budget.limits.total
                })));
        }
        to.write_all(&chunk[..n]).map_err(|e| Error::io("write", archive, e))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::monitor::Silent;
    use zip::write::SimpleFileOptions;

    fn zip_of(dir: &Path, members: &[(&str, &[u8])]) -> PathBuf {
        let path = dir.join("a.zip");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, bytes) in members {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        path
    }

    #[test]
    fn rules_choose_members_and_say_where_they_go() {
        let dir = tempfile::tempdir().unwrap();
        let inner = fs::read(zip_of(dir.path(), &[("x/y.txt", b"inner")])).unwrap();
        let archive =
            zip_of(dir.path(), &[("p/a.txt", b"a"), ("p/b.bin", b"b"), ("q/c", b"c"), ("in.zip", &inner)]);
        let into = dir.path().join("out");
        let rules = [
            Rule::directory("p/", "here/").only(".txt"),
            Rule::file("q/c", "C"),
            Rule::archive("in.zip", "in/"),
        ];
        assert_eq!(unpack(&archive, &rules, &into, &UnpackLimits::default(), &Silent).unwrap(), 3);
        assert_eq!(fs::read(into.join("here/a.txt")).unwrap(), b"a");
        assert_eq!(fs::read(into.join("C")).unwrap(), b"c");
        assert_eq!(fs::read(into.join("in/x/y.txt")).unwrap(), b"inner");
        assert!(!into.join("here/b.bin").exists());
    }

    #[test]
    fn a_member_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["p/../../escape", "p//etc/escape", "p/a\\..\\escape"] {
            let archive = zip_of(dir.path(), &[(name, b"x")]);
            let into = dir.path().join("out");
            let e = unpack(&archive, &[Rule::directory("p/", "")], &into, &UnpackLimits::default(), &Silent)
                .expect_err(name);
            assert_eq!(e.kind(), Kind::Integrity, "{name}: {e}");
        }
        assert!(!dir.path().join("escape").exists());
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let archive = zip_of(dir.path(), &[("p/zeros", &vec![0; 4 << 20])]);
        let limits = UnpackLimits { file: 1 << 20, ..UnpackLimits::default() };
        let e = unpack(&archive, &[Rule::directory("p/", "")], &dir.path().join("out"), &limits, &Silent)
            .unwrap_err();
        assert_eq!(e.kind(), Kind::Limit, "{e}");
        let broken = dir.path().join("broken.zip");
        fs::write(&broken, b"PK\x03\x04 not really").unwrap();
        let e = unpack(&broken, &[Rule::directory("p/", "")], &dir.path().join("out2"), &limits, &Silent)
            .unwrap_err();
        assert_eq!(e.kind(), Kind::Integrity, "{e}");
    }
}
