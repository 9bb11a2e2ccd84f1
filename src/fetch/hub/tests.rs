//! Downloads from a server on this machine that speaks as a hub does.

use super::*;
use crate::monitor::Silent;
use crate::save::sha256;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// How a server misbehaves.
#[derive(Default, Clone)]
struct Faults {
    /// Bytes after which the first answer with weights ends.
    cut: Option<usize>,
    /// The weights are other ones than announced.
    forged: bool,
    /// Every request is answered with this.
    status: Option<u16>,
    /// Weights are announced without a digest of large files.
    small: bool,
}

struct Server {
    address: String,
    /// Request lines with their Authorization and Range.
    seen: Arc<Mutex<Vec<String>>>,
}

fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect()
}

fn serve(faults: Faults) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let cuts = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (faults, log, cuts) = (faults.clone(), log.clone(), cuts.clone());
            std::thread::spawn(move || answer(stream, port, &faults, &log, &cuts));
        }
    });
    Server { address: format!("http://127.0.0.1:{port}"), seen }
}

fn answer(mut stream: TcpStream, port: u16, faults: &Faults, log: &Mutex<Vec<String>>, cuts: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut line, mut range, mut token) = (String::new(), 0usize, String::from("none"));
    reader.read_line(&mut line).unwrap();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).unwrap_or(0) <= 2 {
            break;
        }
        let lower = header.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("range: bytes=") {
            range = value.trim().trim_end_matches('-').parse().unwrap();
        }
        if lower.starts_with("authorization:") {
            token = header[15..].trim().to_string();
        }
    }
    let path = line.split(' ').nth(1).unwrap_or("").to_string();
    log.lock().unwrap().push(format!("{path} {token} {range}"));
    let mut send = |status: &str, headers: &str, body: &[u8], length: usize| {
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(body);
        let _ = stream.flush();
    };
    if let Some(status) = faults.status {
        return send(&format!("{status} No"), "", b"no", 2);
    }
    let data = weights();
    let config = br#"{"model_type": "llama"}"#;
    let resolve = format!("/o/n/resolve/{SHA}/");
    match path.as_str() {
        "/api/models/o/n/revision/main?blobs=true" => {
            let lfs = match faults.small {
                true => serde_json::Value::Null,
                false => serde_json::json!({"sha256": sha256(&data), "size": data.len(), "pointerSize": 134}),
            };
            let body = serde_json::json!({
                "id": "o/n", "sha": SHA, "cardData": {"license": "mit"}, "gated": false,
                "siblings": [
                    {"rfilename": ".gitattributes", "size": 10},
                    {"rfilename": "config.json", "size": config.len(), "blobId": "aa"},
                    {"rfilename": "model.safetensors", "size": data.len(), "lfs": lfs},
                    {"rfilename": "pytorch_model.bin", "size": 5},
                    {"rfilename": "../evil.json", "size": 5},
                ],
            })
            .to_string();
            send("200 OK", "Content-Type: application/json\r\n", body.as_bytes(), body.len());
        }
        p if p == format!("{resolve}config.json") => send("200 OK", "", config, config.len()),
        // As the hub does, large files lie elsewhere; here under another name of the same machine.
        p if p == format!("{resolve}model.safetensors") => {
            let to =
                format!("Location: http://localhost:{port}/cdn/w?x=1\r\nX-Linked-Size: {}\r\n", data.len());
            send("302 Found", &to, b"", 0);
        }
        "/cdn/w?x=1" => {
            let mut rest = data[range.min(data.len())..].to_vec();
            if faults.forged {
                rest[0] ^= 1;
            }
            let length = rest.len();
            if let Some(cut) = faults.cut.filter(|_| cuts.fetch_add(1, Ordering::SeqCst) == 0) {
                rest.truncate(cut);
            }
            match range {
                0 => send("200 OK", "", &rest, length),
                from => {
                    let of = format!("Content-Range: bytes {from}-{}/{}\r\n", data.len() - 1, data.len());
                    send("206 Partial Content", &of, &rest, length);
                }
            }
        }
        _ => send("404 Not Found", "", b"", 0),
    }
}

fn go(server: &Server, home: &Path, spec: &str) -> Result<Fetched> {
    let hub = Hub::new(&server.address, Some("secret".into())).unwrap();
    fetch(&Repository::parse(spec).unwrap(), &hub, &Paths::under(home), &Silent)
}

