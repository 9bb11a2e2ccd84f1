//! Forms of the map: one ratio, and the settings of the planned cut.

use super::{Outcome, edit};
use crate::passes::prune::{Criterion, Repair, Scope, Settings};
use crossterm::event::{KeyCode, KeyEvent};
use tui_input::Input;

/// A ratio to be typed.
#[derive(Debug)]
pub struct RatioForm {
    /// Of what.
    pub what: String,
    /// What was typed.
    pub input: Input,
    /// What is wrong with it.
    pub wrong: Option<String>,
}

impl RatioForm {
    /// The form with the ratio as it is.
    pub fn new(what: String, now: Option<f64>) -> RatioForm {
        RatioForm { what, input: Input::new(now.map_or(String::new(), percent)), wrong: None }
    }

    pub(super) fn key(&mut self, key: &KeyEvent) -> Outcome {
        match key.code {
            KeyCode::Enter => match ratio(self.input.value()) {
                Ok(ratio) => return Outcome::Ratio(ratio),
                Err(wrong) => self.wrong = Some(wrong),
            },
            _ if edit(&mut self.input, key) => self.wrong = None,
            _ => {}
        }
        Outcome::Stay
    }
}

fn percent(ratio: f64) -> String {
    ((ratio * 1e6).round() / 1e4).to_string()
}

/// `30`, `30 %` and `0.3` are three tenths; nothing is no ratio.
fn ratio(text: &str) -> Result<Option<f64>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let number = text.trim_end_matches(['%', ' ']).replace(',', ".");
    let part = match number.parse::<f64>() {
        Ok(v) if text.ends_with('%') || v >= 1.0 => v / 100.0,
        Ok(v) => v,
        Err(_) => f64::NAN,
    };
    if (0.0..1.0).contains(&part) {
        Ok(Some(part))
    } else {
        Err("a percentage from 0, below 100; or nothing".into())
    }
}

/// Label and hint of each field of [`CutForm`].
pub const CUT_FIELDS: [(&str, &str); 7] = [
    ("Ratio", "% of the prunable parameters"),
    ("Criterion", "Left and Right change it"),
    ("Spread", ""),
    ("Repair", ""),
    ("Round to", "counts stay multiples of this"),
    ("Keep at least", "% of the units of each group"),
    ("Calibration", "data, such as text:corpus.txt or digits:train#0..256"),
];

const SCOPES: [(&str, Scope); 3] = [
    ("layer: the same part of every group", Scope::Layer),
    ("global: by score over all groups", Scope::Global),
    ("sensitivity: where the loss rises least", Scope::Sensitivity),
];
const REPAIRS: [(&str, Repair); 3] = [
    ("none", Repair::None),
    ("bias: means of what is gone", Repair::Bias),
    ("ridge: weights fitted on calibration data", Repair::Ridge),
];

/// The settings of the planned cut.
#[derive(Debug)]
pub struct CutForm {
    settings: Settings,
    /// Fields as typed; those that are chosen are not.
    pub inputs: [Input; 7],
    /// Field in front.
    pub field: usize,
    /// What is wrong with a field.
    pub wrong: Option<String>,
}

impl CutForm {
    /// The form with the settings as they are.
    pub fn new(settings: &Settings, calibration: Option<String>) -> CutForm {
        let text = |v: String| Input::new(v);
        CutForm {
            settings: settings.clone(),
            inputs: [
                text(percent(settings.ratio)),
                text(String::new()),
                text(String::new()),
                text(String::new()),
                text(settings.round_to.to_string()),
                text(percent(settings.min_keep)),
                text(calibration.unwrap_or_default()),
            ],
            field: 0,
            wrong: None,
        }
    }

