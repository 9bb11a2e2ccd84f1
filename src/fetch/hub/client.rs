//! The requests that the hub understands: what a revision holds, and the bytes of a file. The token goes
//! to the hub alone, never to where it redirects.

use super::{Hub, RemoteFile, Repository, Revision, directory_of};
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::text;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::config::RedirectAuthHeaders;
use ureq::http::Response;
use ureq::{Agent, Body};

/// Longest answer about a revision.
const ANSWER: u64 = 32 << 20;
/// Tries of a request that failed on the way.
const TRIES: u32 = 4;
/// Wait before the second try; it doubles.
const PAUSE: Duration = Duration::from_millis(250);
/// Slowest transfer that is waited for, bytes per second.
const SLOWEST: u64 = 16 << 10;

pub(super) struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
}

/// Why a request came to nothing, and whether another try may help.
struct Failed {
    error: Error,
    again: bool,
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub) -> Client<'a> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(hub.endpoint.starts_with("https://"))
            .max_redirects(6)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("tinsmith/", env!("CARGO_PKG_VERSION")))
            .build();
        Client { hub, agent: config.into() }
    }

    fn get(&self, url: &str, from: u64, within: Duration) -> std::result::Result<Response<Body>, Failed> {
        let mut request =
            self.agent.get(url).config().timeout_recv_body(Some(within)).build().header("Accept", "*/*");
        if let Some(token) = &self.hub.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call().map_err(|e| Failed { again: true, error: unreachable(self.hub, &e.to_string()) })
    }

    /// What a revision holds.
    pub(super) fn revision(&self, r: &Repository, monitor: &dyn Monitor) -> Result<Revision> {
        monitor.phase(&format!("ask for {}", r.path()), None);
        let url = format!("{}/api/models/{}/revision/{}?blobs=true", self.hub.endpoint, r.path(), r.revision);
        retried(monitor, || {
            let mut response = self.get(&url, 0, Duration::from_secs(120))?;
            accepted(self.hub, &response, r, None)?;
            let bytes = response.body_mut().with_config().limit(ANSWER).read_to_vec();
            let bytes =
                bytes.map_err(|e| Failed { again: true, error: unreachable(self.hub, &e.to_string()) })?;
            serde_json::from_slice(&bytes).map_err(|e| Failed {
                again: false,
                error: odd("the answer is not what a hub says").found(e),
            })
        })
    }

    /// Downloads a file below `contents`, or what is missing of it, and checks it. Returns its size.
    /// `before` is how much was downloaded of others.
    pub(super) fn file(
        &self,
        r: &Repository,
        sha: &str,
        file: &RemoteFile,
        contents: &Path,
        before: u64,
        monitor: &dyn Monitor,
    ) -> Result<u64> {
        let target = contents.join(&file.path);
        if let Ok(found) = fs::metadata(&target)
            && file.bytes().is_none_or(|n| n == found.len())
        {
            return Ok(found.len());
        }
        directory_of(&target)?;
        // Beside the contents, so that what is published holds whole files only.
        let part = contents.with_file_name("parts").join(&file.path);
        directory_of(&part)?;
        let url = format!("{}/{}/resolve/{sha}/{}", self.hub.endpoint, r.path(), encoded(&file.path));
        retried(monitor, || self.receive(&url, r, file, &part, before, monitor))?;
        let bytes = checked(file, &part)?;
        fs::rename(&part, &target).map_err(|e| Error::io("move into place", &target, e))?;
        monitor.progress(before + bytes);
        Ok(bytes)
    }

    /// Appends what is missing of `part`.
    fn receive(
        &self,
        url: &str,
        r: &Repository,
        file: &RemoteFile,
        part: &Path,
        before: u64,
        monitor: &dyn Monitor,
    ) -> std::result::Result<(), Failed> {
        let mut have = fs::metadata(part).map(|m| m.len()).unwrap_or(0);
        if file.bytes().is_some_and(|n| have > n) {
            have = 0;
        }
        if have > 0 && file.bytes() == Some(have) {
            return Ok(());
        }
        let left = file.bytes().map_or(1 << 40, |n| n - have);
        let within = Duration::from_secs(120 + left / SLOWEST);
        let response = self.get(url, have, within)?;
        let from = match response.status().as_u16() {
            // The part is whole already, or is not of this file.
            416 => {
                let _ = fs::remove_file(part);
                return Err(Failed { again: true, error: odd("the hub does not have the rest of a file") });
            }
            206 if starts_at(&response) == Some(have) => have,
            206 => {
                let _ = fs::remove_file(part);
                return Err(Failed { again: true, error: odd("the hub sent another range than asked for") });
            }
            _ => 0,
        };
        accepted(self.hub, &response, r, Some(&file.path))?;
        let broken = |e: std::io::Error| Failed { again: false, error: Error::io("write", part, e) };
        let mut out = File::options()
            .create(true)
            .append(from > 0)
            .write(true)
            .truncate(from == 0)
            .open(part)
            .map_err(broken)?;
        let (mut at, mut buffer) = (from, vec![0u8; 1 << 18]);
        let mut body = response.into_body().into_reader();
        loop {
            monitor.check().map_err(|error| Failed { again: false, error })?;
            let n = body
                .read(&mut buffer)
                .map_err(|e| Failed { again: true, error: unreachable(self.hub, &e.to_string()) })?;
            if n == 0 {
                break;
            }
            at += n as u64;
            if file.bytes().is_some_and(|size| at > size) {
                let _ = fs::remove_file(part);
                return Err(Failed { again: false, error: wrong(file, "it is longer").found(at) });
            }
            out.write_all(buffer.get(..n).unwrap_or_default()).map_err(broken)?;
            monitor.progress(before + at);
        }
        out.sync_all().map_err(broken)?;
        match file.bytes() {
            Some(size) if at < size => {
                let error = unreachable(self.hub, &format!("the connection ended at {at} of {size} bytes"));
                Err(Failed { again: true, error })
            }
            _ => Ok(()),
        }
    }
}

