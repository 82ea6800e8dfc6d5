//! `rt list`: all containers below the root.

use std::fmt::Write;

use clap::ValueEnum;

use super::{Global, write_out};
use crate::container::{self, StateView};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Form of the list
    #[arg(short, long, value_enum, default_value = "table")]
    format: Format,
    /// IDs only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

impl Arguments {
    pub fn run(&self, global: &Global) -> anyhow::Result<u8> {
        let views = container::list(&global.store())?;
        let text = match (self.quiet, self.format) {
            (true, _) => views.iter().fold(String::new(), |text, view| text + &view.id + "\n"),
            (false, Format::Table) => table(&views),
            // As Go's encoder writes an empty list that was never made.
            (false, Format::Json) if views.is_empty() => "null\n".into(),
            (false, Format::Json) => serde_json::to_string(&views)? + "\n",
        };
        write_out(&text)?;
        Ok(0)
    }
}

/// runc's columns: at least 12 wide, three spaces apart.
fn table(views: &[StateView]) -> String {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = views.iter().map(|view| {
        [
            view.id.clone(),
            view.pid.to_string(),
            view.status.to_string(),
            view.bundle.display().to_string(),
            view.created.clone(),
            view.owner.clone(),
        ]
    });
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len() + 3).max().unwrap_or(0).max(12);
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row[..5].iter().enumerate() {
            let _ = write!(text, "{cell:<width$}", width = width(column));
        }
        text.push_str(&row[5]);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_its_head() {
        assert_eq!(table(&[]), "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
    }
}
