//! Plain-text tables for the output of subcommands.

use serde_json::Value;

/// Formats JSON objects as the rows of a table. Each column consists of a heading and a JSON
/// pointer (RFC 6901), such as `NAME /name`, and is as wide as its widest cell. The columns are
/// separated by `, `.
pub(super) fn table(rows: &[Value], columns: &str) -> String {
    let columns = columns
        .split(", ")
        .filter_map(|column| column.split_once(" /"));
    let (headings, pointers): (Vec<String>, Vec<String>) = columns
        .map(|(heading, pointer)| (heading.to_owned(), format!("/{pointer}")))
        .unzip();
    let mut lines = vec![headings];
    for row in rows {
        let cell = |pointer: &String| match row.pointer(pointer) {
            None | Some(Value::Null) => "-".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        lines.push(pointers.iter().map(cell).collect());
    }
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..pointers.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = [
            serde_json::json!({ "name": "orders", "n": { "queued": 12 } }),
            serde_json::json!({ "name": "b" }),
        ];
        let text = table(&rows, "NAME /name, QUEUED /n/queued");
        assert_eq!(text, "NAME    QUEUED\norders  12\nb       -\n");
    }
}
