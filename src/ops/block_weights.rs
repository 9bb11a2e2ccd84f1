//! Weights of few bits in blocks along their last axis, each block with a scale and a zero point, as ONNX
//! Runtime has them: MatMulNBits and GatherBlockQuantized. The weight, or the rows that are looked up, are
//! spelled out and taken in the type of the data.

use super::float::{self, Float};
use super::{Attributes, Dim, Fact, Operator, Spec, Vjp, gather, matmul};
use crate::error::{Error, Result};
use crate::kernels::packed::Bits;
use crate::tensor::{DType, Data, Value};
use rayon::prelude::*;
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec {
        domain: "com.microsoft",
        name: "MatMulNBits",
        opsets: (1, 1),
        dtypes: &[DType::F32, DType::F16, DType::BF16],
        parse: |a, _| BlockProduct::parse(a),
    },
    Spec {
        domain: "com.microsoft",
        name: "GatherBlockQuantized",
        opsets: (1, 1),
        dtypes: &[DType::U8],
        parse: |a, _| BlockGather::parse(a),
    },
];

/// How the elements of a weight lie.
#[derive(Debug, Clone, Copy)]
struct Grid {
    bits: Bits,
    block: usize,
}

/// What a weight is made of: `(levels - zeros) * scales`, the latter two one a block.
struct Parts {
    levels: Vec<u8>,
    scales: Vec<f64>,
    zeros: Vec<f64>,
}

fn size(a: &Attributes, name: &str, default: i64) -> Result<usize> {
    let found = a.int(name, default)?;
    usize::try_from(found).ok().filter(|n| *n > 0 && *n <= 1 << 30).ok_or_else(|| {
        Error::invalid("OP-ATTRIBUTE", "a size is missing or no count").field(name).found(found)
    })
}

fn sized(slot: usize, found: usize, wanted: usize) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::invalid("OP-SHAPE", "a part of a weight in blocks has another size than the weight asks for")
        .field(format!("input[{slot}]"))
        .found(found)
        .limit(wanted))
}

impl Grid {
    fn parse(a: &Attributes, block: i64) -> Result<Grid> {
        let bits = a.int("bits", 4)?;
        let bits = Bits::of(bits).ok_or_else(|| {
            Error::unsupported("OP-BITS", "a weight of so many bits is not supported")
                .field("bits")
                .found(bits)
                .limit("2, 4 or 8")
        })?;
        let block = size(a, "block_size", block)?;
        if !block.is_power_of_two() || block < 16 {
            return Err(Error::invalid("OP-ATTRIBUTE", "a block is a power of two from 16 on")
                .field("block_size")
                .found(block));
        }
        Ok(Grid { bits, block })
    }

    /// Blocks of a row.
    fn blocks(self, k: usize) -> usize {
        k.div_ceil(self.block)
    }

    /// The block of an element of a weight with rows of `k`.
    fn at(self, i: usize, k: usize) -> usize {
        i / k * self.blocks(k) + i % k / self.block
    }

    /// The parts of `rows` of a weight `[n, k]`, whose levels, scales and zero points are in the `slots`.
    /// Bytes of a row hold `across` elements, those behind `k` none of the weight.
    fn parts(
        self,
        inputs: &[Option<&Value>],
        slots: [usize; 3],
        (n, k, across): (usize, usize, usize),
        rows: &[usize],
    ) -> Result<Parts> {
        let blocks = self.blocks(k);
        let packed = super::input(inputs, slots[0])?.host()?.data()?;
        let Data::U8(packed) = &*packed else {
            return Err(Error::invalid("OP-TYPE", "a weight in blocks is of bytes")
                .field(format!("input[{}]", slots[0])));
        };
        let bytes = self.bits.bytes(across);
        sized(slots[0], packed.len(), n * bytes)?;
        let scales = super::input(inputs, slots[1])?.to_tensor()?.to_f64s()?;
        sized(slots[1], scales.len(), n * blocks)?;
        let zeros = self.zeros(inputs, slots[2], n, blocks)?;
        let mut levels = vec![0u8; rows.len() * k];
        levels.par_chunks_mut(k.max(1)).zip(rows).for_each(|(levels, row)| {
            self.bits.unpack(&packed[row * bytes..][..bytes], levels);
        });
        let of_rows = |all: &[f64]| -> Vec<f64> {
            rows.iter().flat_map(|row| all[row * blocks..][..blocks].iter().copied()).collect()
        };
        let zeros = match zeros {
            Some(zeros) => of_rows(&zeros),
            None => vec![self.bits.middle().into(); rows.len() * blocks],
        };
        Ok(Parts { levels, scales: of_rows(&scales), zeros })
    }

