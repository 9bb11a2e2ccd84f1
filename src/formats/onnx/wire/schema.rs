//! What the wire walk must know of each ONNX message: field numbers, names and encodings, as in
//! `proto.rs`. Data only.

use crate::formats::onnx::proto;

/// How a field is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Varint.
    Int,
    /// Varints, one by one or packed.
    Ints,
    /// 4 bytes.
    F32,
    /// 4 bytes each, one by one or packed.
    F32s,
    /// 8 bytes each, one by one or packed.
    F64s,
    /// UTF-8, a name.
    Name,
    /// UTF-8, free text.
    Text,
    /// Any bytes.
    Bytes,
    /// Nested message.
    Message(Message),
}

/// A message type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Segment,
    ValueInfo,
    Type,
    TensorType,
    ElementType,
    MapType,
    OpaqueType,
    Shape,
    Dimension,
    Opset,
    Entry,
    Function,
    Training,
    Annotation,
    Device,
    NodeDevice,
    Sharding,
    IntList,
    ShardedDim,
    SimpleSharded,
}

#[derive(Debug)]
pub(super) struct Field {
    pub number: u32,
    pub name: &'static str,
    pub kind: Kind,
    pub repeated: bool,
}

const fn one(number: u32, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, repeated: false }
}
const fn many(number: u32, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, repeated: true }
}

use Kind::{Bytes, F32, F32s, F64s, Int, Ints, Message as M, Name, Text};

const MODEL: &[Field] = &[
    one(1, "ir_version", Int),
    one(2, "producer_name", Text),
    one(3, "producer_version", Text),
    one(4, "domain", Text),
    one(5, "model_version", Int),
    one(6, "doc_string", Text),
    one(7, "graph", M(Message::Graph)),
    many(8, "opset_import", M(Message::Opset)),
    many(14, "metadata_props", M(Message::Entry)),
    many(20, "training_info", M(Message::Training)),
    many(25, "functions", M(Message::Function)),
    many(26, "configuration", M(Message::Device)),
];
const GRAPH: &[Field] = &[
    many(1, "node", M(Message::Node)),
    one(2, "name", Name),
    many(5, "initializer", M(Message::Tensor)),
    one(10, "doc_string", Text),
    many(11, "input", M(Message::ValueInfo)),
    many(12, "output", M(Message::ValueInfo)),
    many(13, "value_info", M(Message::ValueInfo)),
    many(14, "quantization_annotation", M(Message::Annotation)),
    many(15, "sparse_initializer", M(Message::Sparse)),
    many(16, "metadata_props", M(Message::Entry)),
];
const NODE: &[Field] = &[
    many(1, "input", Name),
    many(2, "output", Name),
    one(3, "name", Name),
    one(4, "op_type", Name),
    many(5, "attribute", M(Message::Attribute)),
    one(6, "doc_string", Text),
    one(7, "domain", Name),
    one(8, "overload", Name),
    many(9, "metadata_props", M(Message::Entry)),
    many(10, "device_configurations", M(Message::NodeDevice)),
];
const ATTRIBUTE: &[Field] = &[
    one(1, "name", Name),
    one(2, "f", F32),
    one(3, "i", Int),
    one(4, "s", Bytes),
    one(5, "t", M(Message::Tensor)),
    one(6, "g", M(Message::Graph)),
    many(7, "floats", F32s),
    many(8, "ints", Ints),
    many(9, "strings", Bytes),
    many(10, "tensors", M(Message::Tensor)),
    many(11, "graphs", M(Message::Graph)),
    one(13, "doc_string", Text),
    one(14, "tp", M(Message::Type)),
    many(15, "type_protos", M(Message::Type)),
    one(20, "type", Int),
    one(21, "ref_attr_name", Name),
    one(22, "sparse_tensor", M(Message::Sparse)),
    many(23, "sparse_tensors", M(Message::Sparse)),
];
const TENSOR: &[Field] = &[
    many(1, "dims", Ints),
    one(2, "data_type", Int),
    one(3, "segment", M(Message::Segment)),
    many(4, "float_data", F32s),
    many(5, "int32_data", Ints),
    many(6, "string_data", Bytes),
    many(7, "int64_data", Ints),
    one(8, "name", Name),
    one(9, "raw_data", Bytes),
    many(10, "double_data", F64s),
    many(11, "uint64_data", Ints),
    one(12, "doc_string", Text),
    many(13, "external_data", M(Message::Entry)),
    one(14, "data_location", Int),
    many(16, "metadata_props", M(Message::Entry)),
];
const SPARSE: &[Field] =
    &[one(1, "values", M(Message::Tensor)), one(2, "indices", M(Message::Tensor)), many(3, "dims", Ints)];
