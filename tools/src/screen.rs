//! What verbs print: lines and tables on stdout for people, JSON for programs, progress on stderr at a terminal.

use crate::cli::Common;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, LineStyle, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Colours by meaning.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ink {
    /// Good.
    Green,
    /// Not quite.
    Yellow,
    /// Bad.
    Red,
    /// Said in passing.
    Dim,
    /// A headline.
    Bold,
}

/// stdout, and what it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    /// Programs read it.
    pub(crate) json: bool,
    /// People look at it.
    pub(crate) terminal: bool,
    colour: bool,
}

impl Screen {
    /// stdout as `common` wants it.
    pub(crate) fn new(common: &Common) -> Self {
        let terminal = io::stdout().is_terminal();
        Self { json: common.json, terminal, colour: common.colour(terminal) }
    }

    /// `text` in a colour, where there are colours.
    pub(crate) fn paint(self, ink: Ink, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match ink {
            Ink::Green => "32",
            Ink::Yellow => "33",
            Ink::Red => "1;31",
            Ink::Dim => "2",
            Ink::Bold => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// One line, at once.
    pub(crate) fn line(self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }

    /// One object.
    pub(crate) fn object(self, value: &serde_json::Value) -> io::Result<()> {
        self.line(&value.to_string())
    }

    /// A table's cell in a colour.
    pub(crate) fn cell(self, ink: Ink, text: impl ToString) -> Cell {
        let cell = Cell::new(text);
        match ink {
            Ink::Green => cell.fg(Color::Green),
            Ink::Yellow => cell.fg(Color::Yellow),
            Ink::Red => cell.fg(Color::Red).add_attribute(Attribute::Bold),
            Ink::Dim => cell.add_attribute(Attribute::Dim),
            Ink::Bold => cell.add_attribute(Attribute::Bold),
        }
    }

    /// A table that leaves out columns, in this order, until it fits the terminal; what is left out is in `--json`.
    pub(crate) fn table_without(
        self,
        header: &[&str],
        rows: Vec<Vec<Cell>>,
        expendable: &[&str],
    ) -> io::Result<()> {
        let mut header = header.to_vec();
        let mut rows = rows;
        for name in expendable {
            let widths = (0..header.len()).map(|column| {
                let cells = rows.iter().filter_map(|row| Some(row.get(column)?.content().chars().count()));
                2 + cells.max().unwrap_or(0).max(header[column].len())
            });
            if !self.terminal || widths.sum::<usize>() <= usize::from(width()) {
                break;
            }
            if let Some(column) = header.iter().position(|known| known == name) {
                header.remove(column);
                rows.iter_mut().for_each(|row| drop(row.remove(column)));
            }
        }
        self.table(&header, rows)
    }

    /// A table that fits the terminal; in a pipe as wide as it must be, and without lines.
    pub(crate) fn table(self, header: &[&str], rows: Vec<Vec<Cell>>) -> io::Result<()> {
        let mut table = Table::new();
        if self.terminal {
            table.load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
            table.set_content_arrangement(ContentArrangement::Dynamic);
            table.set_width(width());
        } else {
            table.load_style(presets::NOTHING);
        }
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if !header.is_empty() {
            table.set_header(header.iter().map(|name| self.cell(Ink::Bold, name)).collect::<Vec<_>>());
        }
        table.add_rows(rows);
        let text = table.trim_fmt();
        self.line(&text)
    }
}

/// Columns of the terminal.
pub(crate) fn width() -> u16 {
    let columns = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_col);
    if columns == 0 { 80 } else { columns }
}

/// A bar on stderr where that is a terminal, nothing elsewhere.
pub(crate) fn progress(total: u64, what: &str, common: &Common) -> ProgressBar {
    if common.json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    let style = ProgressStyle::with_template("{msg:<26} {bar:32} {human_pos:>9} of {human_len}  {rate}");
    if let Ok(style) = style {
        bar.set_style(with_rate(style).progress_chars("━━─"));
    }
    bar.set_message(what.to_owned());
    bar
}

/// A bar for bytes on stderr where that is a terminal, nothing elsewhere: how many, how fast, how long still.
pub(crate) fn bytes_bar(total: u64, what: &str, common: &Common) -> ProgressBar {
    if common.json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    let template =
        "{msg:<12} {bar:28} {binary_bytes:>10} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━━─"));
    }
    bar.set_message(what.to_owned());
    bar
}

/// `{rate}`: whole records per second.
fn with_rate(style: ProgressStyle) -> ProgressStyle {
    style.with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = write!(out, "{}/s", thousands(state.per_sec() as u64));
    })
}

/// A sign of life on stderr where that is a terminal, nothing elsewhere.
pub(crate) fn waiting(what: &str, common: &Common) -> ProgressBar {
    if common.json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    bar
}

/// A count of unknown length on stderr where that is a terminal, nothing elsewhere.
pub(crate) fn counter(what: &str, common: &Common) -> ProgressBar {
    if common.json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} {msg}  {rate}") {
        bar.set_style(with_rate(style));
    }
    bar.set_message(what.to_owned());
    bar
}

/// 12345678 as `12,345,678`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A span of time with three figures and a unit that suits it.
pub(crate) fn duration(span: std::time::Duration) -> String {
    let seconds = span.as_secs_f64();
    match seconds {
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.001 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (12_345_678, "12,345,678")] {
            assert_eq!(thousands(number), text);
        }
        assert_eq!(duration(std::time::Duration::from_micros(340)), "340 µs");
        assert_eq!(duration(std::time::Duration::from_millis(1500)), "1.50 s");
    }
}
