//! The character map of SentencePiece normalizers (`precompiled_charsmap`): a double-array trie and
//! the texts that its values point at. Base64 text enters; nothing leaves but the certainty that every
//! walk through the trie stays inside it, which the library that walks does not check.

use crate::error::{Error, Result};

/// Largest map in bytes; real ones have 250 to 400 thousand.
const LARGEST: usize = 8 << 20;
/// Longest text that may stand for a character, in bytes; Unicode's own longest has 33.
const LONGEST: usize = 128;

/// Checks a map.
///
/// # Errors
/// `Invalid` with `field` where it is damaged.
pub(super) fn check(text: &str, field: &str) -> Result<()> {
    let damaged = |what: &str| {
        Error::invalid("TOKENIZER-CHARSMAP", format!("the character map is damaged: {what}")).field(field)
    };
    let bytes = decode(text).ok_or_else(|| damaged("it is no base64 text, or too long"))?;
    let (head, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| damaged("it is too short"))?;
    let length = u32::from_le_bytes(*head) as usize / 4 * 4;
    let (trie, texts) =
        rest.split_at_checked(length).ok_or_else(|| damaged("the trie is longer than the map"))?;
    let texts = std::str::from_utf8(texts).map_err(|_| damaged("its texts are not UTF-8"))?;
    let units: Vec<u32> =
        trie.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
    let outside = || damaged("a path leaves the trie");
    let root = *units.first().ok_or_else(|| damaged("the trie is empty"))?;
    // A walk is at a base; its children are the units at base xor byte whose label is that byte.
    let mut seen = vec![false; units.len()];
    let mut bases = vec![offset(root)];
    while let Some(base) = bases.pop() {
        for byte in 1..=255usize {
            let at = base ^ byte;
            let unit = *units.get(at).ok_or_else(outside)?;
            if unit & 0x8000_00ff != byte as u32 || std::mem::replace(&mut seen[at], true) {
                continue;
            }
            let next = at ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let value = (*units.get(next).ok_or_else(outside)? & 0x7fff_ffff) as usize;
                if !texts.is_char_boundary(value) {
                    return Err(damaged("a value points outside the texts"));
                }
                let text = &texts.as_bytes()[value..];
                if text.iter().take(LONGEST + 1).take_while(|b| **b != 0).count() > LONGEST {
                    return Err(damaged("a character stands for too long a text"));
                }
            }
            bases.push(next);
        }
    }
    Ok(())
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) as usize) << ((unit & (1 << 9)) >> 6)
}

/// Standard base64 with padding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    if text.len() > LARGEST / 3 * 4 || !text.len().is_multiple_of(4) {
        return None;
    }
    let digit = |c: u8| {
        Some(match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        })
    };
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let groups = text.len() / 4;
    for (i, group) in text.chunks_exact(4).enumerate() {
        let padding =
            if i + 1 == groups { group.iter().rev().take_while(|c| **c == b'=').count() } else { 0 };
        if padding > 2 {
            return None;
        }
        let mut value = 0u32;
        for c in &group[..4 - padding] {
            value = value << 6 | u32::from(digit(*c)?);
        }
        value <<= 6 * padding;
        let [_, bytes @ ..] = value.to_be_bytes();
        let kept = 3 - padding;
        if bytes[kept..].iter().any(|b| *b != 0) {
            return None;
        }
        out.extend_from_slice(&bytes[..kept]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut out = String::new();
        for group in bytes.chunks(3) {
            let mut padded = [0u8; 4];
            padded[1..=group.len()].copy_from_slice(group);
            let value = u32::from_be_bytes(padded);
            for i in 0..4 {
                let digit = DIGITS[(value >> (18 - 6 * i)) as usize & 63] as char;
                out.push(if i > group.len() { '=' } else { digit });
            }
        }
        out
    }

    /// A trie of 512 units in which `a` leads to the text at `value`.
    fn map(value: u32, texts: &[u8]) -> Vec<u8> {
        let mut units = vec![0u32; 512];
        units[0] = 256 << 10; // root: base 256
        units[256 ^ 97] = 97 | 1 << 8 | (353 ^ 300) << 10; // base 300, a value there
        units[300] = value | 1 << 31;
        let mut bytes = (units.len() as u32 * 4).to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|u| u.to_le_bytes()));
        bytes.extend(texts);
        bytes
    }

    #[test]
    fn a_sound_map_passes_and_damage_is_found() {
        check(&encode(&map(3, b"xx\0bc\0")), "f").unwrap();
        let bad = |bytes: &[u8]| check(&encode(bytes), "f").unwrap_err().to_string();
        assert!(bad(&map(300, b"xx\0bc\0")).contains("outside the texts"));
        assert!(bad(&map(1, "é\0".as_bytes())).contains("outside the texts"));
        assert!(bad(&map(0, &[b'x'; 200])).contains("too long a text"));
        assert!(bad(&map(0, b"\xff")).contains("UTF-8"));
        assert!(bad(&map(0, b"")[..100]).contains("longer than the map"));
        assert!(bad(&[4, 0, 0, 0, 0, 0, 0, 255]).contains("leaves the trie"));
        assert!(bad(&[0, 0, 0, 0]).contains("empty"));
        for text in ["abc", "ab=c", "====", "a===", "é", "AB=="] {
            assert!(check(text, "f").is_err(), "{text}");
        }
    }
}
