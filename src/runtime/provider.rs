//! Execution providers: which the loaded library has, which of them a session can really get, and why
//! not the others. A provider is tried in a child process, since its own libraries may kill it.

use super::locate::Library;
use super::probe::identity_runs;
use super::{Runtime, SessionOptions};
use crate::child::{self, Handler, Limits};
use crate::error::{Error, Kind, Result};
use ort::ep::{self, ExecutionProviderDispatch};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::time::Duration;

/// The provider that every library has and that computes what another one does not take.
pub const CPU: &str = "cpu";
/// The choice of the first provider that can be used.
pub const AUTO: &str = "auto";

/// A provider as people name it, as the library does, and how a session gets it; none where this program
/// does not set it up.
pub(super) struct Known {
    pub(super) name: &'static str,
    pub(super) native: &'static str,
    built_in: fn() -> bool,
    make: Option<fn(&SessionOptions) -> ExecutionProviderDispatch>,
}

fn threads(options: &SessionOptions) -> NonZeroUsize {
    NonZeroUsize::new(options.threads).unwrap_or(NonZeroUsize::MIN)
}

fn cpu(options: &SessionOptions) -> ExecutionProviderDispatch {
    ep::CPU::default().with_arena_allocator(options.arena).build()
}

/// Asks the library whether it was built with a provider; nothing more is done with the type.
macro_rules! availability {
    ($native:literal) => {{
        struct Asked;
        impl ep::ExecutionProvider for Asked {
            const NAME: &'static str = $native;
            fn register(&self, _: &mut ort::session::builder::SessionBuilder) -> ort::Result<()> {
                Err(ort::Error::new("not set up by this program"))
            }
        }
        || <Asked as ep::ExecutionProvider>::is_available().unwrap_or(false)
    }};
}

macro_rules! known {
    ($($name:literal = $native:literal: $make:expr),* $(,)?) => {
        /// All that are known, those that compute on a CPU first, in the order in which [`AUTO`] tries them.
        pub(super) static KNOWN: &[Known] =
            &[$(Known { name: $name, native: $native, built_in: availability!($native), make: $make }),*];
    };
}

known! {
    "openvino" = "OpenVINOExecutionProvider": Some(|o| {
        ep::OpenVINO::default().with_device_type("CPU").with_num_threads(threads(o).get()).build()
    }),
    "dnnl" = "DnnlExecutionProvider": Some(|o| ep::OneDNN::default().with_arena_allocator(o.arena).build()),
    "acl" = "ACLExecutionProvider": Some(|_| ep::ACL::default().build()),
    "xnnpack" = "XnnpackExecutionProvider": Some(|o| {
        ep::XNNPACK::default().with_intra_op_num_threads(threads(o)).build()
    }),
    "coreml" = "CoreMLExecutionProvider": Some(|_| ep::CoreML::default().build()),
    "cpu" = "CPUExecutionProvider": Some(cpu),
    "cuda" = "CUDAExecutionProvider": Some(|_| ep::CUDA::default().build()),
    "tensorrt" = "TensorrtExecutionProvider": None,
    "directml" = "DmlExecutionProvider": None,
    "rocm" = "ROCMExecutionProvider": None,
    "webgpu" = "WebGpuExecutionProvider": None,
    "azure" = "AzureExecutionProvider": None,
    "armnn" = "ArmNNExecutionProvider": None,
    "qnn" = "QNNExecutionProvider": None,
    "nnapi" = "NnapiExecutionProvider": None,
}

impl Known {
    /// Whether the library that this process has loaded was built with it.
    pub(super) fn is_built_in(&self) -> bool {
        (self.built_in)()
    }
}

/// Names that `--provider` takes.
pub fn names() -> Vec<&'static str> {
    KNOWN.iter().filter(|k| k.make.is_some()).map(|k| k.name).chain([AUTO]).collect()
}

/// The known provider of this name, ours or the library's.
///
/// # Errors
/// `Usage` for a name that nobody knows, and for one that this program does not set up.
fn known(name: &str) -> Result<&'static Known> {
    let found = KNOWN.iter().find(|k| k.name == name || k.native == name).filter(|k| k.make.is_some());
    found.ok_or_else(|| {
        Error::usage("PROVIDER", "this is no execution provider that this program sets up")
            .field("--provider")
            .found(name)
            .limit(names().join(", "))
    })
}

/// Whether `name` may be asked for: a provider that this program sets up, or [`AUTO`].
///
/// # Errors
/// `Usage`, with the names that may.
pub fn check(name: &str) -> Result<()> {
    if name == AUTO { Ok(()) } else { known(name).map(drop) }
}

