//! Vision transformers: sizes enter as a [`Vision`], a graph over `pixel_values` leaves. Norms stand before
//! attention and MLP.

use super::encoder::{attention, first_token, mlp};
use super::names::Role;
use super::net::{Activation, Net, Norm};
use super::weights::Wanted;
use crate::error::Result;
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::DType;

/// An image encoder (Dosovitskiy et al. 2020, arXiv 2010.11929).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Vision {
    pub(super) width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) mlp_width: usize,
    pub(super) image: (usize, usize),
    pub(super) patch: (usize, usize),
    pub(super) channels: usize,
    pub(super) eps: f64,
    pub(super) activation: Activation,
    pub(super) classes: Option<usize>,
}

impl Vision {
    /// Puts the whole model into `net`.
    pub(super) fn build(&self, net: &mut Net<'_>) -> Result<()> {
        let batch = Dim::symbol("batch");
        let (w, norm) = (self.width, Norm::Layer { eps: self.eps });
        let shape = [batch.clone(), self.channels.into(), self.image.0.into(), self.image.1.into()];
        let pixels = net.input("pixel_values", DType::F32, &shape);
        let patches = (self.image.0 / self.patch.0) * (self.image.1 / self.patch.1);
        let kernel = [w, self.channels, self.patch.0, self.patch.1];
        let kernel = net.weights.need(Role::Patches, 0, ".weight", &kernel)?;
        let kernel = net.weight(kernel);
        let bias = net.weights.find(Role::Patches, 0, ".bias", &[w])?.map(|b| net.weight(b));
        let steps = vec![self.patch.0 as i64, self.patch.1 as i64];
        let attributes = Attributes::new()
            .with("kernel_shape", Attr::Ints(steps.clone()))
            .with("strides", Attr::Ints(steps));
        let inputs: Vec<_> = [Some(pixels), Some(kernel), bias].into_iter().flatten().collect();
        let x = net.op_with("Conv", &inputs, attributes, "embedding");
        let shape = net.ints(&[0, w as i64, patches as i64])?;
        let x = net.op("Reshape", &[x, shape], "embedding.flat");
        let perm = Attributes::new().with("perm", Attr::Ints(vec![0, 2, 1]));
        let x = net.op_with("Transpose", &[x], perm, "embedding.patches");
        let class = net.weights.need(Role::ClassToken, 0, "", &[1, 1, w])?;
        let class = net.weight(class);
        let size =
            net.op_with("Shape", &[pixels], Attributes::new().with("end", Attr::Int(1)), "sizes.batch");
        let rest = net.ints(&[1, w as i64])?;
        let axis = |n| Attributes::new().with("axis", Attr::Int(n));
        let size = net.op_with("Concat", &[size, rest], axis(0), "embedding.class_shape");
        let class = net.op("Expand", &[class, size], "embedding.class");
        let x = net.op_with("Concat", &[class, x], axis(1), "embedding.tokens");
        let places = net.weights.need(Role::Positions, 0, "", &[1, patches + 1, w])?;
        let places = net.weight(places);
        let mut x = net.op("Add", &[x, places], "embedding.placed");
        for i in 0..self.layers {
            let at = |part: &str| format!("layers.{i}.{part}");
            let h = net.norm(x, norm, Role::AttentionNorm, i, w, &at("attention_norm"))?;
            let h = attention(net, h, i, w, self.heads, None)?;
            x = net.op("Add", &[h, x], &at("attention_residual"));
            let h = net.norm(x, norm, Role::MlpNorm, i, w, &at("mlp_norm"))?;
            let h = mlp(net, h, i, (w, self.mlp_width), self.activation)?;
            x = net.op("Add", &[h, x], &at("mlp_residual"));
        }
        let x = net.norm(x, norm, Role::FinalNorm, 0, w, "last_hidden_state")?;
        if let Some(classes) = self.classes {
            let first = first_token(net, x, "head.first")?;
            let logits = net.linear(first, Wanted::new(Role::Head, 0, (w, classes)), "logits")?;
            net.output(logits, DType::F32, &[batch.clone(), classes.into()]);
        }
        net.output(x, DType::F32, &[batch, (patches + 1).into(), w.into()]);
        Ok(())
    }
}
