//! The real program in a terminal: it starts, draws, resizes, and leaves the terminal as it was on every
//! way out; jobs do not depend on it.

use super::desk::{Desk, cpu_time, kill, lives, program, start};
use crate::protobuf::chain;
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tinsmith::config::Paths;
use tinsmith::jobs::{self, Request, Status};
use tinsmith::plan::{Recipe, Step};

const SECOND: Duration = Duration::from_secs(1);
/// What the Model tab says without a model.
const EMPTY: &str = "No model is open";
/// A minute of work that computes nothing.
const LONG: &str = r#"{"steps":2,"millis":60000,"bytes":10}"#;

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn model(home: &Path, nodes: usize) -> PathBuf {
    let path = home.join("chain.onnx");
    std::fs::write(&path, chain(nodes)).unwrap();
    path
}

#[test]
fn it_draws_and_leaves_the_terminal_as_it_was() {
    let home = home();
    let mut desk = start(home.path()).run();
    desk.wait_for(EMPTY);
    assert!(desk.is_taken());
    desk.press("?");
    desk.wait_for("Keys on Model");
    desk.press("\u{1b}");
    desk.wait_until("the help to close", |s| !s.contains("Keys on Model"));
    desk.press("q");
    assert_eq!(desk.ended_within(5 * SECOND), Some(0));
    desk.assert_restored();
    assert_eq!(desk.screen().trim(), "", "nothing stays in the scrollback");
}

#[test]
fn it_leaves_a_summary_where_one_asks_for_it() {
    let home = home();
    let mut desk = start(home.path()).open(&model(home.path(), 30)).size(100, 30).run();
    desk.wait_for("params");
    desk.press("Q");
    assert_eq!(desk.ended_within(5 * SECOND), Some(0));
    desk.assert_restored();
    desk.wait_for("chain.onnx");
}

#[test]
fn signals_end_it_with_the_terminal_restored() {
    let home = home();
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130), (Signal::QUIT, 131)] {
        let mut desk = start(home.path()).run();
        desk.wait_for(EMPTY);
        // A signal that comes before the first look at the jobs is as good as one that comes later.
        desk.signal(signal);
        assert_eq!(desk.ended_within(SECOND), Some(code), "{signal:?}");
        desk.assert_restored();
    }
}

#[test]
fn a_closed_terminal_ends_it_on_every_tab_and_in_a_dialog() {
    let home = home();
    let ignoring = "trap '' HUP; exec \"$0\" \"$@\"";
    for (keys, shows, script) in [
        ("1", EMPTY, None),
        ("2", "Recipes are ranked", Some(ignoring)),
        ("3", "No jobs yet", Some(ignoring)),
        ("4", "Nothing was measured", None),
        ("5", "Log", Some(ignoring)),
        ("?", "Keys on", Some(ignoring)),
        ("2b", "A variant that misses", None),
    ] {
        let mut begin = start(home.path());
        if let Some(script) = script {
            begin = begin.through(script);
        }
        let mut desk = begin.run();
        desk.wait_for(EMPTY);
        desk.press(keys);
        desk.wait_for(shows);
        let pid = desk.pid();
        desk.hang_up();
        assert!(desk.ended_within(SECOND).is_some(), "{keys} {script:?}: lives on");
        assert!(!lives(pid));
    }
}

#[test]
fn a_panic_gives_the_terminal_back_and_says_what_happened_once() {
    let home = home();
    let mut desk = start(home.path()).size(100, 30).env("TINSMITH_FAULT", "draw").run();
    assert_eq!(desk.ended_within(10 * SECOND), Some(70));
    desk.assert_restored();
    let screen = desk.wait_for("a fault was asked for");
    assert_eq!(screen.matches("a fault was asked for").count(), 1, "{screen}");
}

#[test]
fn a_panic_beside_the_screen_is_a_message_on_it() {
    let home = home();
    let path = model(home.path(), 6);
    let mut desk = start(home.path()).open(&path).env("TINSMITH_FAULT", "work").run();
    desk.wait_for("failed inside");
    assert!(desk.is_taken());
    desk.press("q");
    assert_eq!(desk.ended_within(5 * SECOND), Some(0));
    desk.assert_restored();
}

