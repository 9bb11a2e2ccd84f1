//! One loop compiled for several processors: as the crate is compiled, and for AVX2 where the processor
//! has it. No operation is fused or reordered, so both give the same bits.
#![allow(unsafe_code)]

use rayon::prelude::*;
use std::mem::MaybeUninit;

/// A loop over slices. Implementations mark `run` and everything that it calls `#[inline(always)]`, else
/// the loop is compiled for the oldest processor only.
pub trait Loop {
    /// What it gives.
    type Out;
    /// Runs it.
    fn run(self) -> Self::Out;
}

/// Runs the loop as compiled for the widest vectors that this processor has.
pub fn widest<L: Loop>(work: L) -> L::Out {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn avx2<L: Loop>(work: L) -> L::Out {
            work.run()
        }
        // SAFETY: the processor has AVX2, as was just asked.
        return unsafe { avx2(work) };
    }
    work.run()
}

/// Elements from which work is shared between threads.
pub const PARALLEL: usize = 1 << 15;

/// How an element's loops are compiled: hot types for the widest vectors, others once.
pub trait Lanes: Copy + Send + Sync {
    /// Runs a loop over such elements.
    #[inline(always)]
    fn launch<L: Loop>(work: L) -> L::Out {
        work.run()
    }
}
impl Lanes for f32 {
    #[inline(always)]
    fn launch<L: Loop>(work: L) -> L::Out {
        widest(work)
    }
}
impl Lanes for f64 {}
impl Lanes for i64 {}
impl Lanes for u64 {}
impl Lanes for u8 {}

struct Start<T>(*mut MaybeUninit<T>);
// SAFETY: the pointer is only used for pieces that do not overlap.
unsafe impl<T: Send> Sync for Start<T> {}

/// A vector of `n` elements written in pieces by `fill(first index, piece)`, in parallel where
/// `n * weight` elements are read in all. Pieces are whole multiples of `unit` (but for the last).
///
/// # Safety
/// `fill` must write every element of each piece.
pub(super) unsafe fn filled<T: Copy + Send>(
    n: usize,
    unit: usize,
    weight: usize,
    fill: &(dyn Fn(usize, &mut [MaybeUninit<T>]) + Sync),
) -> Vec<T> {
    let mut out: Vec<T> = Vec::with_capacity(n);
    let spare = &mut out.spare_capacity_mut()[..n];
    let unit = unit.max(1);
    if n.saturating_mul(weight.max(1)) < PARALLEL {
        fill(0, spare);
    } else {
        let size = (PARALLEL / weight.max(1) / unit).max(1).saturating_mul(unit);
        let start = Start(spare.as_mut_ptr());
        pieces(n.div_ceil(size), &|i| {
            let from = i * size;
            let length = size.min(n - from);
            // SAFETY: pieces lie within the `n` elements of the capacity and do not overlap.
            let piece = unsafe { std::slice::from_raw_parts_mut({ &start }.0.add(from), length) };
            fill(from, piece);
        });
    }
    // SAFETY: the capacity is `n` at least and the caller vouches that all of it was written.
    unsafe { out.set_len(n) };
    out
}

/// Runs `work` for each number below `count`. One function for all callers keeps the code small.
fn pieces(count: usize, work: &(dyn Fn(usize) + Sync)) {
    (0..count).into_par_iter().for_each(work);
}
