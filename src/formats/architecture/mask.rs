//! Attention masks and positions from `attention_mask`. Booleans, true where a query may look. Every layer
//! of a kind shares one mask; passes recognise them by the names that are given here.

use super::net::Net;
use crate::error::Result;
use crate::graph::ValueId;
use crate::ops::{Attr, Attributes};
use crate::tensor::DType;

/// Name of the causal mask, `[batch, 1, seq, total]`.
pub const CAUSAL: &str = "mask.causal";
/// Name of a causal mask of this width, without the width.
pub const WINDOW: &str = "mask.window.";
/// Name of the mask of an encoder, `[batch, 1, 1, seq]`.
pub const PADDING: &str = "mask.padding";
/// Name of the positions, `[batch, seq]`.
pub const POSITIONS: &str = "position_ids";

/// Values that the layers of a decoder share.
pub(super) struct Causal {
    /// Positions of the new tokens, `[batch, seq]`.
    pub(super) positions: ValueId,
    keys: ValueId,
    queries: ValueId,
    causal: ValueId,
    padding: ValueId,
}

fn boolean(net: &mut Net<'_>, x: ValueId, name: &str) -> ValueId {
    let to = Attributes::new().with("to", Attr::Int(i64::from(DType::Bool.onnx())));
    net.op_with("Cast", &[x], to, name)
}

/// What causal masks are made of: `seq` new tokens behind `past` old ones, of which `attention_mask`
/// `[batch, past + seq]` says whether they are real. Positions count real tokens.
pub(super) fn causal(net: &mut Net<'_>, ids: ValueId, attention_mask: ValueId) -> Result<Causal> {
    // Not by the length of a cache, which may lie in a longer buffer.
    let seq = net.size_of(ids, 1, "sizes.seq");
    let total = net.size_of(attention_mask, 1, "sizes.total");
    let past = net.op("Sub", &[total, seq], "sizes.past");
    let (zero, one) = (net.int(0), net.int(1));
    let keys = net.op("Range", &[zero, total, one], "mask.key_range");
    let queries = net.op("Range", &[past, total, one], "mask.query_range");
    let (axis0, axis1, axes12) = (net.ints(&[0])?, net.ints(&[1])?, net.ints(&[1, 2])?);
    let keys = net.op("Unsqueeze", &[keys, axis0], "mask.keys");
    let queries = net.op("Unsqueeze", &[queries, axis1], "mask.queries");
    let causal = net.op("LessOrEqual", &[keys, queries], "mask.order");
    let real = boolean(net, attention_mask, "mask.real");
    let padding = net.op("Unsqueeze", &[real, axes12], "mask.real_keys");
    let counted = net.op("CumSum", &[attention_mask, one], "positions.counted");
    let from_zero = net.op("Sub", &[counted, one], "positions.from_zero");
    let clipped = net.op("Max", &[from_zero, zero], "positions.all");
    let starts = net.op("Unsqueeze", &[past, axis0], "positions.start");
    let ends = net.op("Unsqueeze", &[total, axis0], "positions.end");
    let positions = net.op("Slice", &[clipped, starts, ends, axis1], POSITIONS);
    Ok(Causal { positions, keys, queries, causal, padding })
}

impl Causal {
    /// The causal mask.
    pub(super) fn full(&self, net: &mut Net<'_>) -> ValueId {
        net.op("And", &[self.causal, self.padding], CAUSAL)
    }

    /// The causal mask of the last `width` tokens.
    pub(super) fn window(&self, net: &mut Net<'_>, width: usize) -> ValueId {
        let width_value = net.int(width as i64);
        let name = format!("{WINDOW}{width}");
        let oldest = net.op("Sub", &[self.queries, width_value], &format!("{name}.oldest"));
        let near = net.op("Greater", &[self.keys, oldest], &format!("{name}.near"));
        let order = net.op("And", &[self.causal, near], &format!("{name}.order"));
        net.op("And", &[order, self.padding], &name)
    }
}

/// The mask of an encoder.
pub(super) fn padding(net: &mut Net<'_>, attention_mask: ValueId) -> Result<ValueId> {
    let real = boolean(net, attention_mask, "mask.real");
    let axes = net.ints(&[1, 2])?;
    Ok(net.op("Unsqueeze", &[real, axes], PADDING))
}