#[test]
fn a_storm_of_resizes_ends_in_a_right_frame() {
    let home = home();
    let mut desk = start(home.path()).open(&model(home.path(), 300)).run();
    desk.wait_for("params");
    let mut seed = 7u32;
    let mut random = |n: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % n
    };
    for round in 0..300 {
        let (w, h) = match round % 30 {
            0 => (0, 0),
            1 => (1, 1),
            2 => (0, 24),
            _ => (random(400) as u16, random(150) as u16),
        };
        desk.resize(w, h);
        std::thread::sleep(Duration::from_millis(3));
    }
    // Each resize reaches the program as a signal, of which the last decides; a redraw settles what the
    // emulator saw at sizes that the program did not know yet.
    desk.resize(100, 30);
    std::thread::sleep(Duration::from_millis(300));
    desk.press("\u{c}");
    let screen = desk.wait_until("a frame of 100x30", |s| {
        let lines: Vec<&str> = s.lines().collect();
        lines.len() == 30
            && lines[0].trim_start().starts_with("tinsmith")
            && lines[29].contains("? help")
            && lines[28].starts_with('└')
            && lines[28].ends_with('┘')
            && lines[28].chars().count() == 100
    });
    assert!(screen.contains("params"));
    desk.press("q");
    assert_eq!(desk.ended_within(5 * SECOND), Some(0));
    desk.assert_restored();
}

#[test]
fn a_filter_narrows_a_real_model() {
    let home = home();
    let mut desk = start(home.path()).open(&model(home.path(), 30)).run();
    desk.wait_for("MatMul");
    desk.press("/");
    desk.wait_for("shown");
    desk.press("relu");
    desk.wait_until("only Relu", |s| s.contains("Relu") && !s.contains("MatMul"));
    desk.press("\r");
    desk.wait_for("/relu");
    desk.press("\u{1b}");
    desk.wait_for("MatMul");
    desk.press("q");
    assert_eq!(desk.ended_within(5 * SECOND), Some(0));
}

#[test]
fn a_real_model_is_mapped_and_a_cut_is_foretold() {
    let home = home();
    let sample = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/digits-resnet.onnx"));
    let mut desk = start(home.path()).open(sample).size(120, 40).run();
    desk.wait_for("params");
    desk.press("i");
    let shown = desk.wait_for("importance: l2 of the weights");
    assert!(shown.contains("channels"), "{shown}");
    desk.wait_until("a prediction of latency", |s| s.contains("latency") && s.contains("roofline"));
    desk.press("aaa+");
    desk.wait_until("what five hundredths bring", |s| s.contains("cut 5 %") && s.contains(" → "));
    desk.press("r");
    desk.wait_for("tinsmith run prune-l2-");
    desk.press("\u{1b}");
    desk.wait_until("the dialog to close", |s| !s.contains("tinsmith run prune-l2-"));
    desk.press("Q");
    assert_eq!(desk.ended_within(5 * SECOND), Some(0));
    desk.assert_restored();
}

#[test]
fn recipes_are_ranked_for_a_real_model_and_each_device() {
    let home = home();
    let mut desk = start(home.path()).size(120, 40).open(&model(home.path(), 30)).run();
    desk.wait_for("params");
    desk.press("2");
    let screen = desk.wait_for("predictions, not measurements");
    assert!(screen.contains("Goal  device host") && screen.contains("predicted"), "{screen}");
    desk.press("d");
    desk.wait_for("device raspberry-pi-5");
    desk.wait_for("neon");
    desk.press("\tG");
    desk.wait_for("GFLOP/s");
}

