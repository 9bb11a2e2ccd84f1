//! A decoded skeleton enters, a [`Graph`] leaves. Large tensors stay in their file; what the graph has
//! no place for goes along as carried bytes. Depth is bounded by the wire walk, so bodies may recurse.

use super::carried::{self, CarriedValue};
use super::elements::{self, Payloads};
use super::external::External;
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
    TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataLocation,
};
use super::{functions, wire};
use crate::error::{Error, Result};
use crate::formats::limits::Limits;
use crate::graph::{Edit, Graph, Header, Node, Type, ValueDef, ValueId};
use crate::ops::{self, Attr, Attributes};
use crate::tensor::{SourceFile, Tensor};
use bytes::Bytes;
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

/// Attributes that one node may have.
const ATTRIBUTES: usize = 4096;
/// The newest `ir_version` that the checked-in types describe.
const LAST_IR: i64 = 14;

/// What [`read`] returns.
pub(crate) struct Imported {
    pub graph: Graph,
    pub warnings: Vec<String>,
    pub external: Vec<(PathBuf, u64)>,
}

/// Reads an ONNX model. Errors name the field and, where one is concerned, the node.
pub(crate) fn read(file: &Arc<SourceFile>, limits: &Limits) -> Result<Imported> {
    let reader = |at: u64, out: &mut [u8]| file.read_exact_at(at, out);
    let walked = wire::walk(file.len(), &reader, limits)?;
    file.unchanged()?;
    let mut warnings: Vec<String> = walked
        .unknown
        .iter()
        .take(20)
        .map(|(field, n)| format!("{field} is not known and cannot be carried ({n} times)"))
        .collect();
    let model = ModelProto::decode(walked.skeleton).map_err(|e| {
        Error::invalid("ONNX-DECODE", format!("the model cannot be decoded: {e}"))
            .hint("the file is damaged: download or export it again")
    })?;
    let mut importer = Importer {
        payloads: Payloads { file: file.clone(), list: walked.payloads },
        limits,
        external: External::new(file.path(), limits),
        opsets: Vec::new(),
        inline_budget: 256 << 20,
        negative_dims: 0,
        sparse: 0,
        graph_lists: 0,
    };
    let graph = importer.model(model, &mut warnings)?;
    let noted = [
        (importer.negative_dims, "negative dimensions were read as unknown"),
        (importer.sparse, "sparse initialisers are written back as dense ones"),
        (importer.graph_lists, "attributes hold lists of graphs; what those capture is not tracked"),
    ];
    warnings.extend(noted.iter().filter(|(n, _)| *n > 0).map(|(n, text)| format!("{n} {text}")));
    let external = importer.external.finish()?;
    Ok(Imported { graph, warnings, external })
}

struct Importer<'a> {
    payloads: Payloads,
    limits: &'a Limits,
    external: External<'a>,
    opsets: Vec<(String, i64)>,
    inline_budget: u64,
    negative_dims: u64,
    sparse: u64,
    graph_lists: u64,
}

