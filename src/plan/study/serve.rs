//! The child's end of a study: holds one model, its survey and scores, and answers.

use super::{Forecast, Question, Reply, Request, Scores, Study, StudyGroup};
use crate::analysis;
use crate::child::{Handler, Link};
use crate::error::{Error, Result};
use crate::formats;
use crate::graph::constants::Constants;
use crate::graph::coupling::Group;
use crate::graph::{Facts, Graph};
use crate::monitor::Monitor;
use crate::passes::prune::{Criterion, Preview, Survey};
use crate::plan::cost::{self, Class, DeviceFacts};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Name of the work among the child's handlers.
pub(super) const KIND: &str = "plan.study";
/// Quantiles of the scores of a group.
const QUANTILES: usize = 33;
/// Nodes by which a group is shown.
const NODES: usize = 8;

/// What a child of this program can do for this room.
pub fn handlers() -> Vec<Handler> {
    vec![Handler::stateful(KIND, |open: &mut Option<Open<'static>>, request: Request, link: &Link| {
        match (request, open.as_mut()) {
            (Request::Open(path, criterion), _) => {
                let path = PathBuf::from(std::ffi::OsString::from_vec(path));
                let (now, study) = Open::file(&path, criterion, link)?;
                *open = Some(now);
                Ok(Reply::Study(Box::new(study)))
            }
            (Request::Ask(question), Some(open)) => Ok(Reply::Forecast(Box::new(open.answer(&question)?))),
            (Request::Ask(_), None) => {
                Err(Error::internal("STUDY-OPEN", "no model is open").hint("report this as a bug"))
            }
        }
    })]
}

/// A model that is open.
pub(super) struct Open<'a> {
    preview: Preview<'a>,
    /// By node: what kind of work it is.
    classes: Vec<Class>,
    study: Study,
    /// Time of the model as it is, on the device that was asked for last.
    whole: Option<(DeviceFacts, f64)>,
}

impl Open<'static> {
    /// Reads and scores a model. It stays in memory until the process ends, which serves no other.
    fn file(path: &Path, criterion: Criterion, monitor: &dyn Monitor) -> Result<(Open<'static>, Study)> {
        monitor.phase("read the model", None);
        let opened = formats::load(path)?;
        let (format, file_bytes) = (opened.facts.format, opened.facts.total_bytes());
        let graph: &'static Graph = Box::leak(Box::new(opened.graph));
        monitor.phase("find what is coupled", None);
        let facts = graph.infer_noting(&|_| None, |_| None, &mut |_| Ok(()))?;
        let bound: &'static Facts =
            Box::leak(Box::new(analysis::bound(graph, &analysis::Options::default())?));
        let survey: &'static Survey = Box::leak(Box::new(Survey::of(graph, &facts, false)));
        let open = Open::of(graph, &facts, bound, survey, criterion, monitor)?;
        let study = Study { format: format.to_string(), file_bytes, ..open.study.clone() };
        Ok((Open { study: study.clone(), ..open }, study))
    }
}