#[test]
fn an_idle_workbench_writes_nothing_and_rests() {
    let home = home();
    let desk = start(home.path()).size(120, 40).open(&model(home.path(), 300)).run();
    desk.wait_for("params");
    std::thread::sleep(2 * SECOND);
    let (written, used, begin) = (desk.bytes().len(), cpu_time(desk.pid()), Instant::now());
    std::thread::sleep(3 * SECOND);
    let used = (cpu_time(desk.pid()) - used).as_secs_f64() / begin.elapsed().as_secs_f64();
    println!("idle: {:.1} % of a core", used * 100.0);
    assert_eq!(desk.bytes().len(), written, "{}", desk.screen());
    assert!(used < 0.05, "{:.1} % of a core while idle", used * 100.0);
}

fn submit(home: &Path) -> tinsmith::jobs::JobHandle {
    let paths = Paths::under(home);
    let mut recipe = Recipe::new("trial", model(home, 6).to_str().unwrap());
    recipe.steps.push(Step::new("optimize"));
    let id = jobs::submit(&paths, &Request::Run { recipe }).unwrap();
    jobs::open(&paths, id.as_str()).unwrap()
}

#[test]
fn a_running_job_costs_few_bytes_a_frame() {
    let home = home();
    let job = submit(home.path());
    let mut desk = start(home.path()).size(120, 40).env("TINSMITH_TRIAL", LONG).run();
    desk.press("3");
    desk.wait_for("trial 0");
    std::thread::sleep(3 * SECOND);
    let frames = desk.frames(4 * SECOND);
    println!("bytes of each frame: {frames:?}");
    assert!(frames.len() >= 3, "{frames:?}");
    let mean = frames.iter().sum::<usize>() / frames.len();
    assert!(mean <= 300, "mean {mean}: {frames:?}");
    jobs::cancel(&job).unwrap();
    desk.wait_for("cancelled");
}

#[test]
fn a_job_started_here_outlives_the_terminal_and_comes_back_from_the_dead() {
    let home = home();
    let path = model(home.path(), 6);
    let paths = Paths::under(home.path());
    let open = || start(home.path()).size(120, 40).env("TINSMITH_TRIAL", LONG);
    let mut desk = open().open(&path).run();
    desk.wait_for("params");
    desk.press("2");
    desk.wait_for("predictions");
    desk.press("r");
    desk.wait_for("The same on the command line");
    desk.press("\r");
    desk.wait_for("trial 0");
    let job = jobs::list(&paths).remove(0);
    let pid = job.state().pid.unwrap();
    desk.hang_up();
    assert!(desk.ended_within(SECOND).is_some());
    assert!(lives(pid), "the worker went down with the terminal");

    let mut desk = open().run();
    desk.press("3");
    desk.wait_for("trial 0");
    kill(pid, Signal::KILL);
    desk.wait_for("resume with R");
    assert!(desk.screen().contains("dead"));
    desk.press("R");
    let until = Instant::now() + 30 * SECOND;
    while job.state().pid == Some(pid) || job.state().status != Status::Running {
        assert!(Instant::now() < until, "{:?}\n{}", job.state().status, desk.screen());
        std::thread::sleep(Duration::from_millis(20));
    }
    desk.wait_until("the job to run again", |s| s.contains("running 1") && !s.contains("resume with R"));
    desk.press("x");
    desk.wait_for("its last checkpoint stays");
    desk.press("\r");
    desk.wait_for("cancelled");
    desk.press("q");
    assert_eq!(desk.ended_within(5 * SECOND), Some(0));
    desk.assert_restored();
}

#[test]
fn names_in_files_cannot_speak_to_the_terminal() {
    let home = home();
    let evil = "\u{1b}]0;pwned\u{7}\u{9b}31m";
    let path = home.path().join(format!("a{evil}.onnx"));
    let bytes = chain(30);
    // Same length, so that the file stays whole.
    let (old, new) = (&b"/model/layer.0/node_0"[..], &b"/model\x1b]0;pwned\x07\x1b[2J_"[..]);
    assert_eq!(old.len(), new.len());
    let at = bytes.windows(old.len()).position(|w| w == old).unwrap();
    let mut bytes = bytes;
    bytes[at..at + new.len()].copy_from_slice(new);
    std::fs::write(&path, bytes).unwrap();
    let mut desk = start(home.path()).size(120, 40).open(&path).run();
    desk.wait_for("params");
    for keys in ["jj", "\r", "2", "5", "o", "\u{1b}", "Q"] {
        desk.press(keys);
        std::thread::sleep(Duration::from_millis(150));
    }
    assert_eq!(desk.ended_within(5 * SECOND), Some(0));
    let written = desk.bytes();
    for banned in [&b"\x1b]0;"[..], &b"\x07\x1b[2J"[..], &b"\x07"[..], "\u{9b}".as_bytes()] {
        let found = written.windows(banned.len()).any(|w| w == banned);
        assert!(!found, "{banned:?} was written");
    }
    assert!(String::from_utf8_lossy(&written).contains("pwned"), "the name was shown, spelled out");
}

