//! The table of measured figures, with bars where a figure has one.

use std::fmt;

/// What a figure may at most be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bar {
    most: f64,
}

/// One figure.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    bar: Option<Bar>,
}

impl Row {
    /// False when the figure passes its bar.
    pub(crate) fn holds(&self) -> bool {
        self.bar.is_none_or(|bar| self.value <= bar.most)
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
        self.rows.push(Row { name: name.to_owned(), value, unit, bar: None });
    }

    /// Adds a figure that may not pass `most`.
    pub(crate) fn add_with_bar(&mut self, name: &str, value: f64, unit: &'static str, most: f64) {
        self.rows.push(Row { name: name.to_owned(), value, unit, bar: Some(Bar { most }) });
    }

    /// True when every bar holds.
    pub(crate) fn holds(&self) -> bool {
        self.rows.iter().all(Row::holds)
    }

    /// `{"figures": {name: value}, "bars": {name: most}}`, names with their unit.
    pub(crate) fn json(&self) -> serde_json::Value {
        let key = |row: &Row| format!("{} ({})", row.name, row.unit);
        let figures = self.rows.iter().map(|row| (key(row), row.value.into())).collect();
        let bars = self.rows.iter().filter_map(|row| Some((key(row), row.bar?.most.into()))).collect();
        serde_json::json!({ "figures": serde_json::Value::Object(figures), "bars": serde_json::Value::Object(bars) })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        for row in &self.rows {
            write!(f, "  {:<width$}  {:>9.2} {:<3}", row.name, row.value, row.unit)?;
            match row.bar {
                Some(bar) if row.holds() => writeln!(f, "  ok, at most {}", bar.most)?,
                Some(bar) => writeln!(f, "  TOO MUCH, at most {}", bar.most)?,
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
        for (value, holds) in [(2.0, true), (2.01, false)] {
            let mut table = Table::default();
            table.add("free", 9.0, "s");
            table.add_with_bar("bound", value, "MB", 2.0);
            assert_eq!(table.holds(), holds);
            assert_eq!(table.to_string().contains("TOO MUCH"), !holds);
            assert_eq!(table.json()["bars"]["bound (MB)"], 2.0);
        }
    }
}