const SEGMENT: &[Field] = &[one(1, "begin", Int), one(2, "end", Int)];
const VALUE_INFO: &[Field] = &[
    one(1, "name", Name),
    one(2, "type", M(Message::Type)),
    one(3, "doc_string", Text),
    many(4, "metadata_props", M(Message::Entry)),
];
const TYPE: &[Field] = &[
    one(1, "tensor_type", M(Message::TensorType)),
    one(4, "sequence_type", M(Message::ElementType)),
    one(5, "map_type", M(Message::MapType)),
    one(6, "denotation", Name),
    one(7, "opaque_type", M(Message::OpaqueType)),
    one(8, "sparse_tensor_type", M(Message::TensorType)),
    one(9, "optional_type", M(Message::ElementType)),
];
const TENSOR_TYPE: &[Field] = &[one(1, "elem_type", Int), one(2, "shape", M(Message::Shape))];
const ELEMENT_TYPE: &[Field] = &[one(1, "elem_type", M(Message::Type))];
const MAP_TYPE: &[Field] = &[one(1, "key_type", Int), one(2, "value_type", M(Message::Type))];
const OPAQUE_TYPE: &[Field] = &[one(1, "domain", Name), one(2, "name", Name)];
const SHAPE: &[Field] = &[many(1, "dim", M(Message::Dimension))];
const DIMENSION: &[Field] =
    &[one(1, "dim_value", Int), one(2, "dim_param", Name), one(3, "denotation", Name)];
const OPSET: &[Field] = &[one(1, "domain", Name), one(2, "version", Int)];
const ENTRY: &[Field] = &[one(1, "key", Name), one(2, "value", Text)];
const FUNCTION: &[Field] = &[
    one(1, "name", Name),
    many(4, "input", Name),
    many(5, "output", Name),
    many(6, "attribute", Name),
    many(7, "node", M(Message::Node)),
    one(8, "doc_string", Text),
    many(9, "opset_import", M(Message::Opset)),
    one(10, "domain", Name),
    many(11, "attribute_proto", M(Message::Attribute)),
    many(12, "value_info", M(Message::ValueInfo)),
    one(13, "overload", Name),
    many(14, "metadata_props", M(Message::Entry)),
];
const TRAINING: &[Field] = &[
    one(1, "initialization", M(Message::Graph)),
    one(2, "algorithm", M(Message::Graph)),
    many(3, "initialization_binding", M(Message::Entry)),
    many(4, "update_binding", M(Message::Entry)),
];
const ANNOTATION: &[Field] =
    &[one(1, "tensor_name", Name), many(2, "quant_parameter_tensor_names", M(Message::Entry))];
const DEVICE: &[Field] = &[one(1, "name", Name), one(2, "num_devices", Int), many(3, "device", Name)];
const NODE_DEVICE: &[Field] = &[
    one(1, "configuration_id", Name),
    many(2, "sharding_spec", M(Message::Sharding)),
    one(3, "pipeline_stage", Int),
];
const SHARDING: &[Field] = &[
    one(1, "tensor_name", Name),
    many(2, "device", Ints),
    many(3, "index_to_device_group_map", M(Message::IntList)),
    many(4, "sharded_dim", M(Message::ShardedDim)),
];
const INT_LIST: &[Field] = &[one(1, "key", Int), many(2, "value", Ints)];
const SHARDED_DIM: &[Field] = &[one(1, "axis", Int), many(2, "simple_sharding", M(Message::SimpleSharded))];
const SIMPLE_SHARDED: &[Field] =
    &[one(1, "dim_value", Int), one(2, "dim_param", Name), one(3, "num_shards", Int)];