    /// One zero point a block, if there are any.
    fn zeros(
        self,
        inputs: &[Option<&Value>],
        slot: usize,
        n: usize,
        blocks: usize,
    ) -> Result<Option<Vec<f64>>> {
        let Some(zeros) = inputs.get(slot).copied().flatten() else { return Ok(None) };
        if let Value::Float(_) = zeros {
            let zeros = zeros.to_tensor()?.to_f64s()?;
            sized(slot, zeros.len(), n * blocks)?;
            return Ok(Some(zeros));
        }
        let data = zeros.host()?.data()?;
        let Data::U8(packed) = &*data else {
            return Err(Error::invalid("OP-TYPE", "zero points are of bytes or of the data's type")
                .field(format!("input[{slot}]")));
        };
        let row = self.bits.bytes(blocks);
        sized(slot, packed.len(), n * row)?;
        let mut levels = vec![0u8; row * self.bits.per_byte()];
        let mut out = Vec::with_capacity(n * blocks);
        for packed in packed.chunks_exact(row) {
            self.bits.unpack(packed, &mut levels);
            out.extend(levels[..blocks].iter().map(|q| f64::from(*q)));
        }
        Ok(Some(out))
    }

    /// The elements `[rows, k]`.
    fn spelled(self, parts: &Parts, k: usize, dtype: candle_core::DType) -> Result<Float> {
        let Parts { levels, scales, zeros } = parts;
        let one = |(i, q): (usize, &u8)| (f64::from(*q) - zeros[self.at(i, k)]) * scales[self.at(i, k)];
        let (all, shape) = (levels.par_iter().enumerate(), [levels.len() / k.max(1), k]);
        match dtype {
            candle_core::DType::F64 => float::tensor(all.map(one).collect::<Vec<f64>>(), &shape, dtype),
            _ => float::tensor(all.map(|p| one(p) as f32).collect::<Vec<f32>>(), &shape, dtype),
        }
    }
}

/// Puts the gradients of scales and zero points in place, where they are asked for.
fn of_grid(v: &Vjp<'_>, sums: [Vec<f64>; 2], out: &mut [Option<Float>]) -> Result<()> {
    for (slot, sums) in [2, 3].into_iter().zip(sums).filter(|(slot, _)| v.needs.get(*slot) == Some(&true)) {
        let like = super::input(v.inputs, slot)?.float()?;
        out[slot] = Some(float::tensor(sums, like.dims(), like.dtype())?);
    }
    Ok(())
}

/// Inputs: data `[.., k]`; weight `[n, blocks, bytes of a block]`, the first element in the lowest bits; scales
/// `[n * blocks]`; optionally zero points, packed like the weight with each row of its own bytes, or of the
/// data's type and one a block; an order of groups (not supported); a bias `[n]`. Output `[.., n]`.
#[derive(Debug)]
struct BlockProduct {
    k: usize,
    n: usize,
    grid: Grid,
}

impl BlockProduct {
    fn parse(a: &Attributes) -> Result<Arc<dyn Operator>> {
        Ok(Arc::new(BlockProduct { k: size(a, "K", 0)?, n: size(a, "N", 0)?, grid: Grid::parse(a, 0)? }))
    }

    fn parts(&self, inputs: &[Option<&Value>]) -> Result<Parts> {
        let across = self.grid.blocks(self.k) * self.grid.block;
        let rows: Vec<usize> = (0..self.n).collect();
        self.grid.parts(inputs, [1, 2, 3], (self.n, self.k, across), &rows)
    }

    /// The weight `[n, k]` in the type of the data.
    fn weight(&self, inputs: &[Option<&Value>]) -> Result<Float> {
        let dtype = super::input(inputs, 0)?.float()?.dtype();
        self.grid.spelled(&self.parts(inputs)?, self.k, dtype)
    }
}

impl Operator for BlockProduct {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let a = super::input(inputs, 0)?;
        if inputs.get(4).copied().flatten().is_some() {
            return Err(Error::unsupported(
                "OP-ORDER",
                "MatMulNBits with an order of groups is not supported",
            )
            .field("input[4]"));
        }
        let Some(shape) = &a.shape else { return Ok(vec![Fact::unranked(a.dtype)]) };
        let Some((last, outer)) = shape.split_last() else {
            return Err(Error::invalid("OP-SHAPE", "a product of a scalar").field("input[0]"));
        };
        if last.known().is_some_and(|k| k != self.k as i64) {
            return Err(Error::invalid("OP-SHAPE", "the data's last axis is not K")
                .field("input[0]")
                .found(last)
                .limit(self.k));
        }
        let shape = outer.iter().cloned().chain([Dim::from(self.n as i64)]).collect();
        Ok(vec![Fact::new(a.dtype, shape)])
    }

    fn macs(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Option<Dim> {
        matmul::product_macs(*inputs.first()?, outputs.first()?)
    }

    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let x = super::input(inputs, 0)?.float()?;
        let flat = x.reshape((x.elem_count() / self.k, self.k))?;
        let y = matmul::matmul(&flat, &self.weight(inputs)?.t()?)?;
        let y = match inputs.get(5).copied().flatten() {
            Some(bias) => y.broadcast_add(bias.float()?)?,
            None => y,
        };
        Ok(vec![y.reshape(shape)?.into()])
    }

    fn differentiable(&self) -> bool {
        true
    }

    /// Towards data, scales, zero points that are floats, and bias; levels are fixed.
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; v.inputs.len()];
        let Some(dy) = v.grads.first().cloned().flatten() else { return Ok(out) };
        let needs = |slot: usize| v.needs.get(slot) == Some(&true);
        let x = super::input(v.inputs, 0)?.float()?;
        let dy = dy.reshape((dy.elem_count() / self.n, self.n))?;
        if needs(0) {
            out[0] = Some(matmul::matmul(&dy, &self.weight(v.inputs)?)?.reshape(x.shape())?);
        }
        if needs(2) || needs(3) {
            let x = x.reshape((x.elem_count() / self.k, self.k))?;
            let dw = matmul::matmul(&dy.t()?, &x)?.to_dtype(candle_core::DType::F64)?;
            let dw = dw.flatten_all()?.to_vec1::<f64>()?;
            let Parts { levels, scales, zeros } = self.parts(v.inputs)?;
            let mut sums = [vec![0f64; scales.len()], vec![0f64; scales.len()]];
            for (i, (dw, q)) in dw.iter().zip(&levels).enumerate() {
                let at = self.grid.at(i, self.k);
                sums[0][at] += dw * (f64::from(*q) - zeros[at]);
                sums[1][at] -= dw * scales[at];
            }
            of_grid(v, sums, &mut out)?;
        }
        if needs(5) {
            out[5] = Some(dy.sum(0)?);
        }
        Ok(out)
    }
}

