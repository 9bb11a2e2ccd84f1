//! Rows of text: documents, paragraphs or lines of files, fields of JSON lines or CSV. Files stay on
//! disk; a row is read when it is asked for. Knows no tokenizer.
//!
//! | spec | rows |
//! |---|---|
//! | `text:FILE?by=paragraph` | what blank lines separate (the default for one file) |
//! | `text:FILE?by=line` | lines that are not blank |
//! | `text:DIR`, `text:A,B,C` | whole files (`by=file`) |
//! | `jsonl:FILE?text=FIELD&label=FIELD` | one field of each JSON object |
//! | `csv:FILE?text=COLUMN&label=COLUMN` | one column, named by the first line |

mod fields;

use super::select::Selection;
use super::{Spec, csv};
use crate::error::{Error, Result};
use crate::save;
use crate::tensor::SourceFile;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most rows, and most files of a directory.
const MOST_ROWS: usize = 50_000_000;
const MOST_FILES: usize = 1_000_000;
/// Longest row, in bytes.
const LONGEST: u64 = 256 << 20;
/// Bytes read at once while a file is indexed.
const PIECE: usize = 1 << 20;

/// Bytes of a file, on disk or unpacked in memory.
#[derive(Debug, Clone)]
enum Content {
    Disk(Arc<SourceFile>),
    Memory(Arc<[u8]>),
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Content::Disk(file) => file.len(),
            Content::Memory(bytes) => bytes.len() as u64,
        }
    }

    fn read(&self, start: u64, end: u64) -> Result<Vec<u8>> {
        match self {
            Content::Memory(bytes) => Ok(bytes[start as usize..end as usize].to_vec()),
            Content::Disk(file) => {
                let mut out = vec![0; (end - start) as usize];
                file.read_exact_at(start, &mut out)?;
                file.unchanged()?;
                Ok(out)
            }
        }
    }

    /// Opens a file; one that is packed with gzip is unpacked in memory.
    fn open(path: &Path) -> Result<Content> {
        let file = SourceFile::open(path)?;
        let mut head = [0u8; 2];
        if file.len() >= 2 {
            file.read_exact_at(0, &mut head)?;
        }
        if head == [0x1f, 0x8b] {
            return Ok(Content::Memory(csv::content(path)?.into()));
        }
        Ok(Content::Disk(file))
    }

    /// Calls `line` with the start and content of each line, without its end.
    fn lines(&self, hash: &mut Sha256, line: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let (mut at, mut start) = (0u64, 0u64);
        let mut held: Vec<u8> = Vec::new();
        while at < self.len() {
            let piece = self.read(at, self.len().min(at + PIECE as u64))?;
            hash.update(&piece);
            let mut rest = &piece[..];
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                held.extend_from_slice(&rest[..end]);
                line(start, held.strip_suffix(b"\r").unwrap_or(&held))?;
                start += held.len() as u64 + 1;
                held.clear();
                rest = &rest[end + 1..];
            }
            held.extend_from_slice(rest);
            if held.len() as u64 > LONGEST {
                return Err(Error::limit_exceeded("DATA-LINE", "a line is too long")
                    .offset(start)
                    .limit(format!("{LONGEST} bytes")));
            }
            at += piece.len() as u64;
        }
        if !held.is_empty() {
            line(start, &held)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    content: Content,
    /// From its first to its last row.
    span: (u64, u64),
}

#[derive(Debug, Clone, Copy)]
struct Row {
    file: u32,
    start: u64,
    end: u64,
}

/// Rows of text, labelled or not.
#[derive(Debug)]
pub struct TextSet {
    spec: String,
    files: Vec<File>,
    rows: Vec<Row>,
    labels: Vec<usize>,
    classes: Vec<String>,
    /// The field of a JSON line that is the text, where rows are JSON lines.
    field: Option<String>,
    lossy: bool,
    hash: String,
}

/// What a reader found, before rows are chosen.
#[derive(Default)]
struct Found {
    files: Vec<File>,
    rows: Vec<Row>,
    labels: Vec<usize>,
    classes: Vec<String>,
    field: Option<String>,
    digests: Vec<String>,
}

impl TextSet {
    /// Whether a spec names texts rather than numbers.
    pub fn is_text(spec: &str) -> bool {
        let Ok(spec) = Spec::parse(spec) else { return false };
        matches!(spec.kind.as_str(), "text" | "jsonl")
            || (spec.kind == "csv" && spec.option::<String>("text").is_ok_and(|o| o.is_some()))
    }