impl Message {
    fn fields(self) -> &'static [Field] {
        match self {
            Message::Model => MODEL,
            Message::Graph => GRAPH,
            Message::Node => NODE,
            Message::Attribute => ATTRIBUTE,
            Message::Tensor => TENSOR,
            Message::Sparse => SPARSE,
            Message::Segment => SEGMENT,
            Message::ValueInfo => VALUE_INFO,
            Message::Type => TYPE,
            Message::TensorType => TENSOR_TYPE,
            Message::ElementType => ELEMENT_TYPE,
            Message::MapType => MAP_TYPE,
            Message::OpaqueType => OPAQUE_TYPE,
            Message::Shape => SHAPE,
            Message::Dimension => DIMENSION,
            Message::Opset => OPSET,
            Message::Entry => ENTRY,
            Message::Function => FUNCTION,
            Message::Training => TRAINING,
            Message::Annotation => ANNOTATION,
            Message::Device => DEVICE,
            Message::NodeDevice => NODE_DEVICE,
            Message::Sharding => SHARDING,
            Message::IntList => INT_LIST,
            Message::ShardedDim => SHARDED_DIM,
            Message::SimpleSharded => SIMPLE_SHARDED,
        }
    }

    /// The field with this number, if the message has one.
    pub(super) fn field(self, number: u32) -> Option<&'static Field> {
        self.fields().iter().find(|f| f.number == number)
    }

    /// Name in the specification.
    pub(super) fn name(self) -> &'static str {
        match self {
            Message::Model => "ModelProto",
            Message::Graph => "GraphProto",
            Message::Node => "NodeProto",
            Message::Attribute => "AttributeProto",
            Message::Tensor => "TensorProto",
            Message::Sparse => "SparseTensorProto",
            Message::Segment => "TensorProto.Segment",
            Message::ValueInfo => "ValueInfoProto",
            Message::Type => "TypeProto",
            Message::TensorType => "TypeProto.Tensor",
            Message::ElementType => "TypeProto.Sequence",
            Message::MapType => "TypeProto.Map",
            Message::OpaqueType => "TypeProto.Opaque",
            Message::Shape => "TensorShapeProto",
            Message::Dimension => "TensorShapeProto.Dimension",
            Message::Opset => "OperatorSetIdProto",
            Message::Entry => "StringStringEntryProto",
            Message::Function => "FunctionProto",
            Message::Training => "TrainingInfoProto",
            Message::Annotation => "TensorAnnotation",
            Message::Device => "DeviceConfigurationProto",
            Message::NodeDevice => "NodeDeviceConfigurationProto",
            Message::Sharding => "ShardingSpecProto",
            Message::IntList => "IntIntListEntryProto",
            Message::ShardedDim => "ShardedDimProto",
            Message::SimpleSharded => "SimpleShardedDimProto",
        }
    }

    /// Bytes that one decoded message takes in memory, without what its vectors hold.
    pub(super) fn decoded_size(self) -> u64 {
        let size = match self {
            Message::Model => size_of::<proto::ModelProto>(),
            Message::Graph => size_of::<proto::GraphProto>(),
            Message::Node => size_of::<proto::NodeProto>(),
            Message::Attribute => size_of::<proto::AttributeProto>(),
            Message::Tensor => size_of::<proto::TensorProto>(),
            Message::Sparse => size_of::<proto::SparseTensorProto>(),
            Message::ValueInfo => size_of::<proto::ValueInfoProto>(),
            Message::Type => size_of::<proto::TypeProto>(),
            Message::Function => size_of::<proto::FunctionProto>(),
            _ => size_of::<proto::tensor_shape_proto::Dimension>().max(96),
        };
        size as u64
    }
}

/// Whether this message may hold a tensor somewhere inside.
pub(super) fn may_hold_tensors(message: Message) -> bool {
    use Message::*;
    matches!(message, Model | Graph | Node | Attribute | Tensor | Sparse | Function | Training)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `tag` in the checked-in types must stand in the tables, or the walk would drop the field.
    #[test]
    fn tables_cover_the_checked_in_types() {
        let source = include_str!("../proto.rs");
        let mut structs = std::collections::BTreeMap::<String, Vec<u32>>::new();
        let mut current = String::new();
        for line in source.lines() {
            if let Some(rest) = line.trim().strip_prefix("pub struct ") {
                current = rest.trim_end_matches(" {").to_string();
            }
            if line.contains("pub enum ") {
                current.clear();
            }
            let tags = line.split("tag = \"").nth(1).or_else(|| line.split("tags = \"").nth(1));
            if let (Some(tags), false) = (tags, current.is_empty()) {
                let list = tags.split('"').next().unwrap();
                for t in list.split(',') {
                    structs.entry(current.clone()).or_default().push(t.trim().parse().unwrap());
                }
            }
        }
        let rows = [
            ("ModelProto", Message::Model),
            ("GraphProto", Message::Graph),
            ("NodeProto", Message::Node),
            ("AttributeProto", Message::Attribute),
            ("TensorProto", Message::Tensor),
            ("SparseTensorProto", Message::Sparse),
            ("Segment", Message::Segment),
            ("ValueInfoProto", Message::ValueInfo),
            ("TypeProto", Message::Type),
            ("Tensor", Message::TensorType),
            ("SparseTensor", Message::TensorType),
            ("Sequence", Message::ElementType),
            ("Optional", Message::ElementType),
            ("Map", Message::MapType),
            ("Opaque", Message::OpaqueType),
            ("TensorShapeProto", Message::Shape),
            ("Dimension", Message::Dimension),
            ("OperatorSetIdProto", Message::Opset),
            ("StringStringEntryProto", Message::Entry),
            ("FunctionProto", Message::Function),
            ("TrainingInfoProto", Message::Training),
            ("TensorAnnotation", Message::Annotation),
            ("DeviceConfigurationProto", Message::Device),
            ("NodeDeviceConfigurationProto", Message::NodeDevice),
            ("ShardingSpecProto", Message::Sharding),
            ("IntIntListEntryProto", Message::IntList),
            ("ShardedDimProto", Message::ShardedDim),
            ("SimpleShardedDimProto", Message::SimpleSharded),
        ];
        assert_eq!(structs.len(), rows.len(), "{:?}", structs.keys());
        for (name, message) in rows {
            let mut tags = structs[name].clone();
            tags.retain(|t| *t != super::super::PAYLOAD_FIELD);
            tags.sort_unstable();
            let table: Vec<u32> = message.fields().iter().map(|f| f.number).collect();
            assert_eq!(tags, table, "{name}");
        }
    }
}
