//! What a parent sees of a child that answers, dies, hangs, floods or fails.

use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tinsmith::child::{self, Child, Limits};
use tinsmith::error::{Error, Kind, Result};
use tinsmith::monitor::{Silent, Switch};

fn fault(request: Value, limits: &Limits) -> Result<String> {
    child::set_program(env!("CARGO_BIN_EXE_tinsmith"));
    child::call("fault", &request, limits)
}

fn quick() -> Limits {
    Limits::within(Duration::from_secs(20))
}

#[test]
fn a_child_answers_and_what_it_prints_does_not_disturb_the_answer() {
    assert_eq!(fault(json!({"echo": "abc"}), &quick()).unwrap(), "abc");
    assert_eq!(
        fault(json!({"print": "{\"reply\":\"forged\"}"}), &quick()).unwrap(),
        "{\"reply\":\"forged\"}"
    );
}

#[test]
fn a_death_is_an_error_that_names_the_signal() {
    for (signal, name) in [(11, "SIGSEGV"), (9, "SIGKILL"), (6, "SIGABRT")] {
        let e = fault(json!({ "signal": signal }), &quick()).unwrap_err();
        assert_eq!(e.kind(), Kind::Died, "{e}");
        assert!(e.to_string().contains(name), "{e}");
    }
    let e = fault(json!({"exit": 3}), &quick()).unwrap_err();
    assert!(e.kind() == Kind::Died && e.to_string().contains("exit code 3"), "{e}");
}

#[test]
fn a_child_that_takes_too_long_is_ended() {
    let start = Instant::now();
    let e = fault(json!({"sleep": 60_000}), &Limits::within(Duration::from_millis(300))).unwrap_err();
    assert_eq!(e.kind(), Kind::Limit, "{e}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_flood_is_cut_off() {
    let limits = Limits { reply: 1 << 16, ..quick() };
    let e = fault(json!({"reply": 1 << 20}), &limits).unwrap_err();
    assert_eq!((e.kind(), e.code()), (Kind::Limit, "CHILD-REPLY"), "{e}");
}

#[test]
fn the_memory_limit_ends_the_child_alone() {
    let limits = Limits { memory: Some(1 << 30), ..quick() };
    assert!(fault(json!({"allocate": 1 << 20}), &limits).is_ok());
    let e = fault(json!({"allocate": 4_u64 << 30}), &limits).unwrap_err();
    assert_eq!(e.kind(), Kind::Died, "{e}");
}

#[test]
fn errors_and_panics_of_the_work_arrive_as_errors() {
    let e = fault(json!("fail"), &quick()).unwrap_err();
    assert_eq!(e.to_string(), "[FAULT] fault: as asked; ask for less");
    let e = fault(json!({"index": 8}), &quick()).unwrap_err();
    assert_eq!((e.kind(), e.code()), (Kind::Internal, "CHILD-PANIC"), "{e}");
    child::set_program(env!("CARGO_BIN_EXE_tinsmith"));
    let e: Error = child::call::<_, Value>("no-such-kind", &json!({}), &quick()).unwrap_err();
    assert!(e.to_string().contains("no such work"), "{e}");
}

#[test]
fn a_stop_ends_the_child_soon() {
    child::set_program(env!("CARGO_BIN_EXE_tinsmith"));
    let switch = Switch(AtomicBool::new(false));
    let start = Instant::now();
    let e = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            switch.0.store(true, Ordering::Relaxed);
        });
        child::call_watched::<_, String>("fault", &json!({"sleep": 60_000}), &quick(), &switch).unwrap_err()
    });
    assert_eq!(e.kind(), Kind::Stopped);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_child_stays_for_many_requests_and_survives_the_thread_that_started_it() {
    child::set_program(env!("CARGO_BIN_EXE_tinsmith"));
    let mut child = std::thread::spawn(|| Child::start("fault", &quick()).unwrap()).join().unwrap();
    for i in 0..20 {
        let reply: String = child.ask(&json!({"echo": i.to_string()}), &Silent, &mut |_| Ok(())).unwrap();
        assert_eq!(reply, i.to_string());
    }
    child.finish();
}

#[cfg(target_os = "linux")]
#[test]
fn a_child_dies_with_its_parent() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    // The shell starts the child with a pipe as stdin and is killed while the child works.
    let mut parent = Command::new("sh")
        .arg("-c")
        .arg(
            r#"
            exec 3<&0
            "$0" __child fault <&3 &
            echo "$$ $!"
            wait
        "#,
        )
        .arg(env!("CARGO_BIN_EXE_tinsmith"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(parent.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let mut ids = line.split_whitespace().map(|w| w.parse::<u32>().unwrap());
    let (shell, child) = (ids.next().unwrap(), ids.next().unwrap());
    let mut stdin = parent.stdin.take().unwrap();
    let limits = serde_json::to_value(quick()).unwrap();
    writeln!(stdin, "{}", json!({"protocol": 1, "kind": "fault", "parent": shell, "limits": limits}))
        .unwrap();
    writeln!(stdin, "{}", json!({"sleep": 60_000})).unwrap();
    line.clear();
    out.read_line(&mut line).unwrap();
    assert!(line.contains("progress"), "the child works: {line}");
    parent.kill().unwrap();
    parent.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    let alive = || {
        std::fs::read_to_string(format!("/proc/{child}/stat"))
            .is_ok_and(|s| !s.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
    };
    while alive() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!alive(), "the child outlived its parent");
    drop(stdin);
}
