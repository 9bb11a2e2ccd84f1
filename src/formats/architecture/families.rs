//! The families of decoders. A new one that differs by names, norms or switches is a row of the table.

use super::names::{self, Names};
use super::net::Activation;

/// Which layers look at a window of tokens only, where the configuration does not list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    /// None.
    Never,
    /// All, where a window is stated.
    All,
    /// All but every n-th.
    AllBut(usize),
    /// From layer `max_window_layers` on, and only with `use_sliding_window`.
    Switched,
}

/// One family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    /// `model_type` in `config.json`.
    pub(super) model_types: &'static [&'static str],
    /// `general.architecture` in GGUF files.
    pub(super) gguf: &'static str,
    /// Names of its weights outside GGUF.
    pub(super) names: Names,
    /// Root mean square norms; else mean and variance.
    pub(super) rms: bool,
    /// What is added to the stored weight of a norm outside GGUF.
    pub(super) norm_offset: f32,
    /// Epsilon where none is stated.
    pub(super) eps: f64,
    pub(super) activation: Activation,
    pub(super) gated: bool,
    pub(super) windows: Windows,
    /// Embeddings times the root of the width.
    pub(super) scaled_embedding: bool,
    pub(super) query_key_norm: bool,
    pub(super) out_norms: bool,
    /// Rotary embedding; else learned positions.
    pub(super) rotary: bool,
    /// Base of the rotary embedding where none is stated, and that of windowed layers where they have
    /// their own.
    pub(super) base: f64,
    pub(super) window_base: Option<f64>,
    /// GGUF stores queries and keys for interleaved rotation.
    pub(super) permuted: bool,
    /// Matrices are stored `[in, out]` outside GGUF.
    pub(super) transposed: bool,
    /// Embedding and output share their matrix where nothing is stated.
    pub(super) tied: bool,
    /// Caps on attention scores and logits where nothing is stated.
    pub(super) caps: Option<(f64, f64)>,
    /// Layers of the size whose attention is scaled by `width / heads` instead of the head size.
    pub(super) scaled_by_width: Option<usize>,
}

const LLAMA: Family = Family {
    model_types: &["llama"],
    gguf: "llama",
    names: names::LLAMA,
    rms: true,
    norm_offset: 0.0,
    eps: 1e-6,
    activation: Activation::Silu,
    gated: true,
    windows: Windows::Never,
    scaled_embedding: false,
    query_key_norm: false,
    out_norms: false,
    rotary: true,
    base: 10_000.0,
    window_base: None,
    permuted: true,
    transposed: false,
    tied: false,
    caps: None,
    scaled_by_width: None,
};

const GEMMA2: Family = Family {
    model_types: &["gemma2"],
    gguf: "gemma2",
    names: names::GEMMA,
    norm_offset: 1.0,
    activation: Activation::GeluTanh,
    windows: Windows::AllBut(2),
    scaled_embedding: true,
    out_norms: true,
    permuted: false,
    tied: true,
    caps: Some((50.0, 30.0)),
    scaled_by_width: Some(46),
    ..LLAMA
};

/// All families.
pub(super) const FAMILIES: &[Family] = &[
    LLAMA,
    // In GGUF files Mistral goes by the name of Llama.
    Family { model_types: &["mistral"], gguf: "mistral", windows: Windows::All, ..LLAMA },
    Family { model_types: &["qwen2"], gguf: "qwen2", windows: Windows::Switched, permuted: false, ..LLAMA },
    Family {
        model_types: &["qwen3"],
        gguf: "qwen3",
        windows: Windows::Switched,
        query_key_norm: true,
        permuted: false,
        ..LLAMA
    },
    Family {
        model_types: &["phi3"],
        gguf: "phi3",
        eps: 1e-5,
        windows: Windows::All,
        permuted: false,
        ..LLAMA
    },
    GEMMA2,
    Family {
        model_types: &["gemma3_text"],
        gguf: "gemma3",
        windows: Windows::AllBut(6),
        query_key_norm: true,
        base: 1_000_000.0,
        window_base: Some(10_000.0),
        caps: None,
        scaled_by_width: Some(62),
        ..GEMMA2
    },
    Family {
        model_types: &["gpt2"],
        gguf: "gpt2",
        names: names::GPT2,
        rms: false,
        eps: 1e-5,
        activation: Activation::GeluTanh,
        gated: false,
        rotary: false,
        permuted: false,
        transposed: true,
        tied: true,
        ..LLAMA
    },
];

/// The family of a `model_type`.
pub(super) fn by_model_type(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|f| f.model_types.contains(&name))
}

/// The family of a GGUF architecture.
pub(super) fn by_gguf(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|f| f.gguf == name)
}