#[test]
fn a_terminal_that_cannot_draw_is_refused_in_plain_text() {
    let home = home();
    for (name, value) in [("TERM", "dumb"), ("TERM", "")] {
        let mut desk = start(home.path()).env(name, value).run();
        assert_eq!(desk.ended_within(10 * SECOND), Some(2));
        desk.wait_for("tinsmith --help");
        assert!(!desk.bytes().contains(&0x1b), "{}", desk.screen());
    }
}

#[test]
fn without_colours_and_unicode_it_writes_neither() {
    let home = home();
    let path = model(home.path(), 30);
    let mut desk = start(home.path()).open(&path).env("NO_COLOR", "1").env("LANG", "C").run();
    desk.wait_for("params");
    desk.press("2");
    desk.wait_for("predictions");
    let written = desk.bytes();
    assert!(written.is_ascii());
    for colour in ["\u{1b}[3", "\u{1b}[38;", "\u{1b}[9"] {
        let found = written.windows(colour.len() + 2).any(|w| {
            w.starts_with(colour.as_bytes())
                && w[colour.len()].is_ascii_digit()
                && w[colour.len() + 1] == b'm'
        });
        assert!(!found, "{colour:?} was written");
    }
}

#[test]
fn stopping_gives_the_shell_its_terminal_and_coming_back_draws_again() {
    let home = home();
    let script = "set -m; \"$0\" \"$@\"; echo STOPPED; stty -a | tr ' ' '\\n' | grep -x -e '-icanon' -e icanon; read -r x; fg; echo ENDED";
    let mut desk = start(home.path()).through(script).run();
    desk.wait_for(EMPTY);
    desk.press("\u{1a}");
    let screen = desk.wait_for("STOPPED");
    desk.wait_until("a line to be read", |s| s.contains("\nicanon"));
    assert!(!screen.contains("-icanon"));
    desk.resize(100, 30);
    desk.press("\n");
    desk.wait_for(EMPTY);
    assert!(desk.is_taken());
    desk.press("q");
    desk.wait_for("ENDED");
    assert_eq!(desk.ended_within(5 * SECOND), Some(0));
}

/// Run by hand on a release build: `TINSMITH_PROGRAM=target/release/tinsmith cargo test -- --ignored`.
#[test]
#[ignore = "prints times"]
fn times_of_the_first_frame_and_of_a_key() {
    let home = home();
    let path = model(home.path(), 10_000);
    let times = |model: Option<&Path>| {
        let begin = Instant::now();
        let mut begin_desk = start(home.path()).size(120, 40);
        if let Some(model) = model {
            begin_desk = begin_desk.open(model);
        }
        let desk: Desk = begin_desk.run();
        desk.wait_for("tinsmith");
        (begin.elapsed(), desk)
    };
    for _ in 0..5 {
        let (first, mut desk) = times(Some(&path));
        let begin = Instant::now();
        desk.wait_for("params");
        let loaded = begin.elapsed();
        std::thread::sleep(SECOND);
        let begin = Instant::now();
        desk.press("j");
        let before = desk.bytes().len();
        while desk.bytes().len() == before {
            assert!(begin.elapsed() < SECOND);
            std::thread::yield_now();
        }
        println!("{}: first frame {first:?}, model after {loaded:?}, key {:?}", program(), begin.elapsed());
    }
}
