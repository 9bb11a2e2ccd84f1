//! A [`Graph`] enters, an ONNX file leaves, tensor by tensor: the skeleton is encoded first, lengths are
//! computed, and each large tensor is read only while it is written. What was carried goes back in, so
//! that an untouched graph gives the same bytes where its file was written in field order.

use super::carried::{self, CarriedValue, present, unpack};
use super::elements;
use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, attribute_proto::AttributeType, tensor_proto::DataLocation,
};
use super::wire::{LARGE, Piece, splice};
use crate::error::{Error, Result};
use crate::formats::{External, SaveOptions, Saved};
use crate::graph::{Graph, ValueId};
use crate::monitor::Monitor;
use crate::ops::Attr;
use crate::save;
use crate::tensor::{DType, Tensor};
use bytes::Bytes;
use prost::Message;
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Beyond this a protobuf file (2 GiB at most) is written with external data.
const INLINE_MOST: u64 = 1_900_000_000;
/// Regions of external data start at multiples of this, so that they can be mapped.
const ALIGNMENT: u64 = 64 << 10;

/// Writes `graph` to `path`, all or nothing; see [`crate::formats::save_with`].
pub(crate) fn write(graph: &Graph, path: &Path, options: &SaveOptions<'_>) -> Result<Saved> {
    let external = match options.external {
        External::Auto => stored_bytes(graph) > INLINE_MOST,
        External::Always => true,
        External::Never => false,
    };
    if external { with_data_file(graph, path, options) } else { single(graph, path, options) }
}

/// Bytes of all initialisers, as an estimate of the file's size.
fn stored_bytes(graph: &Graph) -> u64 {
    graph.initializers.values().fold(0, |sum, t| sum.saturating_add(t.byte_len()))
}

fn single(graph: &Graph, path: &Path, options: &SaveOptions<'_>) -> Result<Saved> {
    let mut exporter = Exporter::default();
    let skeleton = exporter.model(graph)?.encode_to_vec();
    let (pieces, total) = splice(&skeleton, &|n| exporter.payload(n))?;
    if total >= 1 << 31 {
        return Err(Error::limit_exceeded("ONNX-2GIB", "a protobuf file holds less than 2 GiB")
            .file(path)
            .found(crate::units::Bytes(total))
            .hint("save it with external data"));
    }
    save::atomic(path, |file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let failed = |e| Error::io("write the model", path, e);
        for piece in pieces {
            match piece {
                Piece::Skeleton(range) => {
                    out.write_all(skeleton.get(range).unwrap_or_default()).map_err(failed)?;
                }
                Piece::Bytes(bytes) => out.write_all(&bytes).map_err(failed)?,
                Piece::Payload(n) => exporter.write_large(n, &mut out, options.monitor)?,
            }
        }
        out.flush().map_err(failed)
    })?;
    Ok(Saved { path: path.to_path_buf(), bytes: total, data: None })
}

/// Model and data file. The data file is complete before the model names it, and never replaces one
/// that an older model may name.
fn with_data_file(graph: &Graph, path: &Path, options: &SaveOptions<'_>) -> Result<Saved> {
    let (data_path, location) = free_name(path)?;
    let mut exporter = Exporter { location: Some(location), ..Exporter::default() };
    let skeleton = exporter.model(graph)?.encode_to_vec();
    let mut data_bytes = 0;
    if !exporter.large.is_empty() {
        data_bytes = save::atomic(&data_path, |file: &mut File| {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            let failed = |e| Error::io("write external data", &data_path, e);
            let mut at = 0u64;
            for (n, start) in exporter.starts.iter().enumerate() {
                let gap = start.saturating_sub(at);
                std::io::copy(&mut std::io::Read::take(std::io::repeat(0), gap), &mut out).map_err(failed)?;
                exporter.write_large(n as u64, &mut out, options.monitor)?;
                at = start + exporter.large.get(n).map_or(0, |(t, _)| t.byte_len());
            }
            out.flush().map_err(failed)?;
            Ok(at)
        })?;
    }
    save::bytes(path, &skeleton)?;
    let data = (data_bytes > 0).then_some((data_path, data_bytes));
    Ok(Saved { path: path.to_path_buf(), bytes: skeleton.len() as u64, data })
}

