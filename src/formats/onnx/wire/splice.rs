//! The way back: an encoded skeleton enters, the pieces of the complete file leave, in order. Large
//! tensor data is named by its number and never copied, so that a model is written tensor by tensor.

use super::schema::{Kind, Message, may_hold_tensors};
use super::{PAYLOAD_FIELD, put_varint};
use crate::error::{Error, Result};

/// A piece of the file that is to be written.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of the skeleton.
    Skeleton(std::ops::Range<usize>),
    /// Bytes made here: tags and lengths.
    Bytes(Vec<u8>),
    /// All bytes of this payload.
    Payload(u64),
}

/// Fields that hold fixed-width data: `float_data`, `raw_data`, `double_data`.
const DATA_FIELDS: [u32; 3] = [4, 9, 10];

struct Frame {
    message: Message,
    end: usize,
    length_at: usize,
    body: usize,
    grown: u64,
    shrunk: u64,
    /// Where each of [`DATA_FIELDS`] belongs: before the first field with a higher number.
    slots: [Option<usize>; 3],
    markers: Vec<u64>,
}

struct Edit {
    at: usize,
    remove: usize,
    pieces: Vec<Piece>,
}

fn broken() -> Error {
    Error::internal("ONNX-SPLICE", "the encoded skeleton is not a valid message")
}

/// Reads a varint at `at`; returns it with the position behind it.
pub fn varint(bytes: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for i in 0..10 {
        let b = *bytes.get(at)?;
        at += 1;
        value |= u64::from(b & 0x7f).checked_shl(7 * i)?;
        if b < 0x80 {
            return Some((value, at));
        }
    }
    None
}

fn encoded(value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, value);
    out
}

/// Pieces of the file in which every `payload` field of `skeleton` (a ModelProto as prost encodes it)
/// is replaced by the field and number of bytes that `find(number)` gives, and the bytes of it all.
pub fn splice(skeleton: &[u8], find: &dyn Fn(u64) -> Option<(u32, u64)>) -> Result<(Vec<Piece>, u64)> {
    let mut edits = Vec::new();
    let frame = |message, length_at, body, end| Frame {
        message,
        end,
        length_at,
        body,
        grown: 0,
        shrunk: 0,
        slots: [None; 3],
        markers: Vec::new(),
    };
    let mut stack = vec![frame(Message::Model, 0, 0, skeleton.len())];
    let mut at = 0;
    let mut total = skeleton.len() as u64;
    while let Some(top) = stack.last_mut() {
        if at >= top.end {
            let Some(done) = stack.pop() else { break };
            let parent = stack.last_mut();
            close(done, parent, &mut edits, find, &mut total)?;
            continue;
        }
        let start = at;
        let (tag, next) = varint(skeleton, at).ok_or_else(broken)?;
        let number = u32::try_from(tag >> 3).map_err(|_| broken())?;
        if top.message == Message::Tensor && number == PAYLOAD_FIELD {
            let (marker, after) = varint(skeleton, next).ok_or_else(broken)?;
            top.markers.push(marker);
            top.slots.iter_mut().for_each(|s| *s = s.or(Some(start)));
            edits.push(Edit { at: start, remove: after - start, pieces: Vec::new() });
            top.shrunk += (after - start) as u64;
            at = after;
            continue;
        }
        if top.message == Message::Tensor {
            for (slot, field) in top.slots.iter_mut().zip(DATA_FIELDS) {
                if number > field {
                    slot.get_or_insert(start);
                }
            }
        }
        at = match tag & 7 {
            0 => varint(skeleton, next).ok_or_else(broken)?.1,
            1 => next + 8,
            5 => next + 4,
            2 => {
                let (n, body) = varint(skeleton, next).ok_or_else(broken)?;
                let end = usize::try_from(n).ok().and_then(|n| body.checked_add(n)).ok_or_else(broken)?;
                if end > top.end {
                    return Err(broken());
                }
                match top.message.field(number).map(|f| f.kind) {
                    Some(Kind::Message(inner)) if may_hold_tensors(inner) => {
                        stack.push(frame(inner, next, body, end));
                        body
                    }
                    _ => end,
                }
            }
            _ => return Err(broken()),
        };
    }
    edits.sort_by_key(|e: &Edit| (e.at, e.remove));
    let mut pieces = Vec::new();
    let mut done = 0;
    for edit in edits {
        if edit.at > done {
            pieces.push(Piece::Skeleton(done..edit.at));
        }
        pieces.extend(edit.pieces);
        done = edit.at + edit.remove;
    }
    if done < skeleton.len() {
        pieces.push(Piece::Skeleton(done..skeleton.len()));
    }
    Ok((pieces, total))
}

/// Ends a message: puts its payload in place and, where its size changed, a new length before it.
fn close(
    done: Frame,
    parent: Option<&mut Frame>,
    edits: &mut Vec<Edit>,
    find: &dyn Fn(u64) -> Option<(u32, u64)>,
    total: &mut u64,
) -> Result<()> {
    let mut grown = done.grown;
    if let Some(marker) = done.markers.first() {
        let (field, size) = find(*marker).ok_or_else(broken)?;
        let mut head = encoded(u64::from(field) << 3 | 2);
        put_varint(&mut head, size);
        grown = grown.checked_add(size).and_then(|n| n.checked_add(head.len() as u64)).ok_or_else(broken)?;
        let slot = DATA_FIELDS.iter().position(|f| *f == field).and_then(|i| done.slots.get(i));
        let at = slot.copied().flatten().unwrap_or(done.end);
        edits.push(Edit { at, remove: 0, pieces: vec![Piece::Bytes(head), Piece::Payload(*marker)] });
    }
    if grown == 0 && done.shrunk == 0 {
        return Ok(());
    }
    let Some(parent) = parent else {
        *total = total.checked_add(grown).and_then(|n| n.checked_sub(done.shrunk)).ok_or_else(broken)?;
        return Ok(());
    };
    let old = (done.end - done.body) as u64;
    let new = old.checked_add(grown).and_then(|n| n.checked_sub(done.shrunk)).ok_or_else(broken)?;
    let length = encoded(new);
    let width = done.body - done.length_at;
    parent.grown = parent.grown.checked_add(grown + length.len() as u64).ok_or_else(broken)?;
    parent.shrunk += done.shrunk + width as u64;
    edits.push(Edit { at: done.length_at, remove: width, pieces: vec![Piece::Bytes(length)] });
    Ok(())
}