/// Rows of a table `[n, bytes of a row]` whose elements lie in blocks along the row; inputs: table, indices,
/// scales `[n, blocks]`, zero points `[n, bytes]`. Output: the indices' axes and a row, in the type of the
/// scales.
#[derive(Debug)]
struct BlockGather {
    grid: Grid,
}

impl BlockGather {
    fn parse(a: &Attributes) -> Result<Arc<dyn Operator>> {
        for (name, default, only) in [("gather_axis", 0, 0), ("quantize_axis", 1, 1)] {
            let found = a.int(name, default)?;
            if found != only {
                return Err(Error::unsupported(
                    "OP-AXIS",
                    "GatherBlockQuantized along other axes is not supported",
                )
                .field(name)
                .found(found)
                .limit(only));
            }
        }
        Ok(Arc::new(BlockGather { grid: Grid::parse(a, 128)? }))
    }

    /// The rows that are looked up, their parts, and rows and columns of the table.
    fn rows(&self, inputs: &[Option<&Value>]) -> Result<(Vec<usize>, Parts, usize, usize)> {
        let table = super::input(inputs, 0)?.shape();
        let &[n, bytes] = table else {
            return Err(Error::unsupported("OP-SHAPE", "a table in blocks is a matrix").field("input[0]"));
        };
        let k = bytes * self.grid.bits.per_byte();
        let at = super::input(inputs, 1)?.ints()?;
        let rows = at.iter().map(|i| gather::wrapped(*i, n)).collect::<Result<Vec<_>>>()?;
        let parts = self.grid.parts(inputs, [0, 2, 3], (n, k, k), &rows)?;
        Ok((rows, parts, n, k))
    }
}

impl Operator for BlockGather {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (table, at, scales) =
            (super::input(inputs, 0)?, super::input(inputs, 1)?, super::input(inputs, 2)?);
        let (Some(table), Some(at)) = (&table.shape, &at.shape) else {
            return Ok(vec![Fact::unranked(scales.dtype)]);
        };
        let [_, bytes] = table.as_slice() else {
            return Err(Error::unsupported("OP-SHAPE", "a table in blocks is a matrix").field("input[0]"));
        };
        let per_byte = Dim::from(self.grid.bits.per_byte() as i64);
        let shape = at.iter().cloned().chain([bytes.clone() * per_byte]).collect();
        Ok(vec![Fact::new(scales.dtype, shape)])
    }

    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let (_, parts, _, k) = self.rows(inputs)?;
        let dtype = super::input(inputs, 2)?.float()?.dtype();
        Ok(vec![self.grid.spelled(&parts, k, dtype)?.reshape(shape)?.into()])
    }

    fn differentiable(&self) -> bool {
        true
    }

    /// Towards scales, and zero points that are floats; levels are fixed.
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; v.inputs.len()];
        let Some(dy) = v.grads.first().cloned().flatten() else { return Ok(out) };
        let (rows, parts, n, k) = self.rows(v.inputs)?;
        let dy = dy.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
        let blocks = self.grid.blocks(k);
        let mut sums = [vec![0f64; n * blocks], vec![0f64; n * blocks]];
        for (i, (dy, q)) in dy.iter().zip(&parts.levels).enumerate() {
            let (from, to) = (self.grid.at(i, k), rows[i / k] * blocks + i % k / self.grid.block);
            sums[0][to] += dy * (f64::from(*q) - parts.zeros[from]);
            sums[1][to] -= dy * parts.scales[from];
        }
        of_grid(v, sums, &mut out)?;
        Ok(out)
    }
}