#[test]
fn a_model_is_fetched_once_and_the_token_stays_with_the_hub() {
    let home = tempfile::tempdir().unwrap();
    let server = serve(Faults::default());
    let found = go(&server, home.path(), "hf:o/n").unwrap();
    assert_eq!(found.dir, Paths::under(home.path()).models().join("hf/o--n"));
    assert_eq!(
        found.files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(),
        ["config.json", "model.safetensors"]
    );
    assert_eq!(fs::read(found.dir.join("model.safetensors")).unwrap(), weights());
    assert_eq!(found.licence, "mit");
    let seen = server.seen.lock().unwrap().clone();
    assert!(
        seen.iter()
            .filter(|s| s.starts_with("/api") || s.starts_with("/o/n"))
            .all(|s| s.contains("Bearer secret")),
        "{seen:?}"
    );
    assert!(seen.iter().any(|s| s.starts_with("/cdn")), "{seen:?}");
    assert!(seen.iter().filter(|s| s.starts_with("/cdn")).all(|s| s.contains(" none ")), "{seen:?}");
    assert!(seen.iter().all(|s| !s.contains("pytorch_model.bin") && !s.contains("evil")));
    go(&server, home.path(), "hf:o/n").unwrap();
    let again = server.seen.lock().unwrap().len() - seen.len();
    assert_eq!(again, 1, "only the revision is asked for again");
    let left: Vec<_> =
        fs::read_dir(found.dir.parent().unwrap()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().ends_with(".part")), "{left:?}");
}

#[test]
fn a_download_that_was_cut_off_goes_on_where_it_stopped() {
    let home = tempfile::tempdir().unwrap();
    let server = serve(Faults { cut: Some(100_000), ..Faults::default() });
    let found = go(&server, home.path(), "hf:o/n").unwrap();
    assert_eq!(fs::read(found.dir.join("model.safetensors")).unwrap(), weights());
    let seen = server.seen.lock().unwrap().clone();
    assert!(seen.iter().any(|s| s.starts_with("/cdn") && s.ends_with(" 100000")), "{seen:?}");
}

#[test]
fn a_part_of_an_earlier_process_is_taken_up() {
    let home = tempfile::tempdir().unwrap();
    let server = serve(Faults::default());
    let work = Paths::under(home.path()).models().join("hf/.o--n.part");
    begin(&work, SHA).unwrap();
    fs::create_dir_all(work.join("parts")).unwrap();
    fs::write(work.join("parts/model.safetensors"), &weights()[..77]).unwrap();
    go(&server, home.path(), "hf:o/n").unwrap();
    let seen = server.seen.lock().unwrap().clone();
    assert!(seen.iter().any(|s| s.starts_with("/cdn") && s.ends_with(" 77")), "{seen:?}");
}

#[test]
fn forged_weights_are_refused_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let e = go(&serve(Faults { forged: true, ..Faults::default() }), home.path(), "hf:o/n").unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("HUB-DIGEST", 9));
    assert!(!Paths::under(home.path()).models().join("hf/o--n").exists());
    // Without a digest the size is all there is to go by.
    let plain = serve(Faults { forged: true, small: true, ..Faults::default() });
    assert!(go(&plain, home.path(), "hf:o/n").is_ok());
}

#[test]
fn refusals_name_the_next_step_and_never_the_token() {
    let home = tempfile::tempdir().unwrap();
    for (status, code, exit) in
        [(401, "HUB-ACCESS", 2), (403, "HUB-ACCESS", 2), (404, "HUB-ABSENT", 2), (503, "HUB-STATUS", 6)]
    {
        let server = serve(Faults { status: Some(status), ..Faults::default() });
        let e = go(&server, home.path(), "hf:o/n").unwrap_err();
        assert_eq!((e.code(), e.kind().exit_code()), (code, exit), "{e}");
        assert!(e.hint_text().is_some() && !e.to_string().contains("secret"), "{e}");
        let tries = server.seen.lock().unwrap().len();
        assert_eq!(tries, if status == 503 { 4 } else { 1 });
    }
    let e = go(&serve(Faults::default()), home.path(), "hf:o/n/pytorch_model.bin").unwrap_err();
    assert_eq!(e.kind().exit_code(), 4);
}

#[test]
fn without_a_network_what_is_there_serves() {
    let home = tempfile::tempdir().unwrap();
    let dead = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let gone = Server { address: dead, seen: Arc::default() };
    let e = go(&gone, home.path(), "hf:o/n").unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("HUB-NETWORK", 6));
    go(&serve(Faults::default()), home.path(), "hf:o/n").unwrap();
    assert_eq!(go(&gone, home.path(), "hf:o/n").unwrap().files.len(), 2);
    assert_eq!(go(&gone, home.path(), "hf:o/n/*.gguf").unwrap_err().kind().exit_code(), 6);
    assert!(Hub::new("huggingface.co", None).is_err() && Hub::new("ftp://x", None).is_err());
}