    /// Indexes the texts that a spec names. Errors name file, row and option.
    pub fn open(text: &str) -> Result<TextSet> {
        TextSet::read(text).map_err(|e| e.field(text))
    }

    fn read(text: &str) -> Result<TextSet> {
        let spec = Spec::parse(text)?;
        let selection = Selection::take(&spec)?;
        let lossy = spec.option::<u8>("lossy")?.unwrap_or(0) != 0;
        let found = match spec.kind.as_str() {
            "text" => files(&spec)?,
            "jsonl" => fields::json_lines(&spec)?,
            "csv" => fields::columns(&spec)?,
            other => {
                return Err(Error::usage("DATA-KIND", "these data are no texts")
                    .found(other)
                    .limit("text, jsonl, csv with ?text=COLUMN")
                    .hint("for example text:corpus.txt or jsonl:FILE?text=body&label=class"));
            }
        };
        let Found { files, mut rows, mut labels, classes, field, digests } = found;
        if let Some(chosen) = selection.apply(rows.len(), &labels)? {
            rows = chosen.iter().map(|i| rows[*i]).collect();
            if !labels.is_empty() {
                labels = chosen.iter().map(|i| labels[*i]).collect();
            }
        }
        if rows.is_empty() {
            return Err(
                Error::invalid("DATA-EMPTY", "the data have no rows").hint("name data that hold something")
            );
        }
        let mut hash = Sha256::new();
        digests.iter().for_each(|d| hash.update(d));
        hash.update(format!("{field:?}{lossy}{classes:?}"));
        for (i, row) in rows.iter().enumerate() {
            let label = labels.get(i).map_or(u64::MAX, |l| *l as u64);
            [u64::from(row.file), row.start, row.end, label]
                .iter()
                .for_each(|n| hash.update(n.to_le_bytes()));
        }
        let hash = save::sha256(&hash.finalize());
        Ok(TextSet { spec: text.into(), files, rows, labels, classes, field, lossy, hash })
    }

    /// The spec it was read from.
    pub fn spec(&self) -> &str {
        &self.spec
    }
    /// Number of rows.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.rows.len()
    }
    /// Class indices, one a row; empty where the data has none.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }
    /// Class names, where known.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }
    /// SHA-256 over the files, the chosen rows and the labels.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The text of a row.
    ///
    /// # Errors
    /// `Invalid` where it is no UTF-8 (unless `lossy=1`); `Integrity` where the file changed.
    pub fn text(&self, row: usize) -> Result<String> {
        let text = self.between(self.rows[row], self.rows[row].end)?;
        match &self.field {
            None => Ok(text),
            Some(field) => fields::text_of(&text, field)
                .map_err(|e| e.file(&self.files[self.rows[row].file as usize].path)),
        }
    }

    /// The file of a row, and its first byte and that behind it.
    pub(super) fn place(&self, row: usize) -> (&Path, u64, u64) {
        let Row { file, start, end } = self.rows[row];
        (&self.files[file as usize].path, start, end)
    }

    fn between(&self, row: Row, end: u64) -> Result<String> {
        let file = &self.files[row.file as usize];
        let length = end - row.start;
        if length > LONGEST {
            return Err(Error::limit_exceeded("DATA-ROW", "a row of text is too long")
                .file(&file.path)
                .found(length)
                .limit(LONGEST)
                .hint("cut the file with ?by=paragraph, or into several files"));
        }
        let bytes = file.content.read(row.start, end).map_err(|e| e.file(&file.path))?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(e) if self.lossy => Ok(String::from_utf8_lossy(e.as_bytes()).into_owned()),
            Err(e) => Err(Error::invalid("DATA-UTF8", "the text is not UTF-8")
                .file(&file.path)
                .offset(row.start + e.utf8_error().valid_up_to() as u64)
                .hint("convert it, or add ?lossy=1 to replace what is not")),
        }
    }

    /// Texts as they run: rows that follow each other in a file are one document, with all that stands
    /// between them.
    pub fn documents(&self) -> impl Iterator<Item = Result<String>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = *self.rows.get(at)?;
            if self.field.is_some()
                || matches!(self.files[first.file as usize].content, Content::Memory(_))
                    && self.spec.starts_with("csv:")
            {
                at += 1;
                return Some(self.text(at - 1));
            }
            let mut last = first;
            at += 1;
            while let Some(next) = self.rows.get(at).filter(|r| r.file == last.file && r.start >= last.end) {
                if !self.adjacent(last, *next) {
                    break;
                }
                last = *next;
                at += 1;
            }
            let file = &self.files[first.file as usize];
            // All rows of a file are the whole of it, white space at both ends included.
            let (start, end) = match (first.start, last.end) == file.span {
                true => (0, file.content.len()),
                false => (first.start, last.end),
            };
            Some(self.between(Row { start, ..first }, end))
        })
    }

    /// Whether only white space stands between two rows of a file.
    fn adjacent(&self, a: Row, b: Row) -> bool {
        let content = &self.files[a.file as usize].content;
        b.start - a.end < PIECE as u64
            && content.read(a.end, b.start).is_ok_and(|gap| gap.iter().all(u8::is_ascii_whitespace))
    }
}