    /// What stands in a field that is chosen; `None` for fields that are typed.
    pub fn chosen(&self, field: usize) -> Option<String> {
        let s = &self.settings;
        Some(match field {
            1 => {
                let data = if s.criterion.needs_data() { ", looks at data" } else { "" };
                format!("{}{data}", s.criterion)
            }
            2 => SCOPES.iter().find(|(_, v)| *v == s.scope)?.0.to_string(),
            3 => REPAIRS.iter().find(|(_, v)| *v == s.repair)?.0.to_string(),
            _ => return None,
        })
    }

    /// The field that takes text now.
    pub(super) fn typed(&mut self) -> Option<&mut Input> {
        self.chosen(self.field).is_none().then(|| &mut self.inputs[self.field])
    }

    pub(super) fn key(&mut self, key: &KeyEvent) -> Outcome {
        let fields = CUT_FIELDS.len();
        match key.code {
            KeyCode::Up | KeyCode::BackTab => self.field = (self.field + fields - 1) % fields,
            KeyCode::Down | KeyCode::Tab => self.field = (self.field + 1) % fields,
            KeyCode::Left if self.chosen(self.field).is_some() => self.choose(-1),
            KeyCode::Right | KeyCode::Char(' ') if self.chosen(self.field).is_some() => self.choose(1),
            KeyCode::Enter => match self.settings() {
                Ok((settings, calibration)) => return Outcome::Cut(Box::new(settings), calibration),
                Err((field, wrong)) => {
                    self.field = field;
                    self.wrong = Some(wrong);
                }
            },
            _ => {
                if let Some(input) = self.typed()
                    && edit(input, key)
                {
                    self.wrong = None;
                }
            }
        }
        Outcome::Stay
    }

    fn choose(&mut self, by: isize) {
        fn other<T: Copy + PartialEq>(all: &[(&str, T)], now: T, by: isize) -> T {
            let at = all.iter().position(|(_, v)| *v == now).unwrap_or(0) as isize;
            all[(at + by).rem_euclid(all.len() as isize) as usize].1
        }
        let s = &mut self.settings;
        match self.field {
            1 => {
                let units: Vec<(&str, Criterion)> =
                    Criterion::NAMES.into_iter().filter(|(_, c)| !c.removes_blocks()).collect();
                s.criterion = other(&units, s.criterion, by);
            }
            2 => s.scope = other(&SCOPES, s.scope, by),
            3 => s.repair = other(&REPAIRS, s.repair, by),
            _ => {}
        }
    }

    /// The settings as typed, with the calibration data; or the field that is wrong and why.
    fn settings(&self) -> Result<(Settings, Option<String>), (usize, String)> {
        let text = |field: usize| self.inputs[field].value().trim();
        let part = |field: usize| -> Result<f64, (usize, String)> {
            let wrong = |e| (field, format!("{}: {e}", CUT_FIELDS[field].0));
            Ok(ratio(text(field)).map_err(wrong)?.unwrap_or(0.0))
        };
        let round_to = match text(4).parse::<usize>() {
            Ok(n @ 1..=65_536) => n,
            _ => return Err((4, format!("{}: a whole number from 1", CUT_FIELDS[4].0))),
        };
        let calibration = match text(6) {
            "" => None,
            spec => match crate::data::Spec::parse(spec) {
                Ok(_) => Some(spec.to_string()),
                Err(e) => return Err((6, format!("{}: {}", CUT_FIELDS[6].0, e.message()))),
            },
        };
        let settings = Settings { ratio: part(0)?, min_keep: part(5)?, round_to, ..self.settings.clone() };
        Ok((settings, calibration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_percentages_or_parts() {
        assert_eq!(ratio("30"), Ok(Some(0.3)));
        assert_eq!(ratio(" 12,5 % "), Ok(Some(0.125)));
        assert_eq!(ratio("0.3"), Ok(Some(0.3)));
        assert_eq!(ratio("0.5%"), Ok(Some(0.005)));
        assert_eq!(ratio("0"), Ok(Some(0.0)));
        assert_eq!(ratio(""), Ok(None));
        for wrong in ["100", "-3", "x", "%", "nan"] {
            assert!(ratio(wrong).is_err(), "{wrong}");
        }
    }
}
