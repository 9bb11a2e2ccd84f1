//! What an ONNX file says that the graph has no field for, packed into the graph's opaque `carried`
//! bytes on import and merged back on export: doc strings, metadata, functions, which optional fields
//! were present though empty, and in which form small tensors were stored. Only this format reads them.

use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, tensor_proto,
    tensor_shape_proto::{self, dimension::Value as DimValue},
    type_proto,
};
use crate::graph::Type;
use crate::ops::Dim;
use crate::tensor::DType;
use bytes::Bytes;
use prost::Message;

/// The carried part of one value.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CarriedValue {
    /// Doc string, metadata, and the type where the graph's form of it does not give the same bytes.
    #[prost(message, optional, tag = "1")]
    pub info: Option<ValueInfoProto>,
    /// What an initialiser says besides its tensor; see [`tensor_rest`].
    #[prost(message, optional, tag = "2")]
    pub tensor: Option<TensorProto>,
    /// Position in `value_info`, where it is listed there.
    #[prost(uint32, optional, tag = "3")]
    pub listed: Option<u32>,
    /// Whether nothing in the file defined it, so that it is listed although nothing does.
    #[prost(bool, tag = "4")]
    pub undefined: bool,
}

/// Bytes of a message; none where it says nothing.
pub(super) fn pack<M: Message + Default + PartialEq>(message: &M) -> Bytes {
    if *message == M::default() { Bytes::new() } else { message.encode_to_vec().into() }
}

/// The message of [`pack`]; other content (of another format) counts as nothing.
pub(super) fn unpack<M: Message + Default>(bytes: &Bytes) -> M {
    if bytes.is_empty() { M::default() } else { M::decode(bytes.clone()).unwrap_or_default() }
}

/// `Some` only where the field is present but empty, which the graph's plain string cannot tell.
fn empty(field: &Option<String>) -> Option<String> {
    field.clone().filter(String::is_empty)
}

/// A plain string as an optional field: absent where empty, unless the file had it so.
pub(super) fn present(value: &str, carried: &Option<String>) -> Option<String> {
    if value.is_empty() { empty(carried) } else { Some(value.to_string()) }
}

/// The model without graph, metadata and everything else that the graph's header holds.
pub(super) fn model_rest(model: &ModelProto) -> ModelProto {
    ModelProto {
        producer_name: empty(&model.producer_name),
        producer_version: empty(&model.producer_version),
        domain: empty(&model.domain),
        model_version: model.model_version.filter(|v| *v == 0),
        doc_string: model.doc_string.clone(),
        opset_import: if model.opset_import.iter().any(|o| o.domain.as_deref() == Some("")) {
            model.opset_import.iter().filter(|o| o.domain.as_deref() == Some("")).cloned().collect()
        } else {
            vec![]
        },
        training_info: model.training_info.clone(),
        functions: model.functions.clone(),
        configuration: model.configuration.clone(),
        ..ModelProto::default()
    }
}

/// The graph without what [`crate::graph::Graph`] holds.
pub(super) fn graph_rest(graph: &mut GraphProto) -> GraphProto {
    GraphProto {
        name: empty(&graph.name),
        doc_string: graph.doc_string.take(),
        quantization_annotation: std::mem::take(&mut graph.quantization_annotation),
        metadata_props: std::mem::take(&mut graph.metadata_props),
        ..GraphProto::default()
    }
}

/// The node without operator, edges and attributes; attributes that say more are added by the caller.
pub(super) fn node_rest(node: &mut NodeProto, attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        name: empty(&node.name),
        domain: empty(&node.domain),
        overload: node.overload.take(),
        doc_string: node.doc_string.take(),
        metadata_props: std::mem::take(&mut node.metadata_props),
        device_configurations: std::mem::take(&mut node.device_configurations),
        attribute: attributes,
        ..NodeProto::default()
    }
}

/// The tensor without type, shape and elements. `payload` holds the number of the typed field that the
/// elements stood in, where it was not `raw_data`.
pub(super) fn tensor_rest(tensor: &mut TensorProto, form: Option<u64>, keep_name: bool) -> TensorProto {
    TensorProto {
        name: tensor.name.take().filter(|_| keep_name),
        doc_string: tensor.doc_string.take(),
        metadata_props: std::mem::take(&mut tensor.metadata_props),
        data_location: tensor.data_location.filter(|v| *v == tensor_proto::DataLocation::Default as i32),
        payload: form.into_iter().collect(),
        ..TensorProto::default()
    }
}

/// A declared type as the graph holds it; `None` where nothing is declared. Second: whether a dimension
/// was negative, which some exporters write for unknown.
pub(super) fn to_type(proto: &TypeProto) -> (Option<Type>, bool) {
    let mut negative = false;
    let ty = match &proto.value {
        None => None,
        Some(type_proto::Value::TensorType(t)) => match DType::from_onnx(t.elem_type.unwrap_or(0)) {
            Some(dtype) => {
                let dim = |d: &tensor_shape_proto::Dimension| match &d.value {
                    Some(DimValue::DimValue(n)) if *n >= 0 => Dim::from(*n),
                    Some(DimValue::DimValue(_)) => {
                        negative = true;
                        Dim::unknown()
                    }
                    // A question mark is no name: two of them need not be the same size.
                    Some(DimValue::DimParam(s)) if !s.is_empty() && s != "?" => Dim::parse(s),
                    _ => Dim::unknown(),
                };
                let shape = t.shape.as_ref().map(|s| s.dim.iter().map(dim).collect());
                Some(Type::Tensor { dtype, shape })
            }
            None => Some(Type::Opaque(proto.encode_to_vec().into())),
        },
        Some(_) => Some(Type::Opaque(proto.encode_to_vec().into())),
    };
    (ty, negative)
}

/// The way back from [`to_type`].
pub(super) fn from_type(ty: &Type) -> TypeProto {
    match ty {
        Type::Opaque(bytes) => unpack(bytes),
        Type::Tensor { dtype, shape } => {
            let dim = |d: &Dim| {
                let value = match (d.known(), d.as_symbol()) {
                    (Some(n), _) => Some(DimValue::DimValue(n)),
                    (None, Some(s)) => Some(DimValue::DimParam(s.to_string())),
                    (None, None) if d.is_unknown() => None,
                    (None, None) => Some(DimValue::DimParam(d.to_string())),
                };
                tensor_shape_proto::Dimension { denotation: None, value }
            };
            let shape =
                shape.as_ref().map(|s| super::proto::TensorShapeProto { dim: s.iter().map(dim).collect() });
            TypeProto {
                denotation: None,
                value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                    elem_type: Some(dtype.onnx()),
                    shape,
                })),
            }
        }
    }
}

/// A value's entry in `input`, `output` or `value_info`. The carried type is used as long as the graph
/// still says the same.
pub(super) fn value_info(name: &str, ty: Option<&Type>, carried: &CarriedValue) -> ValueInfoProto {
    let info = carried.info.as_ref();
    let plain = ty.map(from_type);
    let exact = info.and_then(|i| i.r#type.as_ref());
    let r#type = match (exact, plain) {
        (Some(exact), Some(plain)) if to_type(exact).0.as_ref().map(from_type).as_ref() == Some(&plain) => {
            Some(exact.clone())
        }
        (Some(exact), None) if exact.value.is_none() => Some(exact.clone()),
        (_, plain) => plain,
    };
    ValueInfoProto {
        name: Some(name.to_string()),
        r#type,
        doc_string: info.and_then(|i| i.doc_string.clone()),
        metadata_props: info.map(|i| i.metadata_props.clone()).unwrap_or_default(),
    }
}