impl<'a> Open<'a> {
    pub(super) fn of(
        graph: &'a Graph,
        facts: &Facts,
        bound: &'a Facts,
        survey: &'a Survey,
        criterion: Criterion,
        monitor: &dyn Monitor,
    ) -> Result<Open<'a>> {
        let mut preview = Preview::of(graph, facts, bound, survey, criterion, monitor)?;
        let constants = Constants::of(graph);
        let groups = survey.coupled().groups().iter();
        let groups = groups.map(|g| told(g, survey, &mut preview, &constants)).collect();
        let classes = (0..graph.nodes().len()).map(|i| {
            let node = graph.node(i);
            let weights = node.inputs.iter().flatten().filter_map(|v| constants.weight(*v));
            cost::class_of(&node.operator_name(), weights.map(|t| t.shape()))
        });
        let weights = || constants.weights().map(|(_, t)| t);
        let study = Study {
            criterion,
            groups,
            parameters: weights().map(|t| t.len() as u64).sum(),
            macs: preview.costs().macs(),
            macs_unknown: preview.costs().unknown(),
            weight_bytes: weights().map(|t| t.byte_len()).sum(),
            file_bytes: 0,
            format: "graph".into(),
            refusal: preview.refusal().map(Error::to_string),
        };
        Ok(Open { classes: classes.collect(), preview, study, whole: None })
    }

    pub(super) fn answer(&mut self, question: &Question) -> Result<Forecast> {
        let Question { settings, curves, device } = question;
        let before = device.as_ref().map(|device| self.before(device)).transpose()?.flatten();
        let cut = self.preview.cut(settings, curves)?;
        let after = device.as_ref().and_then(|device| roofline(&self.preview, &self.classes, device));
        let roofline_ms = before.zip(after);
        let named = settings.ratios.keys().chain(&settings.exclude);
        let numbers = named.filter_map(|name| name.strip_prefix("group ")?.parse::<usize>().ok());
        let numbers: Vec<usize> = numbers.filter(|n| *n < self.study.groups.len()).collect();
        let weight_bytes = self.study.weight_bytes.saturating_sub(cut.removed_bytes);
        Ok(Forecast {
            parameters: self.study.parameters.saturating_sub(cut.removed_parameters),
            whole_parameters: cut.whole_parameters,
            macs: cut.macs,
            weight_bytes,
            // Checkpoints become ONNX files with the weights as the graph holds them.
            file_bytes: match self.study.format.as_str() {
                "onnx" => self.study.file_bytes.saturating_sub(cut.removed_bytes),
                _ => weight_bytes,
            },
            roofline_ms,
            exact: cut.exact,
            addresses: numbers.into_iter().map(|n| (n, self.preview.address(n))).collect(),
            kept: cut.kept,
            stays: cut.stays,
            steps: cut.steps,
        })
    }
}

impl Open<'_> {
    /// Time of the model as it is.
    fn before(&mut self, device: &DeviceFacts) -> Result<Option<f64>> {
        if let Some((of, ms)) = &self.whole
            && of == device
        {
            return Ok(Some(*ms));
        }
        let units: Vec<usize> = self.study.groups.iter().map(|g| g.units).collect();
        self.preview.keep(&units)?;
        let ms = roofline(&self.preview, &self.classes, device);
        self.whole = ms.map(|ms| (device.clone(), ms));
        Ok(ms)
    }
}

/// Time of an inference with the units that stay now, by the roofline of each node.
fn roofline(preview: &Preview<'_>, classes: &[Class], device: &DeviceFacts) -> Option<f64> {
    let costs = preview.costs();
    // As for recommendations: where too little can be counted, nothing is said.
    if costs.macs() == 0 || costs.unknown() * 5 > classes.len() {
        return None;
    }
    let of = |(i, class): (usize, &Class)| {
        let (macs, bytes) = (costs.of_node(i).unwrap_or(0), costs.traffic(i).unwrap_or(0));
        cost::time_ms(*class, macs, bytes, device)
    };
    Some(classes.iter().enumerate().map(of).sum())
}

fn told(group: &Group, survey: &Survey, preview: &mut Preview<'_>, constants: &Constants<'_>) -> StudyGroup {
    let readers = &survey.readers()[group.id];
    let first = readers.iter().take(if readers.len() > NODES { NODES - 1 } else { NODES });
    let last = readers.last().filter(|_| readers.len() > NODES);
    StudyGroup {
        id: group.id,
        kind: group.kind,
        units: group.units,
        nodes: first.chain(last).cloned().collect(),
        readers: readers.len(),
        parameters_per_unit: group.parameters_per_unit(constants),
        macs_per_unit: preview.macs_per_unit(group.id),
        never: survey.never(group.id).map(String::from),
        scores: preview.scores(group.id).and_then(brief),
    }
}

fn brief(scores: &[f64]) -> Option<Scores> {
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let at = |i: usize| sorted[i * last / (QUANTILES - 1)];
    Some(Scores {
        quantiles: (0..QUANTILES).map(at).collect(),
        mean: scores.iter().sum::<f64>() / scores.len() as f64,
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
