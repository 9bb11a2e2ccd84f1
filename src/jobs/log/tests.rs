//! The log under damage.

use super::*;
use crate::monitor::Level;

fn line(n: u64) -> Event {
    Event::Log { level: Level::Info, message: format!("line {n}") }
}

fn write(dir: &Path, count: u64) {
    let mut log = Log::open(dir, 0).unwrap();
    for n in 0..count {
        log.append(line(n)).unwrap();
    }
    log.commit().unwrap();
}

fn add(dir: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(dir.join(FILE)).unwrap().write_all(bytes).unwrap();
}

fn seqs(records: &[Record]) -> Vec<u64> {
    records.iter().map(|r| r.seq).collect()
}

#[test]
fn a_torn_tail_is_waited_for_by_the_reader_and_cut_by_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 2);
    let whole = fs::read(dir.path().join(FILE)).unwrap();
    for cut in 1..whole.len() / 2 - 2 {
        fs::write(dir.path().join(FILE), &whole).unwrap();
        add(dir.path(), &whole[..cut]);
        let mut tail = Tail::new(&dir.path().join(FILE));
        assert_eq!(seqs(&tail.poll()), [0, 1]);
        assert_eq!(tail.damage_count(), 0, "a torn tail is not damage");
        write(dir.path(), 1);
        assert_eq!(seqs(&tail.poll()), [2], "cut {cut}");
        assert_eq!(tail.damage_count(), 0);
        assert_eq!(seqs(&Tail::new(&dir.path().join(FILE)).poll()), [0, 1, 2]);
    }
}

#[test]
fn a_record_that_lacks_only_its_newline_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 2);
    let path = dir.path().join(FILE);
    let length = fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
    assert_eq!(seqs(&Tail::new(&path).poll()), [0]);
    write(dir.path(), 1);
    assert_eq!(seqs(&Tail::new(&path).poll()), [0, 1, 2]);
}

#[test]
fn damage_in_the_middle_is_skipped_counted_and_located() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    write(dir.path(), 1);
    let first = fs::metadata(&path).unwrap().len();
    let mut nul_block = vec![0; 4096];
    nul_block.push(b'\n');
    for junk in [&b"garbage\n"[..], b"{\"schema_version\":1}\n", b"\xff\xfe\n", &nul_block] {
        add(dir.path(), junk);
    }
    add(dir.path(), b"\r\n\n");
    add(dir.path(), &[0; 100]);
    add(dir.path(), b"\n");
    write(dir.path(), 2);
    let mut tail = Tail::new(&path);
    assert_eq!(seqs(&tail.poll()), [0, 1, 2]);
    assert_eq!(tail.damage_count(), 5);
    assert_eq!(tail.damaged()[0], Damage { offset: first, bytes: 8 });
    assert!(tail.damage_note().unwrap().starts_with("5 damaged records at byte"));
}

#[test]
fn a_nul_block_without_newline_before_a_record_costs_no_record() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 2);
    let path = dir.path().join(FILE);
    let whole = fs::read(&path).unwrap();
    let middle = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
    let mut broken = whole[..middle].to_vec();
    broken.extend([0; 512]);
    broken.extend(&whole[middle..]);
    fs::write(&path, broken).unwrap();
    let mut tail = Tail::new(&path);
    assert_eq!(seqs(&tail.poll()), [0, 1]);
    assert_eq!(tail.damaged(), [Damage { offset: middle as u64, bytes: 512 }]);
}

#[test]
fn windows_line_ends_and_flipped_digits() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 3);
    let path = dir.path().join(FILE);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace('\n', "\r\n")).unwrap();
    let mut tail = Tail::new(&path);
    assert_eq!(seqs(&tail.poll()), [0, 1, 2]);
    fs::write(&path, text.replacen("\"seq\":1", "\"seq\":7", 1)).unwrap();
    let mut tail = Tail::new(&path);
    assert_eq!(seqs(&tail.poll()), [0, 2], "the checksum finds a changed digit");
    assert_eq!(tail.damage_count(), 1);
}

#[test]
fn long_lines_pass_and_too_long_ones_are_skipped_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let mut log = Log::open(dir.path(), 0).unwrap();
    log.append(Event::Log { level: Level::Info, message: "x".repeat(10 << 20) }).unwrap();
    log.commit().unwrap();
    add(dir.path(), &vec![b'y'; MAX_LINE + CHUNK + 5]);
    add(dir.path(), b"\n");
    write(dir.path(), 1);
    let mut tail = Tail::new(&path);
    let mut all = tail.poll();
    while !tail.is_caught_up() {
        all.extend(tail.poll());
    }
    assert_eq!(seqs(&all), [0, 1]);
    assert_eq!(tail.damage_count(), 1);
    assert_eq!(tail.damaged()[0].bytes, (MAX_LINE + CHUNK + 6) as u64);
}

#[test]
fn truncation_replacement_and_removal_under_the_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let mut tail = Tail::new(&path);
    assert_eq!(tail.poll().len(), 0, "no file yet");
    write(dir.path(), 3);
    assert_eq!(seqs(&tail.poll()), [0, 1, 2]);
    let text = fs::read_to_string(&path).unwrap();
    let first = text.lines().next().unwrap().len() as u64 + 1;
    OpenOptions::new().write(true).open(&path).unwrap().set_len(first).unwrap();
    assert_eq!(tail.poll().len(), 0, "nothing twice");
    let mut log = Log::open(dir.path(), 3).unwrap();
    log.append(line(9)).unwrap();
    log.commit().unwrap();
    assert_eq!(seqs(&tail.poll()), [3], "numbering goes on above what readers saw");
    fs::remove_file(&path).unwrap();
    assert_eq!(tail.poll().len(), 0);
}

#[test]
fn kinds_of_a_later_version_are_not_damage() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1);
    add(dir.path(), b"{\"schema_version\":1,\"seq\":1,\"mono_ms\":1,\"wall_ms\":1,\"kind\":\"sung\"}\n");
    let mut tail = Tail::new(&dir.path().join(FILE));
    assert_eq!(tail.poll().len(), 1);
    assert_eq!((tail.unknown(), tail.damage_count()), (1, 0));
}

#[test]
fn a_batch_is_one_write_and_unfinished_values_are_null() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), 0).unwrap();
    log.append(Event::Metric { name: "loss".into(), step: 1, value: f64::NAN }).unwrap();
    assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().len(), 0, "nothing before the batch ends");
    log.append(Event::Finished).unwrap();
    log.flush().unwrap();
    assert_eq!(log.offset(), fs::metadata(dir.path().join(FILE)).unwrap().len());
    let records = Tail::new(&dir.path().join(FILE)).poll();
    assert!(matches!(&records[0].event, Event::Metric { value, .. } if value.is_nan()));
    assert_eq!(records[1].event, Event::Finished);
}
