//! Tables for people: no borders, two spaces between columns, as kubectl prints them.

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;

/// A table with a heading.
pub(super) fn table<const N: usize>(
    heading: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(heading);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A size as people read it: `17 B`, `1.2 KiB`.
#[expect(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
pub(super) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// How long ago something was, as people read it.
pub(super) fn age(since: Timestamp) -> String {
    let micros = Timestamp::now().duration_since(since).as_micros();
    duration(u64::try_from(micros).unwrap_or(0))
}

/// A duration as people read it: `730µs`, `12ms`, `3.4s`, `5m12s`.
#[expect(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
pub(super) fn duration(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros}µs"),
        1_000..1_000_000 => format!("{}ms", micros / 1_000),
        1_000_000..60_000_000 => format!("{:.1}s", micros as f64 / 1e6),
        _ => format!("{}m{}s", micros / 60_000_000, micros / 1_000_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_read_them() {
        assert_eq!(
            (bytes(17), bytes(1229), bytes(3 << 30)),
            ("17 B".into(), "1.2 KiB".into(), "3.0 GiB".into())
        );
        assert_eq!(duration(730), "730µs");
        assert_eq!(duration(12_345), "12ms");
        assert_eq!(duration(3_400_000), "3.4s");
        assert_eq!(duration(312_000_000), "5m12s");
    }

    #[test]
    fn columns_are_aligned_and_lines_end_cleanly() {
        let rows =
            [["web".to_owned(), "enrolled".to_owned()], ["database".to_owned(), String::new()]];
        assert_eq!(table(["POD", "STATE"], rows), "POD       STATE\nweb       enrolled\ndatabase");
    }
}
