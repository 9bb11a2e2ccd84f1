//! State of the Plan tab: goal, device, ranked proposals.

use super::app::Failure;
use super::list::{List, Scroll};
use super::quantised::Sheets;
use crate::hardware::Device;
use crate::plan::{DataSpec, Goal, Proposal, Recipe, Recommendation};

/// What proposals are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// As ranked.
    #[default]
    Rank,
    /// Predicted size.
    Size,
    /// Predicted latency.
    Latency,
    /// Expected loss of quality.
    Quality,
    /// Time to produce.
    Cost,
}

impl Order {
    /// The next one.
    pub fn next(self) -> Order {
        match self {
            Order::Rank => Order::Size,
            Order::Size => Order::Latency,
            Order::Latency => Order::Quality,
            Order::Quality => Order::Cost,
            Order::Cost => Order::Rank,
        }
    }
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Order::Rank => "rank",
            Order::Size => "size",
            Order::Latency => "latency",
            Order::Quality => "quality",
            Order::Cost => "cost",
        }
    }
}

/// A recommendation with the device that it is for.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// The device, with the figures that the prediction assumes.
    pub device: Device,
    /// What is recommended, what was refused, and what to know.
    pub recommendation: Recommendation,
}

/// The tab.
#[derive(Debug, Default)]
pub struct PlanTab {
    /// Gates.
    pub goal: Goal,
    /// Data for training, calibration and evaluation.
    pub data: DataSpec,
    /// Latency of the model on this machine that the answer was asked with.
    pub measured_ms: Option<f64>,
    /// Device profiles.
    pub devices: Vec<String>,
    /// The answer, as it came.
    pub ranked: Option<Ranked>,
    /// Rows: indices of proposals.
    pub rows: Vec<usize>,
    /// Order.
    pub order: Order,
    /// Reversed.
    pub reverse: bool,
    /// Selection.
    pub list: List,
    /// Proposals that a person planned, newest first; their rank is 0.
    pub own: Vec<Proposal>,
    /// Newest request.
    pub generation: u64,
    /// A request is under way.
    pub loading: bool,
    /// Why there are no proposals.
    pub failure: Option<Failure>,
    /// Position in the reasons.
    pub why: Scroll,
    /// Tables of what the quantise step did when it ran last.
    pub sheets: Sheets,
}

impl PlanTab {
    /// A new answer.
    pub fn set(&mut self, mut ranked: Ranked) {
        ranked.recommendation.proposals.splice(0..0, self.own.iter().cloned());
        self.ranked = Some(ranked);
        self.loading = false;
        self.failure = None;
        self.list = List::default();
        self.why = Scroll::default();
        self.refresh();
    }

    /// Sorts the rows anew; the selected proposal stays selected.
    pub fn refresh(&mut self) {
        let kept = self.rows.get(self.list.selected).copied();
        let all = self.proposals();
        let key = |i: usize| -> f64 {
            let p = &all[i];
            match self.order {
                Order::Rank => p.rank as f64,
                Order::Size => p.predicted_file_bytes as f64,
                Order::Latency => p.predicted_latency_ms.map_or(f64::INFINITY, |l| l.0),
                Order::Quality => p.expected_quality_drop.1,
                Order::Cost => p.cost_seconds,
            }
        };
        let mut rows: Vec<usize> = (0..all.len()).collect();
        rows.sort_by(|a, b| key(*a).total_cmp(&key(*b)).then(a.cmp(b)));
        if self.reverse {
            rows.reverse();
        }
        self.rows = rows;
        if let Some(at) = kept.and_then(|k| self.rows.iter().position(|r| *r == k)) {
            self.list.selected = at;
        }
        self.list.clamp(self.rows.len());
    }

    /// Puts a proposal that a person planned before the others, in place of one of its name, and selects it.
    pub fn add(&mut self, proposal: Proposal) {
        self.own.retain(|p| p.name != proposal.name);
        self.own.insert(0, proposal);
        if let Some(ranked) = &mut self.ranked {
            let all = &mut ranked.recommendation.proposals;
            all.retain(|p| p.rank > 0);
            all.splice(0..0, self.own.iter().cloned());
        }
        self.rows.clear();
        self.refresh();
        self.list.selected = self.rows.iter().position(|r| *r == 0).unwrap_or(0);
        self.why = Scroll::default();
    }

    /// Takes away a proposal that a person planned, and selects the one that is like it.
    pub fn remove(&mut self, like: impl Fn(&Proposal) -> bool) {
        self.own.retain(|p| !like(p));
        if let Some(ranked) = &mut self.ranked {
            ranked.recommendation.proposals.retain(|p| p.rank > 0 || !like(p));
        }
        self.rows.clear();
        self.refresh();
        let all = self.proposals();
        self.list.selected = self.rows.iter().position(|r| like(&all[*r])).unwrap_or(0);
    }

    /// Forgets the answer.
    pub fn clear(&mut self) {
        self.ranked = None;
        self.refresh();
    }

    /// Ranked proposals.
    pub fn proposals(&self) -> &[Proposal] {
        self.ranked.as_ref().map_or(&[], |r| &r.recommendation.proposals)
    }

    /// The selected proposal.
    pub fn selected(&self) -> Option<&Proposal> {
        self.proposals().get(*self.rows.get(self.list.selected)?)
    }

    /// Takes the next device profile.
    pub fn next_device(&mut self) {
        let now = self.goal.device.as_deref().unwrap_or("host");
        let at = self.devices.iter().position(|d| d == now).map_or(0, |i| i + 1);
        self.goal.device = self.devices.get(at % self.devices.len().max(1)).cloned();
    }
}

/// The command line that runs a recipe; `e` writes the file that it names.
pub fn command(recipe: &Recipe) -> String {
    format!("tinsmith run {} --detach", quoted(&format!("{}.toml", file_stem(&recipe.name))))
}

/// A name made fit for a file.
pub fn file_stem(name: &str) -> String {
    let stem: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+') { c } else { '-' })
        .take(80)
        .collect();
    if stem.trim_matches(['.', '-']).is_empty() { "recipe".into() } else { stem }
}

/// Text as one word of a shell.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}
