//! The walk over ONNX' wire format: untrusted bytes enter; the skeleton (the same message without its
//! large tensor fields, for prost to decode) and the places of those fields leave. One loop with a stack
//! of its own, every length checked against its enclosing message before anything is allocated. Knows
//! field numbers and encodings, no meaning.

mod schema;
mod splice;

pub(super) use splice::{Piece, splice};

use crate::error::{Error, Result};
use crate::formats::limits::{Limits, too_large, too_many};
use bytes::Bytes;
use schema::{Kind, Message};
use std::collections::BTreeMap;

/// Tensor fields of at least this many bytes stay in the file.
pub const LARGE: u64 = 4096;
/// Number of `TensorProto.payload`, which carries the number of a payload inside a skeleton.
pub const PAYLOAD_FIELD: u32 = 536_870_911;
const CHUNK: usize = 256 << 10;
/// A length that is patched afterwards takes five bytes, as a padded varint.
const LENGTH: usize = 5;

/// A large field that stayed in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// Field number in TensorProto: 9 is `raw_data`, 4, 5, 7, 10, 11 are packed typed data.
    pub field: u32,
    /// Position of the first byte of content.
    pub offset: u64,
    /// Bytes of content.
    pub len: u64,
}

/// Result of [`walk`].
#[derive(Debug)]
pub struct Walk {
    /// The message for `ModelProto::decode`.
    pub skeleton: Bytes,
    /// Large fields, numbered as `TensorProto.payload` has them.
    pub payloads: Vec<Payload>,
    /// Fields that the checked-in types do not have, such as `NodeProto field 99`, with how often.
    pub unknown: Vec<(String, u64)>,
}

/// Reads `out.len()` bytes at an offset.
pub type ReadAt<'a> = &'a dyn Fn(u64, &mut [u8]) -> Result<()>;

struct Frame {
    message: Message,
    end: u64,
    /// Where the padded length stands in the skeleton; the first frame has none.
    length_at: Option<usize>,
    name: &'static str,
    index: Option<u32>,
    /// Occurrences by field number.
    counts: [u32; 27],
}

/// Walks a ModelProto of `len` bytes.
///
/// # Errors
/// `Invalid` with byte offset and field path for what is no protobuf or not ONNX' field encoding;
/// `Limit` where a budget does not suffice; what `read` returns.
pub fn walk(len: u64, read: ReadAt<'_>, limits: &Limits) -> Result<Walk> {
    Walker {
        input: Input { read, len, at: 0, chunk: Vec::new(), chunk_at: 0, ahead: LARGE as usize },
        limits,
        out: Vec::new(),
        payloads: Vec::new(),
        unknown: BTreeMap::new(),
        stack: vec![Frame {
            message: Message::Model,
            end: len,
            length_at: None,
            name: "",
            index: None,
            counts: [0; 27],
        }],
        nodes: 0,
        tensors: 0,
        items: 0,
        memory: 0,
    }
    .run()
}

struct Input<'a> {
    read: ReadAt<'a>,
    len: u64,
    at: u64,
    chunk: Vec<u8>,
    chunk_at: u64,
    ahead: usize,
}

impl Input<'_> {
    /// Up to `want` buffered bytes at the position; fills the buffer where it is used up.
    fn peek(&mut self, want: usize) -> Result<&[u8]> {
        let inside = self.at.checked_sub(self.chunk_at).and_then(|n| usize::try_from(n).ok());
        let from = match inside {
            Some(n) if n < self.chunk.len() => n,
            _ => {
                // Small reads after a jump over a payload, growing while reading goes straight on.
                let straight = self.chunk_at + self.chunk.len() as u64 == self.at;
                self.ahead = if straight { (self.ahead * 2).min(CHUNK) } else { LARGE as usize };
                let n = (self.len.saturating_sub(self.at)).min(self.ahead as u64) as usize;
                self.chunk.resize(n, 0);
                (self.read)(self.at, &mut self.chunk)?;
                self.chunk_at = self.at;
                0
            }
        };
        let to = from.saturating_add(want).min(self.chunk.len());
        Ok(self.chunk.get(from..to).unwrap_or_default())
    }

    fn byte(&mut self) -> Result<u8> {
        let byte = self.peek(1)?.first().copied();
        self.at += 1;
        byte.ok_or_else(|| Error::invalid("ONNX-TRUNCATED", "the file ends too early").offset(self.at))
    }
}