/// `{1..10}` in a path stands for each of the numbers.
fn expand(path: &str) -> Vec<String> {
    let parts = || {
        let (before, rest) = path.split_once('{')?;
        let (range, after) = rest.split_once('}')?;
        let (from, to) = range.split_once("..")?;
        let (from, to): (u32, u32) = (from.parse().ok()?, to.parse().ok()?);
        (from <= to && to - from < 100_000)
            .then(|| (from..=to).map(|n| format!("{before}{n}{after}")).collect())
    };
    parts().unwrap_or_else(|| vec![path.to_string()])
}

/// Every file below a directory, in the order of their paths; hidden ones are left out.
pub(super) fn below(directory: &Path, suffix: Option<&str>) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(directory) = left.pop() {
        let listed = std::fs::read_dir(&directory).map_err(|e| Error::io("list", &directory, e))?;
        for entry in listed {
            let path = entry.map_err(|e| Error::io("list", &directory, e))?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with('.') || name == "fetched.json" {
                continue;
            }
            let kind = std::fs::symlink_metadata(&path).map_err(|e| Error::io("examine", &path, e))?;
            if kind.is_dir() {
                left.push(path);
            } else if suffix.is_none_or(|s| path.extension().is_some_and(|e| e == s)) {
                out.push(path);
            }
            if out.len() > MOST_FILES {
                return Err(Error::limit_exceeded("DATA-FILES", "there are too many files")
                    .file(&directory)
                    .limit(MOST_FILES));
            }
        }
    }
    out.sort();
    Ok(out)
}

/// How a file is cut into rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    File,
    Paragraph,
    Line,
}

fn files(spec: &Spec) -> Result<Found> {
    let by: Option<String> = spec.option("by")?;
    let suffix: Option<String> = spec.option("ext")?;
    let label: Option<String> = spec.option("label")?;
    let classes: Option<Vec<String>> = spec.list("classes")?;
    spec.finish()?;
    let mut paths = Vec::new();
    let mut root = None;
    for place in spec.place.split(',').flat_map(expand) {
        let path = PathBuf::from(place);
        if path.is_dir() {
            paths.extend(below(&path, suffix.as_deref())?);
            root.get_or_insert(path);
        } else {
            paths.push(path);
        }
    }
    let several = paths.len() != 1 || root.is_some();
    let by = match by.as_deref() {
        None if several => By::File,
        None | Some("paragraph") => By::Paragraph,
        Some("line") => By::Line,
        Some("file") => By::File,
        Some(other) => {
            return Err(Error::usage("DATA-OPTION", "no such way to cut texts")
                .field(format!("{spec} option by"))
                .found(other)
                .limit("file, paragraph, line"));
        }
    };
    let mut found = Found::default();
    let mut folders = Vec::new();
    for path in paths {
        if label.is_some() {
            folders.push(folder(&path, root.as_deref(), spec)?);
        }
        let content = Content::open(&path)?;
        let file = found.files.len() as u32;
        let mut hash = Sha256::new();
        let rows = &mut found.rows;
        let from = rows.len();
        cut(&content, by, file, &mut hash, rows).map_err(|e| e.file(&path))?;
        if label.is_some() {
            let class = folders.len() - 1;
            found.labels.extend(std::iter::repeat_n(class, rows.len() - from));
        }
        found.digests.push(save::sha256(&hash.finalize()));
        let new = rows.get(from..).unwrap_or_default();
        let span = (new.first().map_or(0, |r| r.start), new.last().map_or(0, |r| r.end));
        found.files.push(File { path, content, span });
    }
    match label.as_deref() {
        None => {}
        Some("folder") => {
            let (of_folder, names) = classes_of(&folders, classes, spec)?;
            found.labels.iter_mut().for_each(|l| *l = of_folder[*l]);
            found.classes = names;
        }
        Some(other) => {
            return Err(Error::usage("DATA-OPTION", "texts in files are labelled by their folder")
                .field(format!("{spec} option label"))
                .found(other)
                .limit("folder"));
        }
    }
    Ok(found)
}