/// `model.onnx.data`, or a numbered one beside it where that name is taken.
fn free_name(path: &Path) -> Result<(PathBuf, String)> {
    let stem = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut stem: String = stem
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' })
        .take(200)
        .collect();
    if stem.is_empty() || stem.starts_with('.') {
        stem.insert_str(0, "model");
    }
    (0..1000u32)
        .map(|n| if n == 0 { format!("{stem}.data") } else { format!("{stem}.{n}.data") })
        .map(|name| (path.with_file_name(&name), name))
        .find(|(p, _)| p.symlink_metadata().is_err())
        .ok_or_else(|| {
            Error::storage("ONNX-DATA-NAME", "no free name for external data")
                .file(path)
                .hint("remove old .data files beside the model")
        })
}

#[derive(Default)]
struct Exporter {
    /// Large tensors in file order, and the field that each is written to.
    large: Vec<(Tensor, u32)>,
    /// Name of the external data file, where one is written.
    location: Option<String>,
    /// Position of each large tensor in it.
    starts: Vec<u64>,
    end: u64,
}

impl Exporter {
    /// Field and bytes of a large tensor.
    fn payload(&self, n: u64) -> Option<(u32, u64)> {
        let (tensor, field) = self.large.get(usize::try_from(n).ok()?)?;
        Some((*field, tensor.byte_len()))
    }

    fn write_large(&self, n: u64, out: &mut dyn Write, monitor: &dyn Monitor) -> Result<()> {
        monitor.check()?;
        let tensor = usize::try_from(n).ok().and_then(|n| self.large.get(n));
        let (tensor, _) =
            tensor.ok_or_else(|| Error::internal("ONNX-PAYLOAD", "a payload number is out of range"))?;
        let mut counted = Counted { out, bytes: 0 };
        tensor.write_raw(&mut counted)?;
        if counted.bytes != tensor.byte_len() {
            return Err(Error::internal(
                "ONNX-PAYLOAD",
                "a tensor wrote another number of bytes than it has",
            )
            .found(counted.bytes)
            .limit(tensor.byte_len()));
        }
        Ok(())
    }

    fn model(&mut self, graph: &Graph) -> Result<ModelProto> {
        let header = &graph.header;
        let rest: ModelProto = unpack(&header.carried);
        let opset_import = graph
            .opsets
            .iter()
            .map(|(domain, version)| {
                let spelled = domain.is_empty() && !rest.opset_import.is_empty();
                let domain = if spelled { Some(String::new()) } else { present(domain, &None) };
                OperatorSetIdProto { domain, version: Some(*version) }
            })
            .collect();
        let metadata_props = header
            .metadata
            .iter()
            .map(|(k, v)| StringStringEntryProto { key: Some(k.clone()), value: Some(v.clone()) })
            .collect();
        Ok(ModelProto {
            ir_version: Some(header.ir_version),
            opset_import,
            producer_name: present(&header.producer, &rest.producer_name),
            producer_version: present(&header.producer_version, &rest.producer_version),
            domain: present(&header.domain, &rest.domain),
            model_version: Some(header.model_version).filter(|v| *v != 0).or(rest.model_version),
            doc_string: rest.doc_string,
            graph: Some(self.graph(graph, header.ir_version)?),
            metadata_props,
            training_info: rest.training_info,
            functions: rest.functions,
            configuration: rest.configuration,
        })
    }