/// Tries again what failed on the way, with growing pauses.
fn retried<T>(monitor: &dyn Monitor, mut work: impl FnMut() -> std::result::Result<T, Failed>) -> Result<T> {
    let mut pause = PAUSE;
    for tried in 1.. {
        match work() {
            Ok(done) => return Ok(done),
            Err(f) if !f.again || tried == TRIES => return Err(f.error),
            Err(_) => {}
        }
        monitor.check()?;
        std::thread::sleep(pause);
        pause *= 2;
    }
    Err(odd("no try was made"))
}

/// The first byte of a partial answer.
fn starts_at(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// Whether the hub gave what was asked for.
fn accepted(
    hub: &Hub,
    response: &Response<Body>,
    r: &Repository,
    file: Option<&str>,
) -> std::result::Result<(), Failed> {
    let status = response.status().as_u16();
    let what = || match file {
        Some(file) => format!("{}/{file}", r.path()),
        None => format!("{}@{}", r.path(), r.revision),
    };
    let (again, error) = match status {
        200 | 206 => return Ok(()),
        401 | 403 => {
            let hint = match hub.token {
                Some(_) => {
                    "accept the terms of the model on its page, with the account of the token in HF_TOKEN"
                }
                None => {
                    "check the name; a private or gated model needs a token in HF_TOKEN and its terms accepted"
                }
            };
            let error = Error::usage("HUB-ACCESS", "the hub does not give this out");
            (false, error.found(format!("{} (status {status})", what())).hint(hint))
        }
        404 => {
            let error = Error::usage("HUB-ABSENT", "the hub has no such repository, revision or file");
            (false, error.found(what()).hint("check owner, name, revision and file"))
        }
        status => (
            status == 429 || status >= 500,
            Error::storage("HUB-STATUS", format!("the hub answered with status {status}"))
                .found(what())
                .hint("try again later"),
        ),
    };
    Err(Failed { again, error })
}

/// Size and, where the hub tells it, SHA-256 of a whole part. A wrong one is removed.
fn checked(file: &RemoteFile, part: &Path) -> Result<u64> {
    let mut input = File::open(part).map_err(|e| Error::io("open", part, e))?;
    let (mut hasher, mut bytes, mut buffer) = (Sha256::new(), 0u64, vec![0u8; 1 << 18]);
    loop {
        let n = input.read(&mut buffer).map_err(|e| Error::io("read", part, e))?;
        if n == 0 {
            break;
        }
        bytes += n as u64;
        if file.sha256().is_some() {
            hasher.update(buffer.get(..n).unwrap_or_default());
        }
    }
    let digest: String = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let error = match (file.bytes(), file.sha256()) {
        (Some(size), _) if size != bytes => wrong(file, "it has another size").found(bytes).limit(size),
        (_, Some(sha)) if !sha.eq_ignore_ascii_case(&digest) => {
            wrong(file, "it has another SHA-256").found(&digest).limit(sha)
        }
        _ => return Ok(bytes),
    };
    let _ = fs::remove_file(part);
    Err(error)
}

fn wrong(file: &RemoteFile, how: &str) -> Error {
    Error::integrity("HUB-DIGEST", format!("a file is not what the hub says: {how}"))
        .file(PathBuf::from(&file.path))
        .hint("fetch it again")
}

/// An answer that makes no sense.
pub(super) fn odd(what: &str) -> Error {
    Error::storage("HUB-ANSWER", format!("the hub cannot be understood: {what}"))
        .hint("check HF_ENDPOINT; it must be the address of a model hub")
}

fn unreachable(hub: &Hub, why: &str) -> Error {
    Error::storage("HUB-NETWORK", format!("the hub cannot be reached: {}", text::clean(why, 200)))
        .found(&hub.endpoint)
        .hint("check the network and HF_ENDPOINT; a model that lies on this machine is opened by its path")
}

/// A path as it stands in an address.
fn encoded(path: &str) -> String {
    path.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                (b as char).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}