impl Importer<'_> {
    fn model(&mut self, mut model: ModelProto, warnings: &mut Vec<String>) -> Result<Graph> {
        let ir = model.ir_version.ok_or_else(|| {
            Error::invalid("ONNX-IR", "the model has no ir_version")
                .field("ir_version")
                .hint("this is not an ONNX model, or it is cut off")
        })?;
        if ir < 1 {
            return Err(Error::invalid("ONNX-IR", "ir_version starts at 1").field("ir_version").found(ir));
        }
        if ir > LAST_IR {
            warnings.push(format!("ir_version {ir} is newer than {LAST_IR}; new fields are not carried"));
        }
        let proto = model.graph.take().ok_or_else(|| {
            Error::invalid("ONNX-NO-GRAPH", "the model has no graph")
                .field("graph")
                .hint("the file is cut off, or holds functions only")
        })?;
        self.opsets = opsets(&model, ir, warnings)?;
        functions::check(&model.functions)?;
        for function in &mut model.functions {
            self.inline_function(function)?;
        }
        for training in &mut model.training_info {
            let graphs = [training.initialization.as_mut(), training.algorithm.as_mut()];
            graphs.into_iter().flatten().try_for_each(|g| self.inline_graph(g))?;
        }
        let mut graph = self.graph(proto, false).map_err(|e| e.field("graph"))?;
        check_captures(&graph)?;
        graph.header = Header {
            ir_version: ir,
            producer: model.producer_name.clone().unwrap_or_default(),
            producer_version: model.producer_version.clone().unwrap_or_default(),
            domain: model.domain.clone().unwrap_or_default(),
            model_version: model.model_version.unwrap_or_default(),
            metadata: model
                .metadata_props
                .iter()
                .map(|e| (e.key.clone().unwrap_or_default(), e.value.clone().unwrap_or_default()))
                .collect(),
            carried: carried::pack(&carried::model_rest(&model)),
        };
        Ok(graph)
    }

    fn graph(&mut self, mut proto: GraphProto, body: bool) -> Result<Graph> {
        let rest = carried::pack(&carried::graph_rest(&mut proto));
        let mut scope = Scope {
            graph: Graph {
                name: proto.name.take().unwrap_or_default(),
                opsets: self.opsets.clone(),
                carried: rest,
                ..Graph::default()
            },
            carried: HashMap::new(),
        };
        let mut seen = HashSet::new();
        for (i, info) in proto.input.into_iter().enumerate() {
            let field = || format!("graph.input[{i}]");
            let v = self.declare(&mut scope, info).map_err(|e| e.field(field()))?;
            if !seen.insert(v) {
                return Err(duplicate("two graph inputs have one name", scope.name(v)).field(field()));
            }
            scope.graph.inputs.push(v);
        }
        for (i, mut tensor) in proto.initializer.into_iter().enumerate() {
            let name = tensor.name.clone().unwrap_or_default();
            let field = || format!("graph.initializer[{i}] \"{name}\"");
            if name.is_empty() {
                return Err(Error::invalid("ONNX-NAME", "an initialiser has no name").field(field()));
            }
            let (value, form) = self.tensor(&tensor).map_err(|e| within(e, &field()))?;
            let rest = carried::tensor_rest(&mut tensor, form, false);
            self.constant(&mut scope, &name, value, rest).map_err(|e| e.field(field()))?;
        }
        for (i, sparse) in proto.sparse_initializer.into_iter().enumerate() {
            let name = sparse.values.as_ref().and_then(|v| v.name.clone()).unwrap_or_default();
            let field = || format!("graph.sparse_initializer[{i}] \"{name}\"");
            if name.is_empty() {
                return Err(Error::invalid("ONNX-NAME", "an initialiser has no name").field(field()));
            }
            let value =
                elements::dense(&sparse, &self.payloads, self.limits).map_err(|e| within(e, &field()))?;
            self.sparse += 1;
            self.constant(&mut scope, &name, value, TensorProto::default()).map_err(|e| e.field(field()))?;
        }
        scope.graph.nodes.reserve(proto.node.len());
        for (i, node) in proto.node.into_iter().enumerate() {
            let name = node.name.as_ref().filter(|n| !n.is_empty());
            let label = name.or(node.output.iter().find(|o| !o.is_empty())).cloned().unwrap_or_default();
            let node = self
                .node(&mut scope, node)
                .map_err(|e| within(e.node(label.as_str()), &format!("graph.node[{i}]")))?;
            scope.graph.nodes.push(node);
        }
        seen.clear();
        for (i, info) in proto.output.into_iter().enumerate() {
            let field = || format!("graph.output[{i}]");
            let v = self.declare(&mut scope, info).map_err(|e| e.field(field()))?;
            if !seen.insert(v) {
                return Err(duplicate("two graph outputs have one name", scope.name(v)).field(field()));
            }
            scope.graph.outputs.push(v);
        }
        for (i, info) in proto.value_info.into_iter().enumerate() {
            let field = || format!("graph.value_info[{i}]");
            let v = self.declare(&mut scope, info).map_err(|e| e.field(field()))?;
            scope.carried.entry(v).or_default().listed = Some(i as u32);
        }
        let Scope { mut graph, carried } = scope;
        let mut defined: HashSet<ValueId> = graph.inputs.iter().copied().collect();
        defined.extend(graph.initializers.keys());
        defined.extend(graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten()));
        for (v, mut rest) in carried {
            rest.undefined = !defined.contains(&v);
            if let Some(value) = graph.values.get_mut(v.0 as usize) {
                value.carried = carried::pack(&rest);
            }
        }
        let edit = Edit::of(graph);
        if body { edit.commit_body() } else { edit.commit() }
    }

    /// The value of an `input`, `output` or `value_info` entry. The first declared type counts.
    fn declare(&mut self, scope: &mut Scope, info: ValueInfoProto) -> Result<ValueId> {
        let name = info.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            return Err(Error::invalid("ONNX-NAME", "a value has no name"));
        }
        let v = scope.value(name);
        let mut rest = ValueInfoProto {
            doc_string: info.doc_string,
            metadata_props: info.metadata_props,
            ..ValueInfoProto::default()
        };
        if let Some(proto) = info.r#type
            && scope.graph.values.get(v.0 as usize).is_some_and(|d| d.ty.is_none())
        {
            let (ty, exact) = self.ty(proto)?;
            rest.r#type = exact;
            if let Some(value) = scope.graph.values.get_mut(v.0 as usize) {
                value.ty = ty;
            }
        }
        if rest != ValueInfoProto::default() {
            scope.carried.entry(v).or_default().info.get_or_insert(rest);
        }
        Ok(v)
    }

    fn ty(&mut self, proto: TypeProto) -> Result<(Option<Type>, Option<TypeProto>)> {
        let (ty, negative) = carried::to_type(&proto);
        if let Some(Type::Tensor { shape: Some(shape), .. }) = &ty
            && shape.len() > self.limits.rank
        {
            return Err(Error::limit_exceeded("LIMIT", "the value has too many axes")
                .found(shape.len())
                .limit(self.limits.rank));
        }
        self.negative_dims += u64::from(negative);
        let same = ty.as_ref().map(carried::from_type).as_ref() == Some(&proto);
        Ok((ty, (!same).then_some(proto)))
    }

    fn constant(&mut self, scope: &mut Scope, name: &str, tensor: Tensor, rest: TensorProto) -> Result<()> {
        let v = scope.value(name);
        if scope.graph.initializers.insert(v, tensor).is_some() {
            return Err(duplicate("two initialisers have one name", name));
        }
        scope.graph.initializer_order.push(v);
        if rest != TensorProto::default() {
            scope.carried.entry(v).or_default().tensor = Some(rest);
        }
        Ok(())
    }

    /// The tensor, and the typed field that it is small enough to be written back to.
    fn tensor(&mut self, proto: &TensorProto) -> Result<(Tensor, Option<u64>)> {
        if proto.data_location == Some(DataLocation::External as i32) {
            let (dtype, shape) = elements::head(proto, self.limits)?;
            let inline = proto.raw_data.is_some()
                || !proto.payload.is_empty()
                || !(proto.float_data.is_empty()
                    && proto.int32_data.is_empty()
                    && proto.int64_data.is_empty())
                || !(proto.double_data.is_empty()
                    && proto.uint64_data.is_empty()
                    && proto.string_data.is_empty());
            if inline {
                return Err(Error::invalid(
                    "ONNX-DATA",
                    "the tensor holds data here and in an external file",
                )
                .field("data_location"));
            }
            let need = elements::need(dtype, &shape).ok_or_else(|| {
                Error::invalid("ONNX-DATA", "strings cannot be external data").field("data_location")
            })?;
            let region = self.external.region(proto, need)?;
            return Ok((Tensor::from_region(dtype, shape, region)?, None));
        }
        if proto.data_location.is_some_and(|l| l != DataLocation::Default as i32) {
            return Err(Error::invalid("ONNX-DATA", "data_location is 0 or 1")
                .field("data_location")
                .found(proto.data_location.unwrap_or_default()));
        }
        let (tensor, field) = elements::stored(proto, &self.payloads, self.limits)?;
        Ok((tensor, (field != elements::RAW && field != 6).then_some(field)))
    }

    fn node(&mut self, scope: &mut Scope, mut proto: NodeProto) -> Result<Node> {
        let attributes = std::mem::take(&mut proto.attribute);
        if attributes.len() > ATTRIBUTES {
            return Err(Error::limit_exceeded("LIMIT", "the node has too many attributes")
                .found(attributes.len())
                .limit(ATTRIBUTES));
        }
        let mut node = Node {
            name: proto.name.clone().unwrap_or_default(),
            domain: proto.domain.clone().unwrap_or_default(),
            op_type: proto.op_type.take().unwrap_or_default(),
            inputs: proto.input.iter().map(|n| (!n.is_empty()).then(|| scope.value(n))).collect(),
            outputs: proto.output.iter().map(|n| (!n.is_empty()).then(|| scope.value(n))).collect(),
            attributes: Attributes::new(),
            bodies: vec![],
            op: None,
            carried: Bytes::new(),
        };
        if node.op_type.is_empty() {
            return Err(Error::invalid("ONNX-OP", "the node has no operator").field("op_type"));
        }
        let mut rests = Vec::new();
        for mut attribute in attributes {
            let name = attribute.name.clone().unwrap_or_default();
            let field = || format!("attribute \"{name}\"");
            if node.attributes.get(&name).is_some() {
                return Err(duplicate("two attributes have one name", &name).field(field()));
            }
            let (value, tensor_rest) =
                self.attribute(&mut attribute, &mut node.bodies).map_err(|e| within(e, &field()))?;
            let rest = AttributeProto {
                doc_string: attribute.doc_string.take().filter(|_| !matches!(value, Attr::Opaque(_))),
                t: tensor_rest.map(Box::new),
                ..AttributeProto::default()
            };
            if rest != AttributeProto::default() {
                rests.push(AttributeProto { name: Some(name.clone()), ..rest });
            }
            node.attributes.set(&name, value);
        }
        node.carried = carried::pack(&carried::node_rest(&mut proto, rests));
        Ok(node)
    }

    fn attribute(
        &mut self,
        proto: &mut AttributeProto,
        bodies: &mut Vec<(String, Graph)>,
    ) -> Result<(Attr, Option<TensorProto>)> {
        let missing = |what: &str| Error::invalid("ONNX-ATTRIBUTE", format!("the attribute holds no {what}"));
        let ty = AttributeType::try_from(proto.r#type.unwrap_or(0)).unwrap_or(AttributeType::Undefined);
        let ty = if ty == AttributeType::Undefined { guess(proto) } else { ty };
        let referenced = proto.ref_attr_name.as_ref().is_some_and(|n| !n.is_empty());
        let strings = |v: &[Bytes]| v.iter().map(|b| b.to_vec()).collect();
        let attr = match ty {
            _ if referenced => self.opaque(proto)?,
            AttributeType::Float => Attr::Float(proto.f.unwrap_or_default()),
            AttributeType::Int => Attr::Int(proto.i.unwrap_or_default()),
            AttributeType::String => Attr::Str(proto.s.take().unwrap_or_default().to_vec()),
            AttributeType::Floats => Attr::Floats(std::mem::take(&mut proto.floats)),
            AttributeType::Ints => Attr::Ints(std::mem::take(&mut proto.ints)),
            AttributeType::Strings => Attr::Strs(strings(&proto.strings)),
            AttributeType::Tensor => {
                let mut tensor = proto.t.take().ok_or_else(|| missing("tensor"))?;
                let (value, form) = self.tensor(&tensor)?;
                let rest = carried::tensor_rest(&mut tensor, form, true);
                let rest = (rest != TensorProto::default()).then_some(rest);
                return Ok((Attr::Tensor(value), rest));
            }
            AttributeType::Graph => {
                let graph = proto.g.take().ok_or_else(|| missing("graph"))?;
                let name = proto.name.clone().unwrap_or_default();
                bodies.push((name, self.graph(*graph, true)?));
                Attr::Body(bodies.len() - 1)
            }
            _ => self.opaque(proto)?,
        };
        Ok((attr, None))
    }

    /// The attribute as it is encoded, its large tensors included.
    fn opaque(&mut self, proto: &mut AttributeProto) -> Result<Attr> {
        self.graph_lists += u64::from(!proto.graphs.is_empty());
        self.inline_attribute(proto)?;
        Ok(Attr::Opaque(proto.encode_to_vec().into()))
    }

    fn inline_function(&mut self, function: &mut FunctionProto) -> Result<()> {
        function.attribute_proto.iter_mut().try_for_each(|a| self.inline_attribute(a))?;
        let attributes = function.node.iter_mut().flat_map(|n| &mut n.attribute);
        attributes.into_iter().try_for_each(|a| self.inline_attribute(a))
    }

    fn inline_graph(&mut self, graph: &mut GraphProto) -> Result<()> {
        graph.initializer.iter_mut().try_for_each(|t| self.inline(t))?;
        graph.sparse_initializer.iter_mut().try_for_each(|s| self.inline_sparse(s))?;
        graph.node.iter_mut().flat_map(|n| &mut n.attribute).try_for_each(|a| self.inline_attribute(a))
    }

    fn inline_attribute(&mut self, a: &mut AttributeProto) -> Result<()> {
        a.t.iter_mut().map(|t| &mut **t).chain(&mut a.tensors).try_for_each(|t| self.inline(t))?;
        let sparse = a.sparse_tensor.iter_mut().map(|s| &mut **s).chain(&mut a.sparse_tensors);
        sparse.into_iter().try_for_each(|s| self.inline_sparse(s))?;
        a.g.iter_mut().map(|g| &mut **g).chain(&mut a.graphs).try_for_each(|g| self.inline_graph(g))
    }

    fn inline_sparse(&mut self, sparse: &mut SparseTensorProto) -> Result<()> {
        sparse.values.iter_mut().chain(&mut sparse.indices).try_for_each(|t| self.inline(t))
    }

    fn inline(&mut self, tensor: &mut TensorProto) -> Result<()> {
        if tensor.data_location == Some(DataLocation::External as i32) {
            return Err(Error::unsupported(
                "ONNX-CARRIED-EXTERNAL",
                "external data inside functions, training graphs and lists of tensors is not supported",
            )
            .field(format!("tensor \"{}\"", tensor.name.as_deref().unwrap_or_default())));
        }
        self.payloads.inline(tensor, &mut self.inline_budget)
    }
}

