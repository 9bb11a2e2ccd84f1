//! Reading checkpoints: block encodings bit for bit, and what a file says is what is read.

use std::collections::BTreeSet;
use std::path::Path;
use tinsmith::formats::{self, Limits};
use tinsmith::kernels::blocks::Encoding;

/// The next `n` bytes of `rest`.
fn take<'a>(rest: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (head, tail) = rest.split_at(n);
    *rest = tail;
    head
}

#[test]
fn blocks_are_spelled_out_bit_for_bit_as_the_reference_does() {
    let fixture =
        std::env::var_os("TINSMITH_TEST_BLOCKS").unwrap_or_else(|| "tests/fixtures/gguf_blocks.bin".into());
    let bytes = std::fs::read(Path::new(&fixture)).unwrap();
    let mut rest = &bytes[..];
    let mut seen = BTreeSet::new();
    while !rest.is_empty() {
        let length = usize::from(take(&mut rest, 1)[0]);
        let name = String::from_utf8(take(&mut rest, length).to_vec()).unwrap();
        let number = |rest: &mut &[u8]| u32::from_le_bytes(take(rest, 4).try_into().unwrap()) as usize;
        let (count, elements) = (number(&mut rest), number(&mut rest));
        let encoding = *Encoding::ALL.iter().find(|e| e.name() == name).expect("a known encoding");
        assert_eq!(encoding.elements(), elements, "{name}");
        let blocks = take(&mut rest, count * encoding.bytes());
        let want = take(&mut rest, count * elements * 4);
        let mut out = vec![f32::NAN; count * elements];
        encoding.dequantize(blocks, &mut out);
        for (i, (ours, theirs)) in out.iter().zip(want.chunks_exact(4)).enumerate() {
            let theirs = f32::from_le_bytes(theirs.try_into().unwrap());
            assert_eq!(
                ours.to_bits(),
                theirs.to_bits(),
                "{name}: element {} of block {}: {ours} for {theirs}",
                i % elements,
                i / elements
            );
        }
        seen.insert(name);
    }
    // The package does not spell these out.
    let without = ["Q1_0", "Q2_0", "Q8_K"];
    let all: BTreeSet<String> =
        Encoding::ALL.iter().map(|e| e.name().to_string()).filter(|n| !without.contains(&&**n)).collect();
    assert_eq!(seen, all);
}