/// What a session with `options` gets, most wanted first; the CPU always comes last.
pub(super) fn dispatches(options: &SessionOptions) -> Result<Vec<ExecutionProviderDispatch>> {
    let wanted = known(&options.provider)?;
    let make = wanted.make.filter(|_| wanted.name != CPU);
    Ok(make.map(|make| make(options).error_on_failure()).into_iter().chain([cpu(options)]).collect())
}

/// What the library has to say about one provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Name for people, such as `xnnpack`.
    pub name: String,
    /// Name in the library, such as `XnnpackExecutionProvider`.
    pub native: String,
    /// Whether it computes on a CPU.
    pub for_cpu: bool,
    /// Whether the library was built with it.
    pub compiled: bool,
    /// Whether a session with it ran a model.
    pub usable: bool,
    /// Why not.
    pub reason: Option<String>,
}

pub(super) fn handler() -> Handler {
    Handler::new("runtime.provider", |(library, name): (Library, String), _: &child::Link| {
        let runtime = Runtime::open(&library)?;
        let options = SessionOptions { provider: name, ..SessionOptions::default() };
        identity_runs(&runtime, &options)
    })
}

/// Tries one provider in a child process.
fn offer(library: &Library, compiled: &[String], known: &Known) -> Offer {
    let compiled = compiled.iter().any(|n| n == known.native);
    let tried = match known.make {
        None => Err("this program does not set it up".to_string()),
        Some(_) => {
            let limits = Limits::within(Duration::from_secs(20));
            child::call::<_, ()>("runtime.provider", &(library, known.name), &limits).map_err(|e| {
                match e.kind() {
                    Kind::Died => format!("the process that tried it died: {}", e.message()),
                    Kind::Limit => "trying it does not end".into(),
                    _ => reason(e.message()),
                }
            })
        }
    };
    Offer {
        name: known.name.into(),
        native: known.native.into(),
        for_cpu: known.make.is_some() && known.name != "cuda",
        compiled,
        usable: tried.is_ok(),
        reason: tried.err(),
    }
}

/// The library's own words, without ours before them.
fn reason(message: &str) -> String {
    let own = message.rsplit_once("set a session up: ").map_or(message, |(_, own)| own);
    own.trim().trim_end_matches('.').to_string()
}

/// Every known provider, tried. `compiled` are the library's own names of those that it was built with.
/// Takes about 50 ms for each.
pub fn offers(library: &Library, compiled: &[String]) -> Vec<Offer> {
    KNOWN.iter().map(|k| offer(library, compiled, k)).collect()
}

/// A provider, and what must be said about the choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Its name.
    pub name: &'static str,
    /// Those that were passed over, with reasons.
    pub notes: Vec<String>,
}

/// The provider that sessions get when `wanted` is asked for: the very one, or for [`AUTO`] the first of
/// those for CPUs that can be used.
///
/// # Errors
/// `Usage` for unknown names; `Unsupported` where the library cannot give the very one, with its reason
/// and those that are there.
pub fn choose(library: &Library, compiled: &[String], wanted: &str) -> Result<Choice> {
    if wanted == AUTO {
        let mut notes = Vec::new();
        for k in KNOWN.iter().take_while(|k| k.name != CPU) {
            let offer = offer(library, compiled, k);
            if offer.usable {
                return Ok(Choice { name: k.name, notes });
            }
            notes.push(format!("provider {} is not used: {}", k.name, offer.reason.unwrap_or_default()));
        }
        return Ok(Choice { name: CPU, notes });
    }
    let known = known(wanted)?;
    let tried = match known.name {
        CPU => return Ok(Choice { name: CPU, notes: Vec::new() }),
        _ => offer(library, compiled, known),
    };
    if tried.usable {
        return Ok(Choice { name: known.name, notes: Vec::new() });
    }
    let what = if tried.compiled { "cannot be used" } else { "is not in this ONNX Runtime" };
    let there = |k: &&Known| k.make.is_some() && compiled.iter().any(|n| n == k.native);
    let there: Vec<&str> = KNOWN.iter().filter(there).map(|k| k.name).collect();
    Err(Error::unsupported(
        "ORT-PROVIDER",
        format!("execution provider {} {what}: {}", known.name, tried.reason.unwrap_or_default()),
    )
    .file(&library.path)
    .found(known.name)
    .limit(there.join(", "))
    .hint("take one that is there, or set TINSMITH_ORT_DYLIB to a library that was built with it"))
}