/// One graph in the making.
struct Scope {
    graph: Graph,
    carried: HashMap<ValueId, CarriedValue>,
}

impl Scope {
    fn value(&mut self, name: &str) -> ValueId {
        if let Some(v) = self.graph.by_name.get(name) {
            return *v;
        }
        let v = ValueId(self.graph.values.len() as u32);
        self.graph.by_name.insert(name.to_string(), v);
        self.graph.values.push(ValueDef { name: name.to_string(), ty: None, carried: Bytes::new() });
        v
    }

    fn name(&self, v: ValueId) -> &str {
        self.graph.value_name(v)
    }
}

fn duplicate(message: &str, name: &str) -> Error {
    Error::invalid("GRAPH-DUPLICATE", message.to_string())
        .found(format!("\"{name}\""))
        .hint("export the model again; names must be unique")
}

/// Puts the field that an error names, if it names one, inside `outer`.
fn within(e: Error, outer: &str) -> Error {
    match e.field_path() {
        Some(inner) => {
            let path = format!("{outer}.{inner}");
            e.at_field(path)
        }
        None => e.field(outer),
    }
}

/// The kind of an attribute whose type is not written, as before IR version 2.
fn guess(a: &AttributeProto) -> AttributeType {
    let kinds = [
        (a.f.is_some(), AttributeType::Float),
        (a.i.is_some(), AttributeType::Int),
        (a.s.is_some(), AttributeType::String),
        (a.t.is_some(), AttributeType::Tensor),
        (a.g.is_some(), AttributeType::Graph),
        (!a.floats.is_empty(), AttributeType::Floats),
        (!a.ints.is_empty(), AttributeType::Ints),
        (!a.strings.is_empty(), AttributeType::Strings),
    ];
    kinds.iter().find(|(there, _)| *there).map_or(AttributeType::Undefined, |(_, kind)| *kind)
}

