//! Metadata values of GGUF: the bytes of one value enter, a fact leaves.

use super::cursor::Cursor;
use crate::error::{Error, Result};
use crate::formats::limits::too_many;
use crate::formats::metadata::Fact;
use std::fmt::Write as _;

/// Nested arrays.
const DEPTH: usize = 8;
/// Characters of a nested array that are shown.
const SHOWN: usize = 240;

const ARRAY: u32 = 9;
const STRING: u32 = 8;

/// Bytes of one value of a type, at least; `None` for types that do not exist.
fn width(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        STRING => 8,
        ARRAY => 12,
        10..=12 => 8,
        _ => return None,
    })
}

/// Name of a value type, as the format has it.
pub(super) fn kind_name(kind: u32) -> &'static str {
    const NAMES: [&str; 13] = [
        "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array",
        "uint64", "int64", "float64",
    ];
    usize::try_from(kind).ok().and_then(|k| NAMES.get(k)).copied().unwrap_or("unknown")
}

fn unknown(kind: u32, at: u64) -> Error {
    Error::invalid("GGUF-VALUE", "a metadata value has an unknown type")
        .offset(at)
        .found(kind)
        .limit("0 to 12")
        .hint("the file is damaged or of a newer version: download it again")
}

/// The value of `kind`. A text that is not UTF-8 is escaped and noted in `warnings`.
pub(super) fn read(cursor: &mut Cursor<'_>, kind: u32, warnings: &mut Vec<String>) -> Result<Fact> {
    cursor.charge(64)?;
    if kind == ARRAY {
        return array(cursor, warnings);
    }
    scalar(cursor, kind, warnings)
}

fn scalar(cursor: &mut Cursor<'_>, kind: u32, warnings: &mut Vec<String>) -> Result<Fact> {
    Ok(match kind {
        0 => Fact::Int(cursor.u8()?.into()),
        1 => Fact::Int(cursor.i8()?.into()),
        2 => Fact::Int(cursor.u16()?.into()),
        3 => Fact::Int(cursor.i16()?.into()),
        4 => Fact::Int(cursor.u32()?.into()),
        5 => Fact::Int(cursor.i32()?.into()),
        6 => Fact::Float(cursor.f32()?.into()),
        7 => Fact::Bool(boolean(cursor)?),
        STRING => Fact::Text(text(cursor, warnings)?),
        10 => Fact::Int(cursor.u64()?.into()),
        11 => Fact::Int(cursor.i64()?.into()),
        12 => Fact::Float(cursor.f64()?),
        _ => return Err(unknown(kind, cursor.at())),
    })
}

fn boolean(cursor: &mut Cursor<'_>) -> Result<bool> {
    let at = cursor.at();
    match cursor.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Error::invalid("GGUF-VALUE", "a boolean must be 0 or 1").offset(at).found(other)),
    }
}

fn text(cursor: &mut Cursor<'_>, warnings: &mut Vec<String>) -> Result<String> {
    let (at, limit) = (cursor.at(), cursor.limits().text_bytes);
    let bytes = cursor.string("a metadata value", "text_bytes", limit)?;
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Ok(text.to_string());
    }
    let mut shown = String::new();
    for chunk in bytes.utf8_chunks() {
        shown.push_str(chunk.valid());
        for b in chunk.invalid() {
            let _ = write!(shown, "\\x{b:02x}");
        }
    }
    if warnings.len() < 100 {
        warnings.push(format!("the metadata text at byte {at} is not UTF-8; the bytes are shown escaped"));
    }
    Ok(shown)
}

/// Type and count of an array, checked against the file and the limits.
fn head(cursor: &mut Cursor<'_>) -> Result<(u32, u64)> {
    let at = cursor.at();
    let kind = cursor.u32()?;
    let count = cursor.u64()?;
    let width = width(kind).ok_or_else(|| unknown(kind, at))?;
    cursor.room(&format!("the array of {}, count", kind_name(kind)), count, width)?;
    let limit = cursor.limits().items;
    if count > limit {
        return Err(too_many("items", "elements of a metadata array", limit).offset(at).found(count));
    }
    cursor.charge(count.saturating_mul(if kind == STRING { 24 } else { 8 }))?;
    Ok((kind, count))
}

fn array(cursor: &mut Cursor<'_>, warnings: &mut Vec<String>) -> Result<Fact> {
    let (kind, count) = head(cursor)?;
    macro_rules! ints {
        ($read:ident) => {{
            let (mut ints, mut beyond) = (Vec::new(), 0u64);
            for _ in 0..count {
                match i64::try_from(cursor.$read()?) {
                    Ok(n) => ints.push(n),
                    Err(_) => beyond += 1,
                }
            }
            match beyond {
                0 => Fact::Ints(ints),
                _ => Fact::Other(format!("{count} integers, {beyond} of them beyond 64 signed bits")),
            }
        }};
    }
    Ok(match kind {
        0 => ints!(u8),
        1 => ints!(i8),
        2 => ints!(u16),
        3 => ints!(i16),
        4 => ints!(u32),
        5 => ints!(i32),
        10 => ints!(u64),
        11 => ints!(i64),
        6 => Fact::Floats((0..count).map(|_| cursor.f32()).collect::<Result<_>>()?),
        12 => Fact::Floats((0..count).map(|_| Ok(cursor.f64()? as f32)).collect::<Result<_>>()?),
        7 => Fact::Bools((0..count).map(|_| boolean(cursor)).collect::<Result<_>>()?),
        STRING => {
            let mut texts = Vec::new();
            for i in 0..count {
                texts.push(text(cursor, warnings).map_err(|e| e.field(format!("[{i}]")))?);
            }
            Fact::Texts(texts)
        }
        _ => nested(cursor, count, warnings)?,
    })
}

/// An array of arrays, read with a stack of how many elements each level still has.
fn nested(cursor: &mut Cursor<'_>, count: u64, warnings: &mut Vec<String>) -> Result<Fact> {
    let mut shown = String::from("[");
    let mut levels = vec![(ARRAY, count, true)];
    let mut items = 0u64;
    while let Some((kind, left, first)) = levels.last_mut() {
        let kind = *kind;
        if *left == 0 {
            levels.pop();
            show(&mut shown, "]");
            continue;
        }
        *left -= 1;
        if !std::mem::replace(first, false) {
            show(&mut shown, ", ");
        }
        items += 1;
        if items > cursor.limits().items {
            return Err(too_many("items", "elements of a metadata array", cursor.limits().items));
        }
        if kind == ARRAY {
            if levels.len() >= DEPTH {
                return Err(Error::limit_exceeded("GGUF-DEPTH", "metadata arrays are nested too deeply")
                    .offset(cursor.at())
                    .found(format!("more than {DEPTH} levels"))
                    .limit(DEPTH));
            }
            let (kind, count) = head(cursor)?;
            levels.push((kind, count, true));
            show(&mut shown, "[");
        } else {
            let element = match scalar(cursor, kind, warnings)? {
                Fact::Int(n) => n.to_string(),
                Fact::Float(x) => x.to_string(),
                Fact::Bool(b) => b.to_string(),
                Fact::Text(t) => format!("{t:?}"),
                _ => String::new(),
            };
            show(&mut shown, &element);
        }
    }
    Ok(Fact::Other(shown))
}

fn show(shown: &mut String, text: &str) {
    let room = SHOWN.saturating_sub(shown.chars().count());
    if room > 0 {
        shown.extend(text.chars().take(room));
        if shown.chars().count() >= SHOWN {
            shown.push('…');
        }
    }
}
