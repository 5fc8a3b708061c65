//! The table of measured figures, with bars where a figure has one.

use serde_json::{Map, Value, json};
use std::fmt;

/// What a figure may be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Bar {
    fn limit(self) -> f64 {
        match self {
            Self::AtMost(limit) | Self::AtLeast(limit) => limit,
        }
    }

    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "at most {limit}"),
            Self::AtLeast(limit) => write!(f, "at least {limit}"),
        }
    }
}

/// One figure.
#[derive(Debug, Clone)]
struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    bar: Option<Bar>,
}

impl Row {
    /// False when the figure misses its bar. What is not a number misses every bar.
    fn holds(&self) -> bool {
        self.bar.is_none_or(|bar| bar.holds(self.value))
    }
}

/// Figures in the order they were measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Adds a figure.
    pub(crate) fn add(&mut self, name: &str, value: f64, unit: &'static str) {
        self.row(name, value, unit, None);
    }

    /// Adds a figure that may not pass `most`.
    pub(crate) fn add_with_bar(&mut self, name: &str, value: f64, unit: &'static str, most: f64) {
        self.row(name, value, unit, Some(Bar::AtMost(most)));
    }

    /// Adds a figure that must reach `least`.
    pub(crate) fn add_at_least(&mut self, name: &str, value: f64, unit: &'static str, least: f64) {
        self.row(name, value, unit, Some(Bar::AtLeast(least)));
    }

    fn row(&mut self, name: &str, value: f64, unit: &'static str, bar: Option<Bar>) {
        self.rows.push(Row { name: name.to_owned(), value, unit, bar });
    }

    /// Appends another table's figures.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.rows.append(&mut other.rows);
    }

    /// True when every bar holds.
    pub(crate) fn holds(&self) -> bool {
        self.rows.iter().all(Row::holds)
    }

    /// `{"figures": {name: value}, "bars": [{"what", "value", "limit", "holds"}]}`, names with their unit.
    pub(crate) fn json(&self) -> Value {
        let key = |row: &Row| format!("{} ({})", row.name, row.unit);
        let figures: Map<_, _> = self.rows.iter().map(|row| (key(row), row.value.into())).collect();
        let bars: Vec<_> = self
            .rows
            .iter()
            .filter_map(|row| {
                let bar = row.bar?;
                let what = format!("{}, {bar}", key(row));
                Some(json!({ "what": what, "value": row.value, "limit": bar.limit(), "holds": row.holds() }))
            })
            .collect();
        json!({ "figures": figures, "bars": bars })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        for row in &self.rows {
            write!(f, "  {:<width$}  {:>9.2} {:<3}", row.name, row.value, row.unit)?;
            match row.bar {
                Some(bar) if row.holds() => writeln!(f, "  ok, {bar}")?,
                Some(bar) => writeln!(f, "  MISSED, {bar}")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn a_figure_at_its_bar_holds_and_one_past_it_does_not() {
        for (most, least, holds) in [(2.0, 10.0, true), (2.01, 10.0, false), (2.0, 9.99, false)] {
            let mut table = Table::default();
            table.add("free", 9.0, "s");
            table.add_with_bar("bound", most, "MB", 2.0);
            table.add_at_least("times better", least, "x", 10.0);
            assert_eq!(table.holds(), holds);
            assert_eq!(table.to_string().contains("MISSED"), !holds);
            let json = table.json();
            assert_eq!(json["figures"]["free (s)"], 9.0);
            assert_eq!(json["bars"][0]["limit"], 2.0);
            assert_eq!(json["bars"][0]["holds"], most <= 2.0);
            assert_eq!(json["bars"][1]["value"], least);
        }
    }
}
