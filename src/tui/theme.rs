//! Colours, glyph set and what the terminal can show. The environment enters as values; styles by role
//! leave. A state is always a word too, so that nothing is lost where there is no colour.

use ratatui::style::{Color, Modifier, Style};

/// When colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ColorChoice {
    /// Where the terminal has them and `NO_COLOR` is not set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How many colours the terminal shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// None: weight, underline and reverse only.
    None,
    /// The terminal's own sixteen.
    Ansi16,
    /// The fixed palette of 256.
    Indexed,
    /// 24 bits.
    True,
}

/// Facts about the terminal that change how the workbench looks and behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Theme.
    pub theme: ThemeName,
    /// Colours.
    pub depth: Depth,
    /// Only ASCII characters.
    pub ascii: bool,
    /// The session is remote: mouse off, fewer frames, nothing that moves.
    pub ssh: bool,
}

/// A shipped theme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThemeName {
    /// The terminal's own sixteen colours.
    Auto,
    /// Fixed colours for a dark ground.
    Dark,
    /// Fixed colours for a light ground.
    Light,
    /// No colours.
    Mono,
}

impl ThemeName {
    /// The theme of this name, as in the settings.
    pub fn parse(text: &str) -> Option<ThemeName> {
        Some(match text {
            "auto" | "auto16" => ThemeName::Auto,
            "dark" => ThemeName::Dark,
            "light" => ThemeName::Light,
            "mono" => ThemeName::Mono,
            _ => return None,
        })
    }
}

impl Look {
    /// Decides from the settings, the flag and the environment (`env` looks a variable up).
    pub fn detect(theme: &str, color: ColorChoice, env: impl Fn(&str) -> Option<String>) -> Look {
        let set = |name: &str| env(name).is_some_and(|v| !v.is_empty());
        let term = env("TERM").unwrap_or_default();
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(|name| env(name).filter(|v| !v.is_empty()))
            .unwrap_or_default()
            .to_ascii_lowercase();
        let colorless = match color {
            ColorChoice::Always => false,
            ColorChoice::Never => true,
            ColorChoice::Auto => set("NO_COLOR") || term == "dumb" || term.starts_with("vt100"),
        };
        let truecolor = env("COLORTERM").is_some_and(|v| v == "truecolor" || v == "24bit");
        let depth = if colorless {
            Depth::None
        } else if truecolor {
            Depth::True
        } else if term.contains("256color") {
            Depth::Indexed
        } else {
            Depth::Ansi16
        };
        let theme = ThemeName::parse(theme).unwrap_or(ThemeName::Auto);
        Look {
            theme: if colorless { ThemeName::Mono } else { theme },
            depth,
            ascii: !(locale.contains("utf-8") || locale.contains("utf8"))
                || term == "linux"
                || term == "dumb",
            ssh: set("SSH_CONNECTION") || set("SSH_TTY"),
        }
    }
}

/// What a piece of text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Ordinary text.
    Text,
    /// Of lesser weight: units, separators, labels.
    Dim,
    /// Stands out without a colour.
    Strong,
    /// Good: finished, better.
    Good,
    /// Take care: paused, stalled, undecided.
    Warn,
    /// Bad: failed, worse.
    Bad,
    /// Under way, informative.
    Info,
    /// Names, active parts.
    Accent,
    /// Headings.
    Title,
    /// Pane borders.
    Border,
    /// Border and title of the pane that has the focus.
    Focus,
    /// The selected row of the pane that has the focus.
    Select,
    /// A key in the footer, the help and dialogs.
    Key,
    /// Filled part of a bar.
    Bar,
    /// Empty part of a bar.
    Track,
}

/// Styles by role.
#[derive(Debug, Clone, Copy)]
pub struct Theme {
    look: Look,
}

impl Theme {
    /// The theme of a look.
    pub fn new(look: Look) -> Theme {
        Theme { look }
    }

    fn pick(&self, ansi: Color, dark: (u8, u8, u8), light: (u8, u8, u8)) -> Style {
        let rgb = match self.look.theme {
            ThemeName::Mono => return Style::new(),
            ThemeName::Auto => return Style::new().fg(ansi),
            ThemeName::Dark => dark,
            ThemeName::Light => light,
        };
        Style::new().fg(match self.look.depth {
            Depth::None => return Style::new(),
            Depth::Ansi16 => ansi,
            Depth::Indexed => Color::Indexed(nearest(rgb)),
            Depth::True => Color::Rgb(rgb.0, rgb.1, rgb.2),
        })
    }

