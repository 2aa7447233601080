//! What the program says: results on stdout, everything else on stderr.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// The one place that writes results.
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// Results as JSON, or as text.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a result: its text on stdout; or, with `--json`, the object on stdout and the text on stderr.
    pub(crate) fn result<T: Serialize>(&self, value: &T, text: &str) -> Result<()> {
        if self.json {
            note(text);
            write_stdout(&serde_json::to_string(value).context("writing the result as JSON")?)
        } else {
            write_stdout(text)
        }
    }
}

/// Says something to the person at the terminal.
pub(crate) fn note(text: &str) {
    if !text.is_empty() {
        // A closed stderr is no reason to fail.
        let _ = writeln!(io::stderr(), "{}", text.trim_end());
    }
}

fn write_stdout(text: &str) -> Result<()> {
    match writeln!(io::stdout().lock(), "{}", text.trim_end()) {
        // The reader, `head` for one, has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to stdout"),
    }
}

/// A table for people: the first column left-aligned, the others right-aligned.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with the given column names.
    pub(crate) fn new<'a>(header: impl IntoIterator<Item = &'a str>) -> Self {
        Self { rows: vec![header.into_iter().map(str::to_owned).collect()] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as lines of text.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().enumerate().map(|(column, cell)| match column {
                0 => format!("{cell:<width$}", width = widths[0]),
                _ => format!("{cell:>width$}", width = widths[column]),
            });
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// A number with as many digits as a reader can use: about three significant ones.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "-".into(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 0.0995 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// [`number`], or a dash where there is none.
pub(crate) fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), number)
}

/// `n thing` or `n things`.
pub(crate) fn plural(n: usize, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_width_of_their_cells() {
        let mut table = Table::new(["policy", "mean"]);
        table.row(["fcfs".into(), "1.50".into()]);
        table.row(["oracle-sjf".into(), "12".into()]);
        assert_eq!(table.render(), "policy      mean\nfcfs        1.50\noracle-sjf    12\n");
    }

    #[test]
    fn numbers_keep_about_three_digits() {
        assert_eq!(
            [1234.0, 12.34, 1.234, 0.1234, 0.01234].map(number),
            ["1234", "12.3", "1.23", "0.123", "0.0123"]
        );
        assert_eq!(maybe(None), "-");
    }
}
