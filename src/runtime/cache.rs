//! Decoding step by step: the caches of earlier tokens stay with the library from one run to the next.

use super::exchange;
use super::session::{Session, fault};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::IoBinding;
use ort::value::{DynValue, PrimitiveTensorElementType};

/// Caches of a decoder between two runs, by the name of the input that they are for.
#[derive(Default)]
pub struct Kept {
    /// Outputs of the last run, inputs of the next one.
    passed: Vec<(String, DynValue)>,
    place: Option<Place>,
}

/// Caches that are input and output at once: the kernels write the new positions behind the others.
struct Place {
    /// Positions that the buffers have.
    room: usize,
    caches: Vec<Cache>,
    /// Made with the first run, which tells the caches' shapes.
    binding: Option<IoBinding>,
}

struct Cache {
    input: String,
    output: String,
    dtype: DType,
    /// As the model takes it, without positions.
    shape: Vec<usize>,
    buffer: DynValue,
}

impl Kept {
    /// Caches in buffers with room for so many positions. For models of which
    /// [`crate::graph::states::in_place`] holds; the runtime's providers must be those of the CPU.
    pub fn in_place(room: usize) -> Kept {
        Kept { passed: Vec::new(), place: Some(Place { room, caches: Vec::new(), binding: None }) }
    }

    /// Whether the caches stay where they are.
    pub fn is_in_place(&self) -> bool {
        self.place.is_some()
    }

    /// Makes room for so many positions in all, those that are held among them: buffers that are too short are
    /// copied into ones of at least twice the length.
    pub fn reserve(&mut self, positions: usize) {
        if let Some(place) = &mut self.place
            && positions > place.room
        {
            place.room = positions.max(place.room.saturating_mul(2));
            place.binding = None;
        }
    }
}

impl Place {
    /// Takes the caches from the inputs of the first run, which have no positions yet.
    fn open(&mut self, inputs: &[(String, Tensor)], keep: &[(String, String)]) -> Result<()> {
        for (output, input) in keep {
            let given = inputs.iter().find(|(name, _)| name == input).map(|(_, tensor)| tensor);
            let empty = given.filter(|t| t.shape().len() == 4 && t.shape()[2] == 0).ok_or_else(|| {
                Error::internal("ORT-CACHE", "a cache in one place does not begin as an empty one")
                    .field(input.as_str())
            })?;
            let (dtype, shape) = (empty.dtype(), empty.shape().to_vec());
            let buffer = buffer(dtype, &shape, self.room, None).map_err(|e| e.field(input.as_str()))?;
            self.caches.push(Cache { input: input.clone(), output: output.clone(), dtype, shape, buffer });
        }
        Ok(())
    }

    /// Binds each cache as input and output.
    fn bind(&mut self, session: &ort::session::Session) -> Result<IoBinding> {
        let mut binding = session.create_binding().map_err(|e| fault(&e, "bind inputs and outputs"))?;
        for cache in &mut self.caches {
            let held = exchange::shape(&cache.buffer)?.get(2).copied().unwrap_or(0);
            if held < self.room {
                cache.buffer = buffer(cache.dtype, &cache.shape, self.room, Some(&cache.buffer))?;
            }
            binding
                .bind_input(&cache.input, &cache.buffer)
                .and_then(|()| binding.bind_output(&cache.output, &mut cache.buffer))
                .map_err(|e| fault(&e, "bind a cache").field(cache.input.as_str()))?;
        }
        Ok(binding)
    }
}