    fn graph(&mut self, graph: &Graph, ir: i64) -> Result<GraphProto> {
        let rest: GraphProto = unpack(&graph.carried);
        let info = |v: &ValueId| {
            let value = graph.value(*v);
            carried::value_info(&value.name, value.ty.as_ref(), &unpack(&value.carried))
        };
        let mut inputs: Vec<_> = graph.inputs.iter().map(info).collect();
        let interface: HashSet<ValueId> = graph.inputs.iter().chain(&graph.outputs).copied().collect();
        let mut defined = interface.clone();
        defined.extend(graph.initializers.keys());
        defined.extend(graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten()));
        let mut listed: Vec<(u32, ValueId)> = Vec::new();
        for (i, value) in graph.values.iter().enumerate() {
            let v = ValueId(i as u32);
            let carried: CarriedValue = unpack(&value.carried);
            let named = defined.contains(&v) || carried.undefined;
            let constant = graph.initializers.contains_key(&v);
            match carried.listed {
                Some(n) if value.ty.is_some() && named => listed.push((n, v)),
                None if value.ty.is_some() && named && !interface.contains(&v) && !constant => {
                    listed.push((u32::MAX, v));
                }
                _ => {}
            }
        }
        listed.sort();
        let mut initializer = Vec::with_capacity(graph.initializers.len());
        for (v, tensor) in graph.initializers() {
            let rest: CarriedValue = unpack(&graph.value(v).carried);
            let name = graph.value_name(v);
            initializer.push(
                self.tensor(tensor, Some(name), rest.tensor)
                    .map_err(|e| e.field(format!("graph.initializer \"{name}\"")))?,
            );
            if ir < 4 && !interface.contains(&v) {
                // Before IR version 4 every initialiser is an input too.
                let ty = crate::graph::Type::Tensor {
                    dtype: tensor.dtype(),
                    shape: Some(tensor.shape().iter().map(|d| (*d).into()).collect()),
                };
                inputs.push(carried::value_info(name, Some(&ty), &CarriedValue::default()));
            }
        }
        let mut node = Vec::with_capacity(graph.nodes.len());
        for i in 0..graph.nodes.len() {
            node.push(self.node(graph, i, ir).map_err(|e| e.node(graph.label(i)))?);
        }
        Ok(GraphProto {
            node,
            name: present(&graph.name, &rest.name),
            initializer,
            sparse_initializer: vec![],
            doc_string: rest.doc_string,
            input: inputs,
            output: graph.outputs.iter().map(info).collect(),
            value_info: listed.iter().map(|(_, v)| info(v)).collect(),
            quantization_annotation: rest.quantization_annotation,
            metadata_props: rest.metadata_props,
        })
    }

    fn node(&mut self, graph: &Graph, i: usize, ir: i64) -> Result<NodeProto> {
        let node = graph.node(i);
        let rest: NodeProto = unpack(&node.carried);
        let names = |list: &[Option<ValueId>]| -> Vec<String> {
            list.iter().map(|v| v.map(|v| graph.value_name(v).to_string()).unwrap_or_default()).collect()
        };
        let mut attribute = Vec::with_capacity(node.attributes.len());
        for (name, attr) in node.attributes.iter() {
            let carried = rest.attribute.iter().find(|a| a.name.as_deref() == Some(name));
            let mut proto = AttributeProto {
                name: Some(name.to_string()),
                doc_string: carried.and_then(|c| c.doc_string.clone()),
                ..AttributeProto::default()
            };
            let bytes = |v: &Vec<u8>| Bytes::from(v.clone());
            let ty = match attr {
                Attr::Int(v) => {
                    proto.i = Some(*v);
                    AttributeType::Int
                }
                Attr::Float(v) => {
                    proto.f = Some(*v);
                    AttributeType::Float
                }
                Attr::Str(v) => {
                    proto.s = Some(bytes(v));
                    AttributeType::String
                }
                Attr::Ints(v) => {
                    proto.ints = v.clone();
                    AttributeType::Ints
                }
                Attr::Floats(v) => {
                    proto.floats = v.clone();
                    AttributeType::Floats
                }
                Attr::Strs(v) => {
                    proto.strings = v.iter().map(bytes).collect();
                    AttributeType::Strings
                }
                Attr::Tensor(t) => {
                    let rest = carried.and_then(|c| c.t.as_deref().cloned());
                    proto.t = Some(Box::new(self.tensor(t, None, rest)?));
                    AttributeType::Tensor
                }
                Attr::Body(n) => {
                    let (_, body) = node.bodies.get(*n).ok_or_else(|| {
                        Error::internal("ONNX-BODY", "an attribute names a body that is not there")
                            .field(format!("attribute \"{name}\""))
                    })?;
                    proto.g = Some(Box::new(self.graph(body, ir.max(4))?));
                    AttributeType::Graph
                }
                Attr::Opaque(encoded) => {
                    attribute.push(unpack(encoded));
                    continue;
                }
            };
            proto.r#type = Some(ty as i32);
            attribute.push(proto);
        }
        Ok(NodeProto {
            input: names(&node.inputs),
            output: names(&node.outputs),
            name: present(&node.name, &rest.name),
            op_type: Some(node.op_type.clone()),
            domain: present(&node.domain, &rest.domain),
            overload: rest.overload,
            attribute,
            doc_string: rest.doc_string,
            metadata_props: rest.metadata_props,
            device_configurations: rest.device_configurations,
        })
    }

    fn tensor(
        &mut self,
        tensor: &Tensor,
        name: Option<&str>,
        rest: Option<TensorProto>,
    ) -> Result<TensorProto> {
        let mut proto = rest.unwrap_or_default();
        let form = std::mem::take(&mut proto.payload).first().copied();
        proto.dims = tensor.shape().iter().map(|d| *d as i64).collect();
        proto.data_type = Some(tensor.dtype().onnx());
        if let Some(name) = name {
            proto.name = Some(name.to_string());
        }
        let len = tensor.byte_len();
        if tensor.dtype() == DType::Str || len < LARGE {
            elements::store(tensor, form, &mut proto)?;
            return Ok(proto);
        }
        // External data belongs to initialisers; runtimes do not look for it in attributes.
        match (&self.location, name) {
            (Some(location), Some(_)) => {
                let start = self.end.next_multiple_of(ALIGNMENT);
                self.end = start + len;
                self.starts.push(start);
                let entry = |key: &str, value: String| StringStringEntryProto {
                    key: Some(key.to_string()),
                    value: Some(value),
                };
                proto.external_data = vec![
                    entry("location", location.clone()),
                    entry("offset", start.to_string()),
                    entry("length", len.to_string()),
                ];
                proto.data_location = Some(DataLocation::External as i32);
                self.large.push((tensor.clone(), 9));
            }
            (Some(_), None) => elements::store(tensor, None, &mut proto)?,
            (None, _) => {
                proto.payload = vec![self.large.len() as u64];
                self.large.push((tensor.clone(), elements::large_field(tensor.dtype(), form)));
            }
        }
        Ok(proto)
    }
}

