//! The sample's graph: a residual net with batch normalisation for 8 x 8 digits, freshly initialised.
//! A seed enters; a graph in training mode and its parameters leave, or the same graph for inference.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tinsmith::error::Result;
use tinsmith::graph::{Edit, Graph, Node, Type, ValueId};
use tinsmith::ops::{Attr, Attributes, Dim};
use tinsmith::tensor::{DType, Tensor};

/// Channels of the three stages; each but the first halves height and width.
const WIDTHS: [usize; 3] = [32, 64, 96];
/// Residual blocks of a stage.
const BLOCKS: usize = 2;
/// Share of the old running statistic that a step keeps.
const MOMENTUM: f32 = 0.9;

/// A net in the making.
struct Net {
    edit: Edit,
    rng: ChaCha8Rng,
    parameters: Vec<ValueId>,
}

/// The graph in training mode and what of it is trained.
pub fn build(seed: u64) -> Result<(Graph, Vec<ValueId>)> {
    let mut net = Net {
        edit: Edit::new("digits", &[("", 17)]),
        rng: ChaCha8Rng::seed_from_u64(seed),
        parameters: vec![],
    };
    net.edit.header_mut().ir_version = 8;
    let shape = |tail: &[i64]| {
        let dims = std::iter::once(Dim::symbol("batch")).chain(tail.iter().map(|d| Dim::from(*d))).collect();
        Type::Tensor { dtype: DType::F32, shape: Some(dims) }
    };
    let image = net.edit.add_input("image", shape(&[1, 8, 8]));
    let mut x = net.conv("stem", image, (1, WIDTHS[0]), 3, 1)?;
    x = net.norm("stem", x, WIDTHS[0])?;
    x = net.relu("stem", x);
    let mut width = WIDTHS[0];
    for (stage, out) in WIDTHS.into_iter().enumerate() {
        for block in 0..BLOCKS {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            x = net.block(&format!("stage{}.block{}", stage + 1, block + 1), x, (width, out), stride)?;
            width = out;
        }
    }
    let pooled = net.edit.add_op("GlobalAveragePool", &[x], Attributes::new(), "pool");
    let flat = net.edit.add_op("Flatten", &[pooled], Attributes::new().with("axis", Attr::Int(1)), "flatten");
    let weight = net.weight("head.weight", vec![10, width], width)?;
    let bias = net.constant("head.bias", vec![0.0; 10])?;
    let attributes = Attributes::new().with("transB", Attr::Int(1));
    let logits = net.edit.add_op("Gemm", &[flat, weight, bias], attributes, "logits");
    net.edit.set_type(logits, Some(shape(&[10])));
    net.edit.add_output(logits);
    Ok((net.edit.commit()?, net.parameters))
}

/// The same graph with running statistics in place of those of the batch.
pub fn for_inference(trained: &Graph) -> Result<Graph> {
    let mut edit = trained.edit();
    for (i, node) in trained.nodes().iter().enumerate().filter(|(_, n)| n.is("BatchNormalization")) {
        debug_assert!(node.outputs.len() == 3);
        let node = edit.node_mut(i);
        node.attributes.remove("training_mode");
        node.attributes.remove("momentum");
        node.outputs.truncate(1);
    }
    edit.commit()
}

impl Net {
    /// Two convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes.
    fn block(&mut self, name: &str, x: ValueId, widths: (usize, usize), stride: i64) -> Result<ValueId> {
        let out = widths.1;
        let mut y = self.conv(&format!("{name}.1"), x, widths, 3, stride)?;
        y = self.norm(&format!("{name}.1"), y, out)?;
        y = self.relu(&format!("{name}.1"), y);
        y = self.conv(&format!("{name}.2"), y, (out, out), 3, 1)?;
        y = self.norm(&format!("{name}.2"), y, out)?;
        let shortcut = if widths.0 != out || stride != 1 {
            let name = format!("{name}.shortcut");
            let y = self.conv(&name, x, widths, 1, stride)?;
            self.norm(&name, y, out)?
        } else {
            x
        };
        let sum = self.edit.add_op("Add", &[y, shortcut], Attributes::new(), &format!("{name}.add"));
        Ok(self.relu(name, sum))
    }

    fn conv(
        &mut self,
        name: &str,
        x: ValueId,
        (from, to): (usize, usize),
        size: usize,
        stride: i64,
    ) -> Result<ValueId> {
        let weight =
            self.weight(&format!("{name}.conv.weight"), vec![to, from, size, size], from * size * size)?;
        let (size, pad) = (size as i64, size as i64 / 2);
        let attributes = Attributes::new()
            .with("kernel_shape", Attr::Ints(vec![size, size]))
            .with("pads", Attr::Ints(vec![pad; 4]))
            .with("strides", Attr::Ints(vec![stride, stride]));
        Ok(self.edit.add_op("Conv", &[x, weight], attributes, &format!("{name}.conv")))
    }

    fn norm(&mut self, name: &str, x: ValueId, width: usize) -> Result<ValueId> {
        let name = format!("{name}.norm");
        let scale = self.constant(&format!("{name}.scale"), vec![1.0; width])?;
        let shift = self.constant(&format!("{name}.shift"), vec![0.0; width])?;
        let mean = Tensor::from_vec(vec![width], vec![0f32; width])?;
        let variance = Tensor::from_vec(vec![width], vec![1f32; width])?;
        let mean = self.edit.add_initializer(&format!("{name}.mean"), mean);
        let variance = self.edit.add_initializer(&format!("{name}.variance"), variance);
        let y = self.edit.add_value(&name, None);
        let next = ["mean", "variance"].map(|s| self.edit.add_value(&format!("{name}.next_{s}"), None));
        let inputs = [x, scale, shift, mean, variance].map(Some).to_vec();
        let attributes =
            Attributes::new().with("training_mode", Attr::Int(1)).with("momentum", Attr::Float(MOMENTUM));
        let outputs = vec![Some(y), Some(next[0]), Some(next[1])];
        self.edit.add_node(Node::new("BatchNormalization", inputs, outputs).named(name).with(attributes));
        Ok(y)
    }

    fn relu(&mut self, name: &str, x: ValueId) -> ValueId {
        self.edit.add_op("Relu", &[x], Attributes::new(), &format!("{name}.relu"))
    }

    /// A weight drawn uniformly with the variance 2 / `inputs` (He et al. 2015, arXiv 1502.01852).
    fn weight(&mut self, name: &str, shape: Vec<usize>, inputs: usize) -> Result<ValueId> {
        let bound = (6.0 / inputs as f32).sqrt();
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| self.rng.random_range(-bound..bound)).collect();
        let id = self.edit.add_initializer(name, Tensor::from_vec(shape, values)?);
        self.parameters.push(id);
        Ok(id)
    }

    fn constant(&mut self, name: &str, values: Vec<f32>) -> Result<ValueId> {
        let id = self.edit.add_initializer(name, Tensor::from_vec(vec![values.len()], values)?);
        self.parameters.push(id);
        Ok(id)
    }
}