/// A cache `[rows, heads, room, size]`, zero but for the positions of an older one.
fn buffer(dtype: DType, shape: &[usize], room: usize, old: Option<&DynValue>) -> Result<DynValue> {
    fn of<T>(shape: &[usize], room: usize, old: Option<&DynValue>) -> ort::Result<DynValue>
    where
        T: PrimitiveTensorElementType + std::fmt::Debug + Copy + Default,
    {
        let dims = [shape[0], shape[1], room, shape[3]];
        let mut tensor = ort::value::Tensor::<T>::new(&Allocator::default(), dims)?;
        let (_, to) = tensor.extract_tensor_mut();
        to.fill(T::default());
        if let Some(old) = old {
            let (_, from) = old.try_extract_tensor::<T>()?;
            let of_head = from.len() / (shape[0] * shape[1]).max(1);
            for (to, from) in to.chunks_mut((room * shape[3]).max(1)).zip(from.chunks(of_head.max(1))) {
                to[..from.len()].copy_from_slice(from);
            }
        }
        Ok(tensor.into_dyn())
    }
    match dtype {
        DType::F32 => of::<f32>(shape, room, old),
        DType::F16 => of::<half::f16>(shape, room, old),
        DType::BF16 => of::<half::bf16>(shape, room, old),
        other => return Err(Error::internal("ORT-CACHE", "a cache of this type has no buffer").found(other)),
    }
    .map_err(|e| fault(&e, "hold a cache"))
}

impl Session {
    /// Runs on named inputs and on what is kept. Each output that `keep` lists is kept for the next run
    /// under the name of an input, in the place of what that had, without a copy; of the output
    /// `wanted`, `[1, tokens, width]`, the last row is returned. The first run has the empty caches among
    /// its inputs, later ones do not.
    ///
    /// # Errors
    /// As [`Session::run`]; `Invalid` where an output is missing or has another shape.
    pub fn step(
        &mut self,
        inputs: &[(String, Tensor)],
        kept: &mut Kept,
        keep: &[(String, String)],
        wanted: &str,
    ) -> Result<Vec<f32>> {
        if let Some(place) = &mut kept.place {
            return self.step_in_place(inputs, place, keep, wanted);
        }
        let prepared = self.prepare(inputs)?;
        let views = prepared.0.iter().chain(&kept.passed).map(|(n, v)| (n.as_str(), v));
        let views: Vec<(&str, &DynValue)> = views.collect();
        let mut native = self.native.run(views).map_err(|e| fault(&e, "run this model"))?;
        let row = exchange::last_row(native.get(wanted).ok_or_else(|| missing(wanted))?)
            .map_err(|e| e.field(wanted))?;
        let mut next = Vec::with_capacity(keep.len());
        for (output, input) in keep {
            next.push((input.clone(), native.remove(output).ok_or_else(|| missing(output))?));
        }
        drop(native);
        kept.passed = next;
        Ok(row)
    }

    fn step_in_place(
        &mut self,
        inputs: &[(String, Tensor)],
        place: &mut Place,
        keep: &[(String, String)],
        wanted: &str,
    ) -> Result<Vec<f32>> {
        if place.caches.is_empty() {
            place.open(inputs, keep)?;
        }
        let caches = |name: &String| keep.iter().any(|(_, input)| input == name);
        let others: Vec<(String, Tensor)> = inputs.iter().filter(|(n, _)| !caches(n)).cloned().collect();
        let prepared = self.prepare(&others)?;
        let mut binding = match place.binding.take() {
            Some(binding) => binding,
            None => place.bind(&self.native)?,
        };
        for (name, value) in &prepared.0 {
            binding.bind_input(name, value).map_err(|e| fault(&e, "bind an input").field(name.as_str()))?;
        }
        // Bound anew for each run: a bound output is reused, and the number of tokens changes.
        MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)
            .and_then(|memory| binding.bind_output_to_device(wanted, &memory))
            .map_err(|e| fault(&e, "bind an output").field(wanted))?;
        let native = self.native.run_binding(&binding).map_err(|e| fault(&e, "run this model"))?;
        let row = exchange::last_row(native.get(wanted).ok_or_else(|| missing(wanted))?)
            .map_err(|e| e.field(wanted))?;
        drop(native);
        place.binding = Some(binding);
        Ok(row)
    }
}

fn missing(name: &str) -> Error {
    Error::invalid("ORT-OUTPUT", "the model lacks an output that is needed").field(name)
}
