//! Which files of a repository are fetched. Paths and a pattern enter, files leave. Paths come from the
//! network: one that would leave its directory is never used.

use super::{RemoteFile, Repository};
use crate::error::{Error, Result};

/// Small files that belong to a model.
const BESIDE: [&str; 16] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "spiece.model",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "model.safetensors.index.json",
    "README.md",
];
/// Endings of files that run code when they are loaded.
const PICKLES: [&str; 8] = [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill"];
/// Names in a message.
const LISTED: usize = 12;

/// A relative path without steps upwards, empty parts or odd characters.
pub(super) fn is_safe(path: &str) -> bool {
    let fine = |c: char| !c.is_control() && !matches!(c, '\\' | ':' | '"' | '<' | '>' | '|' | '?');
    !path.is_empty()
        && path.len() <= 512
        && path.chars().all(fine)
        && !path.chars().any(crate::text::is_unsafe)
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && part.len() <= 200)
}

/// Whether a path fits a pattern in which `*` stands for any text.
pub(super) fn fits(pattern: &str, path: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(first) = parts.next() else { return false };
    let Some(mut rest) = path.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Whether a file holds weights that can be read.
pub(super) fn is_weights(path: &str) -> bool {
    [".safetensors", ".gguf", ".onnx"].iter().any(|end| path.ends_with(end))
}

fn is_pickle(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    PICKLES.iter().any(|end| lower.ends_with(end))
}

fn refused(path: &str) -> Error {
    Error::unsupported("FORMAT-PICKLE", "the weights are a Python pickle, which is never fetched or loaded")
        .found(path)
        .hint("look for a repository with safetensors or GGUF, or convert it on a machine that you trust")
}

/// The files to fetch, in the order of the repository.
pub(super) fn files(all: &[RemoteFile], repository: &Repository) -> Result<Vec<RemoteFile>> {
    let safe: Vec<&RemoteFile> =
        all.iter().filter(|f| is_safe(&f.path) && f.path != "fetched.json").collect();
    let beside = |f: &RemoteFile| {
        BESIDE.contains(&f.path.as_str()) || f.path.starts_with("tokenizer") && !f.path.contains('/')
    };
    let weights: Vec<&str> = match &repository.file {
        Some(pattern) => {
            let found: Vec<&str> =
                safe.iter().map(|f| f.path.as_str()).filter(|p| fits(pattern, p)).collect();
            if found.is_empty() {
                return Err(Error::usage("HUB-FILE", "the repository has no such file")
                    .found(pattern)
                    .limit(listed(safe.iter().map(|f| f.path.as_str()).filter(|p| is_weights(p)))));
            }
            if let Some(pickle) = found.iter().find(|p| is_pickle(p)) {
                return Err(refused(pickle));
            }
            found
        }
        None => model(&safe)?,
    };
    let whole = weights.iter().all(|w| w.ends_with(".gguf"));
    // A GGUF file holds its configuration and tokenizer.
    let with = |f: &RemoteFile| !whole && beside(f) || f.path == "README.md";
    Ok(safe.into_iter().filter(|f| weights.contains(&f.path.as_str()) || with(f)).cloned().collect())
}

/// The weights of the one model that a repository holds.
fn model<'a>(safe: &[&'a RemoteFile]) -> Result<Vec<&'a str>> {
    let top = |end: &str| -> Vec<&'a str> {
        let names = safe.iter().map(|f| f.path.as_str());
        names.filter(|p| p.ends_with(end) && !p.contains('/')).collect()
    };
    let tensors = top(".safetensors");
    let shard = |p: &&&str| p.starts_with("model-") && p.contains("-of-");
    if safe.iter().any(|f| f.path == "model.safetensors.index.json") {
        let shards: Vec<&str> = tensors.iter().filter(shard).copied().collect();
        if !shards.is_empty() {
            return Ok(shards);
        }
    }
    if tensors.contains(&"model.safetensors") {
        return Ok(vec!["model.safetensors"]);
    }
    if !tensors.is_empty() {
        return Ok(tensors);
    }
    let ggufs = top(".gguf");
    match ggufs.as_slice() {
        [one] => return Ok(vec![one]),
        [] => {}
        several => {
            return Err(Error::usage("HUB-SEVERAL", "the repository holds several models; name one")
                .found(listed(several.iter().copied()))
                .hint("append /FILE to the name, for example /*Q4_K_M.gguf"));
        }
    }
    if let Some(pickle) = safe.iter().map(|f| f.path.as_str()).find(|p| is_pickle(p)) {
        return Err(refused(pickle));
    }
    let onnx = safe.iter().map(|f| f.path.as_str()).filter(|p| p.ends_with(".onnx"));
    Err(Error::usage("HUB-EMPTY", "the repository holds no safetensors and no GGUF file")
        .found(listed(onnx.chain(safe.iter().map(|f| f.path.as_str()).filter(|p| !p.ends_with(".onnx")))))
        .hint("append /FILE to the name to fetch one of its files"))
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let more = names.len().saturating_sub(LISTED);
    let mut text = names[..names.len() - more].join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(paths: &[&str], spec: &str) -> std::result::Result<Vec<String>, (&'static str, u8)> {
        let all: Vec<RemoteFile> =
            paths.iter().map(|p| RemoteFile { path: p.to_string(), size: Some(1), lfs: None }).collect();
        match files(&all, &Repository::parse(spec).unwrap()) {
            Ok(found) => Ok(found.into_iter().map(|f| f.path).collect()),
            Err(e) => Err((e.code(), e.kind().exit_code())),
        }
    }

    #[test]
    fn a_model_is_its_configuration_tokenizer_and_weights() {
        let repo = [
            ".gitattributes",
            "README.md",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "onnx/model.onnx",
            "training_args.bin",
            "1_Pooling/config.json",
            "../../etc/passwd",
            "/etc/passwd",
            "a\\b",
            "fetched.json",
        ];
        let found = chosen(&repo, "hf:o/n").unwrap();
        assert_eq!(
            found,
            [
                "README.md",
                "config.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "model.safetensors",
                "1_Pooling/config.json"
            ]
        );
        let sharded = [
            "config.json",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "consolidated.safetensors",
        ];
        assert_eq!(chosen(&sharded, "hf:o/n").unwrap(), &sharded[..4]);
        assert_eq!(chosen(&repo, "hf:o/n/onnx/model.onnx").unwrap().last().unwrap(), "1_Pooling/config.json");
    }

    #[test]
    fn several_gguf_files_need_a_name_and_pickles_are_refused() {
        let repo = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf"];
        assert_eq!(chosen(&repo, "hf:o/n"), Err(("HUB-SEVERAL", 2)));
        assert_eq!(chosen(&repo, "hf:o/n/*Q8_0.gguf").unwrap(), ["README.md", "m-Q8_0.gguf"]);
        assert_eq!(chosen(&repo, "hf:o/n/*Q2*"), Err(("HUB-FILE", 2)));
        assert_eq!(chosen(&["config.json", "pytorch_model.bin"], "hf:o/n"), Err(("FORMAT-PICKLE", 4)));
        assert_eq!(chosen(&["model.PT"], "hf:o/n/model.PT"), Err(("FORMAT-PICKLE", 4)));
        assert_eq!(chosen(&["README.md"], "hf:o/n"), Err(("HUB-EMPTY", 2)));
    }

    #[test]
    fn patterns_stand_for_any_text() {
        for (pattern, path, yes) in [
            ("a.gguf", "a.gguf", true),
            ("a.gguf", "b/a.gguf", false),
            ("*.gguf", "x/y.gguf", true),
            ("*Q4*M.gguf", "m-Q4_K_M.gguf", true),
            ("*Q4*M.gguf", "m-Q4_K_S.gguf", false),
            ("*", "z", true),
            ("a*a", "a", false),
            ("a*b*c", "abc", true),
            ("a*b*b", "ab", false),
        ] {
            assert_eq!(fits(pattern, path), yes, "{pattern} {path}");
        }
    }

    #[test]
    fn names_are_parsed_and_bad_ones_refused() {
        let r = Repository::parse("hf:Owner/model-1.5@v2/sub/f.gguf").unwrap();
        assert_eq!(
            (r.owner.as_str(), r.name.as_str(), r.revision.as_str(), r.file.as_deref()),
            ("Owner", "model-1.5", "v2", Some("sub/f.gguf"))
        );
        assert_eq!(r.directory(), "Owner--model-1.5@v2");
        assert_eq!(Repository::parse("hf:o/n").unwrap().directory(), "o--n");
        for bad in [
            "hf:",
            "hf:o",
            "hf:o/",
            "hf:/n",
            "hf:../n",
            "hf:o/..",
            "hf:o/n/../x",
            "hf:o/n/",
            "hf:o/n@",
            "hf:o/n@../x",
            "hf:o /n",
            "o/n",
            "hf:o/n//x",
        ] {
            assert_eq!(Repository::parse(bad).unwrap_err().kind().exit_code(), 2, "{bad}");
        }
    }
}