struct Walker<'a> {
    input: Input<'a>,
    limits: &'a Limits,
    out: Vec<u8>,
    payloads: Vec<Payload>,
    unknown: BTreeMap<(Message, u32), u64>,
    stack: Vec<Frame>,
    nodes: u64,
    tensors: u64,
    items: u64,
    memory: u64,
}

impl Walker<'_> {
    fn run(mut self) -> Result<Walk> {
        while let Some(frame) = self.stack.last() {
            let (message, end) = (frame.message, frame.end);
            if self.input.at >= end {
                self.leave();
                continue;
            }
            self.field(message, end).map_err(|e| e.field(self.path()))?;
        }
        let unknown = self.unknown;
        Ok(Walk {
            skeleton: self.out.into(),
            payloads: self.payloads,
            unknown: unknown
                .into_iter()
                .map(|((m, number), n)| (format!("{} field {number}", m.name()), n))
                .collect(),
        })
    }

    /// `graph.node[3].attribute[0]`, from the stack.
    fn path(&self) -> String {
        let mut path = String::new();
        for frame in self.stack.iter().skip(1) {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(frame.name);
            if let Some(i) = frame.index {
                path.push_str(&format!("[{i}]"));
            }
        }
        path
    }

    fn path_to(&self, name: &str) -> String {
        let path = self.path();
        if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
    }

    fn leave(&mut self) {
        let Some(frame) = self.stack.pop() else { return };
        let Some(at) = frame.length_at else { return };
        let mut n = self.out.len() - at - LENGTH;
        for (i, slot) in self.out.iter_mut().skip(at).take(LENGTH).enumerate() {
            *slot = (n & 0x7f) as u8 | if i + 1 < LENGTH { 0x80 } else { 0 };
            n >>= 7;
        }
    }

    fn varint(&mut self, end: u64, what: &str) -> Result<u64> {
        let start = self.input.at;
        let mut value = 0u64;
        for i in 0..10 {
            if self.input.at >= end {
                return Err(Error::invalid("ONNX-VARINT", format!("{what} is cut off")).offset(start));
            }
            let b = self.input.byte()?;
            if i == 9 && b > 1 {
                break;
            }
            value |= u64::from(b & 0x7f) << (7 * i);
            if b < 0x80 {
                return Ok(value);
            }
        }
        Err(Error::invalid("ONNX-VARINT", format!("{what} is longer than a 64-bit number")).offset(start))
    }

    fn spend(&mut self, bytes: u64) -> Result<()> {
        self.memory = self.memory.saturating_add(bytes);
        if self.memory > self.limits.memory_bytes {
            return Err(too_large(
                "memory_bytes",
                "memory for the decoded structure",
                self.memory,
                self.limits.memory_bytes,
            ));
        }
        Ok(())
    }

    fn count_items(&mut self, n: u64) -> Result<()> {
        self.items = self.items.saturating_add(n);
        if self.items > self.limits.items {
            return Err(too_many("items", "names, strings and integers", self.limits.items));
        }
        Ok(())
    }

    fn room(&self, more: u64) -> Result<()> {
        let total = (self.out.len() as u64).saturating_add(more);
        if total > self.limits.structure_bytes {
            return Err(too_large(
                "structure_bytes",
                "the model's structure",
                total,
                self.limits.structure_bytes,
            ));
        }
        Ok(())
    }

    /// Reads one field of `message`, up to entering a nested message.
    fn field(&mut self, message: Message, end: u64) -> Result<()> {
        let at = self.input.at;
        let tag = self.varint(end, "a field tag")?;
        let (number, wire) = (tag >> 3, (tag & 7) as u8);
        if number == 0 || number > u64::from(PAYLOAD_FIELD) {
            return Err(Error::invalid("ONNX-FIELD", "field numbers go from 1 to 536870911")
                .offset(at)
                .found(number)
                .hint("this is not an ONNX file, or it is damaged: download or export it again"));
        }
        if wire == 3 || wire == 4 {
            return Err(Error::invalid("ONNX-GROUP", format!("{} has no groups", message.name()))
                .offset(at)
                .found(format!("field {number}, wire type {wire}"))
                .hint("this is not an ONNX file, or it is damaged: download or export it again"));
        }
        if wire > 5 {
            return Err(Error::invalid("ONNX-WIRE", "wire types go from 0 to 5").offset(at).found(wire));
        }
        let number = number as u32;
        let Some(field) = message.field(number) else {
            *self.unknown.entry((message, number)).or_default() += 1;
            return self.skip(wire, end, &format!("field {number}"));
        };
        let fits = match field.kind {
            Kind::Int => wire == 0,
            Kind::Ints => wire == 0 || wire == 2,
            Kind::F32 => wire == 5,
            Kind::F32s => wire == 5 || wire == 2,
            Kind::F64s => wire == 1 || wire == 2,
            Kind::Name | Kind::Text | Kind::Bytes | Kind::Message(_) => wire == 2,
        };
        if !fits {
            return Err(Error::invalid("ONNX-WIRE", "the field has a wrong wire type")
                .field(self.path_to(field.name))
                .offset(at)
                .found(format!("wire type {wire}")));
        }
        let seen = match self.stack.last_mut().and_then(|f| f.counts.get_mut(number as usize)) {
            Some(count) => {
                *count = count.saturating_add(1);
                *count
            }
            None => 1,
        };
        if seen > 1 && !field.repeated {
            return Err(Error::invalid("ONNX-TWICE", "the field stands there twice")
                .field(self.path_to(field.name))
                .offset(at)
                .limit("once")
                .hint("readers disagree on which one counts; export the model again"));
        }
        if wire == 2 {
            return self.delimited(message, field, seen, tag, at, end);
        }
        self.room(20)?;
        if field.repeated {
            self.count_items(1)?;
            self.spend(8)?;
        }
        put_varint(&mut self.out, tag);
        match wire {
            0 => {
                let value = self.varint(end, field.name)?;
                put_varint(&mut self.out, value);
                Ok(())
            }
            1 => self.copy(8, end, field.name),
            _ => self.copy(4, end, field.name),
        }
    }

    /// A field with a length: a nested message is entered, large tensor data stays where it is, the
    /// rest is copied.
    fn delimited(
        &mut self,
        message: Message,
        field: &'static schema::Field,
        seen: u32,
        tag: u64,
        at: u64,
        end: u64,
    ) -> Result<()> {
        let len = self.length(end, field.name)?;
        match field.kind {
            Kind::Message(inner) => return self.enter(inner, field, seen, tag, len),
            Kind::F32s | Kind::F64s => {
                let width = if field.kind == Kind::F32s { 4 } else { 8 };
                if !len.is_multiple_of(width) {
                    return Err(Error::invalid("ONNX-PACKED", "packed numbers do not fill their bytes")
                        .field(self.path_to(field.name))
                        .offset(at)
                        .found(format!("{len} bytes"))
                        .limit(format!("a multiple of {width}")));
                }
            }
            Kind::Name if len > self.limits.name_bytes => {
                return Err(too_large("name_bytes", "a name", len, self.limits.name_bytes)
                    .field(self.path_to(field.name))
                    .offset(at));
            }
            Kind::Text if len > self.limits.text_bytes => {
                return Err(too_large("text_bytes", "a text", len, self.limits.text_bytes)
                    .field(self.path_to(field.name))
                    .offset(at));
            }
            _ => {}
        }
        let data_field = message == Message::Tensor && matches!(field.number, 4 | 5 | 7 | 9 | 10 | 11);
        if data_field && len >= LARGE {
            self.room(20)?;
            put_varint(&mut self.out, u64::from(PAYLOAD_FIELD) << 3);
            put_varint(&mut self.out, self.payloads.len() as u64);
            self.payloads.push(Payload { field: field.number, offset: self.input.at, len });
            self.input.at += len;
            return Ok(());
        }
        self.room(len.saturating_add(20))?;
        match field.kind {
            Kind::Ints => {
                self.count_items(len)?;
                self.spend(len.saturating_mul(8))?;
            }
            Kind::F32s | Kind::F64s => self.spend(len)?,
            _ => {
                if field.repeated {
                    self.count_items(1)?;
                }
                self.spend(len.saturating_add(32))?;
            }
        }
        put_varint(&mut self.out, tag);
        put_varint(&mut self.out, len);
        let (start, content_at) = (self.out.len(), self.input.at);
        self.copy(len, end, field.name)?;
        let content = self.out.get(start..).unwrap_or_default();
        match field.kind {
            Kind::Name | Kind::Text => {
                if let Err(e) = std::str::from_utf8(content) {
                    return Err(Error::invalid("ONNX-UTF8", "text is not UTF-8")
                        .field(self.path_to(field.name))
                        .offset(content_at + e.valid_up_to() as u64)
                        .hint("export the model again"));
                }
            }
            Kind::Ints => check_packed(content).map_err(|n| {
                Error::invalid("ONNX-VARINT", "a packed number is cut off or too long")
                    .field(self.path_to(field.name))
                    .offset(content_at + n as u64)
            })?,
            _ => {}
        }
        Ok(())
    }

    fn enter(
        &mut self,
        inner: Message,
        field: &'static schema::Field,
        seen: u32,
        tag: u64,
        len: u64,
    ) -> Result<()> {
        let end = self.input.at + len;
        if self.stack.len() > self.limits.depth {
            return Err(Error::invalid("ONNX-DEPTH", "messages are nested too deeply")
                .offset(self.input.at)
                .found(format!("more than {}", self.limits.depth))
                .limit(self.limits.depth)
                .hint("protobuf readers give up at this depth; flatten the nested subgraphs"));
        }
        match inner {
            Message::Node => {
                self.nodes += 1;
                if self.nodes > self.limits.nodes {
                    return Err(too_many("nodes", "the nodes", self.limits.nodes));
                }
            }
            Message::Tensor => {
                self.tensors += 1;
                if self.tensors > self.limits.tensors {
                    return Err(too_many("tensors", "the tensors", self.limits.tensors));
                }
            }
            _ => {}
        }
        self.spend(inner.decoded_size())?;
        self.room(20)?;
        put_varint(&mut self.out, tag);
        let length_at = self.out.len();
        self.out.extend_from_slice(&[0; LENGTH]);
        self.stack.push(Frame {
            message: inner,
            end,
            length_at: Some(length_at),
            name: field.name,
            index: field.repeated.then(|| seen - 1),
            counts: [0; 27],
        });
        Ok(())
    }

    /// A length that stays inside the enclosing message.
    fn length(&mut self, end: u64, name: &str) -> Result<u64> {
        let at = self.input.at;
        let len = self.varint(end, "a length")?;
        let left = end.saturating_sub(self.input.at);
        if len > left {
            return Err(Error::invalid(
                "ONNX-LENGTH",
                "the field is longer than what is left of its message",
            )
            .field(self.path_to(name))
            .offset(at)
            .found(format!("{len} bytes"))
            .limit(format!("{left} bytes"))
            .hint("the file is cut off or damaged: download or export it again"));
        }
        Ok(len)
    }

    fn copy(&mut self, mut len: u64, end: u64, name: &str) -> Result<()> {
        if len > end.saturating_sub(self.input.at) {
            return Err(Error::invalid("ONNX-TRUNCATED", "the field is cut off")
                .field(self.path_to(name))
                .offset(self.input.at));
        }
        while len > 0 {
            let piece = self.input.peek(usize::try_from(len).unwrap_or(usize::MAX))?;
            let n = piece.len();
            self.out.extend_from_slice(piece);
            if n == 0 {
                return Err(Error::invalid("ONNX-TRUNCATED", "the file ends too early").offset(self.input.at));
            }
            self.input.at += n as u64;
            len -= n as u64;
        }
        Ok(())
    }

    fn skip(&mut self, wire: u8, end: u64, name: &str) -> Result<()> {
        let len = match wire {
            0 => {
                self.varint(end, name)?;
                0
            }
            1 => 8,
            5 => 4,
            _ => self.length(end, name)?,
        };
        if len > end.saturating_sub(self.input.at) {
            return Err(Error::invalid("ONNX-TRUNCATED", "the field is cut off")
                .field(self.path_to(name))
                .offset(self.input.at));
        }
        self.input.at += len;
        Ok(())
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Checks packed varints; the error is where the bad one starts.
fn check_packed(bytes: &[u8]) -> Result<(), usize> {
    let mut start = 0;
    for (i, b) in bytes.iter().enumerate() {
        let n = i - start;
        if n == 9 && *b > 1 {
            return Err(start);
        }
        if *b < 0x80 {
            start = i + 1;
        }
    }
    if start == bytes.len() { Ok(()) } else { Err(start) }
}

/// Decodes packed varints; `None` where they are damaged. `most` bounds how many are accepted.
pub fn unpack(bytes: &[u8], most: usize) -> Option<Vec<u64>> {
    check_packed(bytes).ok()?;
    let count = bytes.iter().filter(|b| **b < 0x80).count();
    if count > most {
        return None;
    }
    let mut out = Vec::with_capacity(count);
    let (mut value, mut shift) = (0u64, 0);
    for b in bytes {
        value |= u64::from(b & 0x7f) << shift;
        if *b < 0x80 {
            out.push(value);
            (value, shift) = (0, 0);
        } else {
            shift += 7;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests;