    /// The style of a role.
    pub fn style(&self, role: Role) -> Style {
        let mono = self.look.theme == ThemeName::Mono;
        match role {
            Role::Text => Style::new(),
            Role::Strong => Style::new().add_modifier(Modifier::BOLD),
            Role::Dim | Role::Border if mono => Style::new().add_modifier(Modifier::DIM),
            Role::Dim => self.pick(Color::DarkGray, (132, 140, 158), (110, 116, 128)),
            Role::Border => self.pick(Color::DarkGray, (72, 80, 98), (178, 184, 194)),
            Role::Track => self.pick(Color::DarkGray, (54, 60, 74), (214, 218, 224)),
            Role::Good => self.pick(Color::Green, (126, 211, 133), (18, 120, 50)),
            Role::Warn => self.pick(Color::Yellow, (232, 190, 96), (150, 95, 0)),
            Role::Bad if mono => Style::new().add_modifier(Modifier::BOLD),
            Role::Bad => self.pick(Color::Red, (240, 113, 120), (184, 28, 40)),
            Role::Info => self.pick(Color::Cyan, (105, 196, 220), (0, 104, 132)),
            Role::Accent if mono => Style::new().add_modifier(Modifier::BOLD),
            Role::Accent => self.pick(Color::Cyan, (105, 196, 220), (0, 104, 132)),
            Role::Bar => self.pick(Color::Blue, (102, 148, 232), (40, 96, 190)),
            Role::Title => Style::new().add_modifier(Modifier::BOLD),
            Role::Focus if mono => Style::new().add_modifier(Modifier::BOLD),
            Role::Focus => self.pick(Color::Cyan, (105, 196, 220), (0, 104, 132)),
            Role::Select => Style::new().add_modifier(Modifier::REVERSED),
            Role::Key if mono => Style::new().add_modifier(Modifier::BOLD),
            Role::Key => self.pick(Color::Yellow, (232, 190, 96), (150, 95, 0)),
        }
    }

    /// The style of the `n`th curve or mark.
    pub fn series(&self, n: usize) -> Style {
        const ANSI: [Color; 6] =
            [Color::Cyan, Color::Yellow, Color::Magenta, Color::Green, Color::Blue, Color::Red];
        const DARK: [(u8, u8, u8); 6] = [
            (105, 196, 220),
            (232, 190, 96),
            (205, 140, 220),
            (126, 211, 133),
            (102, 148, 232),
            (240, 113, 120),
        ];
        const LIGHT: [(u8, u8, u8); 6] =
            [(0, 104, 132), (150, 95, 0), (128, 40, 150), (18, 120, 50), (40, 96, 190), (184, 28, 40)];
        let n = n % 6;
        self.pick(ANSI[n], DARK[n], LIGHT[n])
    }
}

/// Nearest entry of the 256-colour cube.
fn nearest((r, g, b): (u8, u8, u8)) -> u8 {
    let level = |v: u8| -> u8 {
        match v {
            0..=47 => 0,
            48..=114 => 1,
            _ => (v - 35) / 40,
        }
    };
    16 + 36 * level(r) + 6 * level(g) + level(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(vars: &[(&str, &str)], color: ColorChoice) -> Look {
        Look::detect("auto", color, |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn the_environment_decides_colours_and_glyphs() {
        let full = look(
            &[("TERM", "xterm-256color"), ("COLORTERM", "truecolor"), ("LANG", "en_US.UTF-8")],
            ColorChoice::Auto,
        );
        assert_eq!((full.depth, full.ascii, full.ssh), (Depth::True, false, false));
        let plain = look(&[("TERM", "linux"), ("LANG", "C"), ("SSH_TTY", "/dev/pts/1")], ColorChoice::Auto);
        assert_eq!((plain.depth, plain.ascii, plain.ssh), (Depth::Ansi16, true, true));
        let off = look(&[("NO_COLOR", "1"), ("LANG", "C.UTF-8")], ColorChoice::Auto);
        assert_eq!((off.depth, off.theme), (Depth::None, ThemeName::Mono));
        assert_ne!(look(&[("NO_COLOR", "1")], ColorChoice::Always).depth, Depth::None);
        assert_eq!(look(&[("NO_COLOR", ""), ("TERM", "xterm")], ColorChoice::Auto).depth, Depth::Ansi16);
    }

    #[test]
    fn a_theme_without_colours_has_none() {
        let theme = Theme::new(look(&[("NO_COLOR", "1")], ColorChoice::Auto));
        for role in [Role::Dim, Role::Good, Role::Bad, Role::Key, Role::Bar, Role::Select, Role::Focus] {
            let style = theme.style(role);
            assert_eq!((style.fg, style.bg), (None, None), "{role:?}");
        }
        assert_eq!(theme.series(2).fg, None);
    }
}