struct Counted<'a> {
    out: &'a mut dyn Write,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(data)?;
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// SHA-256 of what the graph means: its encoding without large tensors, then those in order. Two graphs
/// with the same digest give the same file.
pub(crate) fn digest(graph: &Graph) -> Result<String> {
    let mut exporter = Exporter::default();
    let skeleton = exporter.model(graph)?.encode_to_vec();
    let mut hash = Hasher(sha2::Digest::new());
    let failed = |e| Error::io("hash the model", "", e);
    hash.write_all(&skeleton).map_err(failed)?;
    for (tensor, _) in &exporter.large {
        tensor.write_raw(&mut hash)?;
    }
    let digest = sha2::Digest::finalize(hash.0);
    Ok(digest.iter().map(|b| format!("{b:02x}")).collect())
}

struct Hasher(sha2::Sha256);

impl Write for Hasher {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        sha2::Digest::update(&mut self.0, data);
        Ok(data.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The whole model as bytes, for small graphs.
pub(crate) fn encode(graph: &Graph) -> Result<Vec<u8>> {
    let mut exporter = Exporter::default();
    let skeleton = exporter.model(graph)?.encode_to_vec();
    let (pieces, total) = splice(&skeleton, &|n| exporter.payload(n))?;
    let mut out = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
    for piece in pieces {
        match piece {
            Piece::Skeleton(range) => out.extend_from_slice(skeleton.get(range).unwrap_or_default()),
            Piece::Bytes(bytes) => out.extend(bytes),
            Piece::Payload(n) => exporter.write_large(n, &mut out, &crate::monitor::Silent)?,
        }
    }
    Ok(out)
}