fn opsets(model: &ModelProto, ir: i64, warnings: &mut Vec<String>) -> Result<Vec<(String, i64)>> {
    let mut out: Vec<(String, i64)> = Vec::new();
    for (i, import) in model.opset_import.iter().enumerate() {
        let domain = import.domain.clone().unwrap_or_default();
        let version = import.version.unwrap_or_default();
        let field = format!("opset_import[{i}] \"{domain}\"");
        if version < 1 {
            return Err(Error::invalid("ONNX-OPSET", "operator set versions start at 1")
                .field(field)
                .found(version));
        }
        let canonical = ops::canonical_domain(&domain);
        if out.iter().any(|(d, v)| ops::canonical_domain(d) == canonical && *v != version) {
            return Err(Error::invalid("ONNX-OPSET", "one operator set is imported in two versions")
                .field(field)
                .found(version));
        }
        if canonical.is_empty() && version > ops::LAST_OPSET {
            warnings.push(format!(
                "operator set {version} is newer than {}: its operators count as unknown",
                ops::LAST_OPSET
            ));
        }
        out.push((domain, version));
        if out.len() > 1000 {
            return Err(Error::limit_exceeded("LIMIT", "too many operator sets").limit(1000));
        }
    }
    if out.is_empty() {
        if ir >= 3 {
            return Err(Error::invalid("ONNX-OPSET", "the model imports no operator set")
                .field("opset_import")
                .hint("the file is cut off or was not written by an ONNX exporter"));
        }
        out.push((String::new(), 1));
    }
    Ok(out)
}

