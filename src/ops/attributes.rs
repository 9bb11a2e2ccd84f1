//! Attributes of a node, neutral to the file format. They are the truth that is written back; the
//! typed operator is parsed from them.

use crate::error::{Error, Result};
use crate::tensor::Tensor;
use bytes::Bytes;

/// One attribute value.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Attr {
    Int(i64),
    Float(f32),
    Str(Vec<u8>),
    Tensor(Tensor),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strs(Vec<Vec<u8>>),
    /// The n-th body of the node (`graph::Node::bodies`).
    Body(usize),
    /// Anything else, as the encoded attribute of the file.
    Opaque(Bytes),
}

/// Attributes in file order, unique by name.
#[derive(Debug, Clone, Default)]
pub struct Attributes(Vec<(String, Attr)>, Option<usize>);

impl Attributes {
    /// None.
    pub fn new() -> Attributes {
        Attributes::default()
    }
    /// The same with `name` set (replaced in place, or appended).
    pub fn with(mut self, name: &str, value: Attr) -> Attributes {
        self.set(name, value);
        self
    }
    /// The same, with the number of outputs that the node has (Split without sizes needs it).
    pub fn for_outputs(mut self, n: usize) -> Attributes {
        self.1 = Some(n);
        self
    }
    /// The number of outputs that the node has, where it is told.
    pub fn outputs(&self) -> Option<usize> {
        self.1
    }
    /// Sets `name`, in place or appended.
    pub fn set(&mut self, name: &str, value: Attr) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, v)) => *v = value,
            None => self.0.push((name.to_string(), value)),
        }
    }
    /// Removes `name`.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| n != name);
    }
    /// The attribute, if present.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }
    /// All in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Attr)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v))
    }
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn wrong(name: &str, wanted: &str) -> Error {
        Error::invalid("ATTR-TYPE", format!("attribute is not {wanted}")).field(format!("attribute {name}"))
    }

    /// An integer, or `default`.
    pub fn int(&self, name: &str, default: i64) -> Result<i64> {
        Ok(self.opt_int(name)?.unwrap_or(default))
    }
    /// An integer, if present.
    pub fn opt_int(&self, name: &str) -> Result<Option<i64>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Int(v)) => Ok(Some(*v)),
            Some(_) => Err(Self::wrong(name, "an integer")),
        }
    }
    /// A float, or `default`.
    pub fn float(&self, name: &str, default: f32) -> Result<f32> {
        match self.get(name) {
            None => Ok(default),
            Some(Attr::Float(v)) => Ok(*v),
            Some(_) => Err(Self::wrong(name, "a float")),
        }
    }
    /// A UTF-8 string, or `default`.
    pub fn str(&self, name: &str, default: &str) -> Result<String> {
        match self.get(name) {
            None => Ok(default.to_string()),
            Some(Attr::Str(v)) => String::from_utf8(v.clone()).map_err(|_| Self::wrong(name, "UTF-8 text")),
            Some(_) => Err(Self::wrong(name, "a string")),
        }
    }
    /// Integers, if present.
    pub fn ints(&self, name: &str) -> Result<Option<Vec<i64>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Ints(v)) => Ok(Some(v.clone())),
            // Some exporters write an empty list without its type, which reads as empty floats.
            Some(Attr::Floats(v)) if v.is_empty() => Ok(Some(vec![])),
            Some(_) => Err(Self::wrong(name, "a list of integers")),
        }
    }
    /// Floats, if present.
    pub fn floats(&self, name: &str) -> Result<Option<Vec<f32>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Floats(v)) => Ok(Some(v.clone())),
            Some(_) => Err(Self::wrong(name, "a list of floats")),
        }
    }
    /// UTF-8 strings, if present.
    pub fn strs(&self, name: &str) -> Result<Option<Vec<String>>> {
        let text = |v: &Vec<u8>| String::from_utf8(v.clone()).map_err(|_| Self::wrong(name, "UTF-8 text"));
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Strs(v)) => v.iter().map(text).collect::<Result<_>>().map(Some),
            Some(Attr::Floats(v)) if v.is_empty() => Ok(Some(vec![])),
            Some(_) => Err(Self::wrong(name, "a list of strings")),
        }
    }
    /// A tensor, if present.
    pub fn tensor(&self, name: &str) -> Result<Option<&Tensor>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Tensor(v)) => Ok(Some(v)),
            Some(_) => Err(Self::wrong(name, "a tensor")),
        }
    }
}