/// The folder below the root that holds a file.
fn folder(path: &Path, root: Option<&Path>, spec: &Spec) -> Result<String> {
    let below = root.and_then(|r| path.strip_prefix(r).ok()).filter(|p| p.components().count() > 1);
    below
        .and_then(|p| p.components().next())
        .map(|c| c.as_os_str().to_string_lossy().into_owned())
        .ok_or_else(|| {
            Error::usage("DATA-LABEL", "this file lies in no folder that could be its label")
                .field(spec.to_string())
                .file(path)
                .hint("label=folder needs a directory with one folder for each class")
        })
}

/// The class of each folder: its own, or the only one of `wanted` whose name occurs in the folder's.
fn classes_of(
    folders: &[String],
    wanted: Option<Vec<String>>,
    spec: &Spec,
) -> Result<(Vec<usize>, Vec<String>)> {
    let names = wanted.clone().unwrap_or_else(|| {
        let all: std::collections::BTreeSet<&String> = folders.iter().collect();
        all.into_iter().cloned().collect()
    });
    let class = |folder: &String| {
        let fits = |name: &&String| match wanted {
            Some(_) => folder.contains(name.as_str()),
            None => folder == *name,
        };
        let mut hits = names.iter().enumerate().filter(|(_, n)| fits(n)).map(|(i, _)| i);
        match (hits.next(), hits.next()) {
            (Some(class), None) => Ok(class),
            _ => Err(Error::usage("DATA-LABEL", "a folder belongs to no class, or to several")
                .field(format!("{spec} option classes"))
                .found(folder)
                .limit(names.join(", "))),
        }
    };
    let classes = folders.iter().map(class).collect::<Result<Vec<usize>>>()?;
    Ok((classes, names))
}

fn cut(content: &Content, by: By, file: u32, hash: &mut Sha256, rows: &mut Vec<Row>) -> Result<()> {
    let mut open: Option<(u64, u64)> = None;
    let whole = (0, content.len());
    content.lines(hash, &mut |start, line| {
        let end = start + line.len() as u64;
        let blank = line.iter().all(u8::is_ascii_whitespace);
        match by {
            By::File => {}
            By::Line if blank => {}
            By::Line => rows.push(Row { file, start, end }),
            By::Paragraph if blank => rows.extend(open.take().map(|(start, end)| Row { file, start, end })),
            By::Paragraph => open = Some((open.map_or(start, |(s, _)| s), end)),
        }
        if rows.len() > MOST_ROWS {
            return Err(Error::limit_exceeded("DATA-ROWS", "there are too many rows").limit(MOST_ROWS));
        }
        Ok(())
    })?;
    rows.extend(open.map(|(start, end)| Row { file, start, end }));
    if by == By::File && whole.1 > 0 {
        rows.push(Row { file, start: whole.0, end: whole.1 });
    }
    Ok(())
}

/// Labels that are texts or numbers as class indices: numbers are indices, texts are numbered in
/// their order.
fn index_labels(labels: &[Value]) -> Result<(Vec<usize>, Vec<String>)> {
    let wrong = |row: usize, found: &Value| {
        Error::invalid("DATA-LABEL", "a label is a class index or a text, all rows alike")
            .field(format!("row {}", row + 1))
            .found(found)
    };
    let numbers = labels.first().is_some_and(Value::is_number);
    if numbers {
        let index = |(row, v): (usize, &Value)| {
            v.as_u64().filter(|n| *n < 1_000_000).map(|n| n as usize).ok_or_else(|| wrong(row, v))
        };
        return Ok((labels.iter().enumerate().map(index).collect::<Result<_>>()?, Vec::new()));
    }
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for (row, label) in labels.iter().enumerate() {
        names.insert(label.as_str().ok_or_else(|| wrong(row, label))?, 0);
    }
    names.values_mut().enumerate().for_each(|(i, v)| *v = i);
    let of = labels.iter().filter_map(|l| names.get(l.as_str()?).copied()).collect();
    Ok((of, names.keys().map(ToString::to_string).collect()))
}