/// Names that one scope defines, and those around it.
struct Names<'a> {
    own: HashSet<&'a str>,
    outer: Option<Rc<Names<'a>>>,
}

impl<'a> Names<'a> {
    fn of(graph: &'a Graph, outer: Option<Rc<Names<'a>>>) -> Names<'a> {
        let outputs = graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten().copied());
        let all = graph.inputs.iter().copied().chain(graph.initializers.keys().copied()).chain(outputs);
        Names { own: all.map(|v| graph.value_name(v)).collect(), outer }
    }

    fn has(&self, name: &str) -> bool {
        let mut at = Some(self);
        while let Some(names) = at {
            if names.own.contains(name) {
                return true;
            }
            at = names.outer.as_deref();
        }
        false
    }
}

/// Every value that a body reads from outside exists there.
fn check_captures(graph: &Graph) -> Result<()> {
    if graph.nodes.iter().all(|n| n.bodies.is_empty()) {
        return Ok(());
    }
    let mut work = vec![(graph, Rc::new(Names::of(graph, None)))];
    while let Some((scope, visible)) = work.pop() {
        for (i, node) in scope.nodes.iter().enumerate() {
            for (attribute, body) in &node.bodies {
                let names = Rc::new(Names::of(body, Some(visible.clone())));
                let reads = body.nodes.iter().flat_map(|n| n.inputs.iter().flatten()).chain(&body.outputs);
                if let Some(v) = reads.into_iter().find(|v| !names.has(body.value_name(**v))) {
                    return Err(Error::invalid(
                        "GRAPH-DANGLING",
                        "a body reads a value that nothing defines",
                    )
                    .node(scope.label(i))
                    .field(format!("attribute \"{attribute}\""))
                    .found(format!("\"{}\"", body.value_name(*v))));
                }
                work.push((body, names));
            }
        }
    }
    Ok(())
}
