//! Layers that a recipe's quantise step keeps in float: asked about and changed by name, everything else as it is.

use super::{Recipe, Step};
use crate::error::{Error, Result};
use crate::passes::matches;
use toml::Value;

/// The setting that names them.
const EXCLUDE: &str = "exclude";
/// Before the number of layers in the name of a recipe that keeps some.
const MARK: &str = "-float";

impl Recipe {
    /// Place of the step that quantises.
    pub fn quantises_at(&self) -> Option<usize> {
        self.steps.iter().position(|s| s.pass == "quantize")
    }

    /// Patterns of the nodes that the quantise step keeps in float.
    pub fn in_float(&self) -> Vec<String> {
        self.quantises_at().map_or(Vec::new(), |at| excluded(&self.steps[at]))
    }

    /// The recipe with `layer` kept in float, or quantised again where that was asked for; and which of both. Its
    /// name tells how many layers are kept.
    ///
    /// # Errors
    /// `Usage` where nothing is quantised, or where a pattern keeps other nodes in float along with the layer.
    pub fn toggled(&self, layer: &str) -> Result<(Recipe, bool)> {
        let at = self.quantises_at().ok_or_else(|| {
            Error::usage("FLOAT-STEP", "the recipe quantises nothing")
                .hint("choose a recipe with a quantize step")
        })?;
        let mut patterns = self.in_float();
        let exact = format!("={layer}");
        let kept = !patterns.contains(&exact);
        if let Some(wide) = patterns.iter().find(|p| **p != exact && matches(p, layer)) {
            return Err(Error::usage(
                "FLOAT-PATTERN",
                "a pattern keeps the layer in float, others with it perhaps",
            )
            .field(format!("step[{at}].exclude"))
            .found(wide)
            .hint("change it in the recipe file"));
        }
        patterns.retain(|p| *p != exact);
        if kept {
            patterns.push(exact);
        }
        let mut recipe = self.clone();
        let settings = &mut recipe.steps[at].settings;
        recipe.name = plain(&self.name).to_string();
        if patterns.is_empty() {
            settings.remove(EXCLUDE);
        } else {
            recipe.name += &format!("{MARK}{}", patterns.len());
            settings.insert(EXCLUDE.into(), Value::Array(patterns.into_iter().map(Value::from).collect()));
        }
        Ok((recipe, kept))
    }

    /// Whether another recipe differs in nothing but its name and the layers that it keeps in float, and in what
    /// it is measured by.
    pub fn alike_but_in_float(&self, other: &Recipe) -> bool {
        let bare = |r: &Recipe| -> Vec<Step> {
            let mut steps = r.steps.clone();
            steps.iter_mut().filter(|s| s.pass == "quantize").for_each(|s| drop(s.settings.remove(EXCLUDE)));
            steps
        };
        self.quantises_at().is_some() && bare(self) == bare(other)
    }
}

fn excluded(step: &Step) -> Vec<String> {
    let names = step.settings.get(EXCLUDE).and_then(Value::as_array);
    names.into_iter().flatten().filter_map(|v| v.as_str().map(String::from)).collect()
}

/// A name without the number of layers.
fn plain(name: &str) -> &str {
    match name.rsplit_once(MARK) {
        Some((plain, n)) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => plain,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_kept_and_given_back_by_the_same_call() {
        let mut recipe = Recipe::new("small", "m.onnx");
        assert_eq!(recipe.toggled("a").unwrap_err().code(), "FLOAT-STEP");
        recipe.steps = vec![Step::new("optimize"), Step::new("quantize").with("exclude", vec!["head*"])];
        let (one, kept) = recipe.toggled("layer.1").unwrap();
        assert_eq!(
            (one.name.as_str(), kept, one.in_float()),
            ("small-float2", true, vec!["head*".into(), "=layer.1".into()])
        );
        assert!(one.alike_but_in_float(&recipe) && recipe.alike_but_in_float(&one) && one != recipe);
        // Its name is a part of another layer's, which is another layer all the same.
        let (two, kept) = one.toggled("layer.11").unwrap();
        assert_eq!((two.in_float().len(), kept), (3, true));
        let (back, kept) = two.toggled("layer.1").unwrap();
        assert_eq!(
            (back.name.as_str(), kept, back.in_float()),
            ("small-float2", false, vec!["head*".into(), "=layer.11".into()])
        );
        assert_eq!(one.toggled("head.out").unwrap_err().code(), "FLOAT-PATTERN");
        let other = Recipe { steps: vec![Step::new("quantize")], ..recipe.clone() };
        assert!(!other.alike_but_in_float(&recipe));
        let one = Recipe { steps: vec![Step::new("quantize")], ..recipe }.toggled("x").unwrap().0;
        assert_eq!(one.toggled("x").unwrap(), (Recipe { name: "small".into(), ..other }, false));
    }
}
