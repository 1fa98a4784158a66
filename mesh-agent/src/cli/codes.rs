//! Holds docs/codes.md against the code.

use std::collections::BTreeSet;

use mesh_common::verdict::{Action, Verdict};

const PAGE: &str = include_str!("../../../docs/codes.md");
const WIRE: &str = include_str!("../../../docs/wire.md");

/// The files in which codes are made. Every text in them that looks like a code is one.
const SOURCES: &[&str] = &[
    include_str!("../admin/server.rs"),
    include_str!("../daemon/end.rs"),
    include_str!("../daemon/keep.rs"),
    include_str!("../daemon/kubelet.rs"),
    include_str!("../enrol/mod.rs"),
    include_str!("../../../mesh-world/src/tables/shares.rs"),
    include_str!("../enrol/status.rs"),
    include_str!("../flows/store.rs"),
    include_str!("../metrics/serve.rs"),
    include_str!("../proxy/dial.rs"),
    include_str!("../proxy/inbound.rs"),
    include_str!("../proxy/limits.rs"),
    include_str!("../proxy/outbound.rs"),
    include_str!("../proxy/path.rs"),
    include_str!("../proxy/peer.rs"),
    include_str!("../proxy/relay/end.rs"),
    include_str!("../source/announce.rs"),
    include_str!("../source/earlier.rs"),
    include_str!("../source/error.rs"),
    include_str!("../source/kubernetes/away.rs"),
    include_str!("../source/kubernetes/fallback.rs"),
    include_str!("../source/kubernetes/installed.rs"),
    include_str!("../../../mesh-wire/src/reason/session.rs"),
    include_str!("../../../mesh-world/src/membership.rs"),
    include_str!("../../../mesh-world/src/problem.rs"),
];

fn is_code(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// What stands between two of these marks and looks like a code.
fn between(text: &str, mark: char) -> BTreeSet<&str> {
    text.lines()
        .flat_map(|line| line.split(mark).skip(1).step_by(2))
        .filter(|t| is_code(t))
        .collect()
}

/// The codes of the first cells of the page's tables.
fn told() -> BTreeSet<&'static str> {
    let rows = PAGE.lines().filter(|line| line.starts_with("| `"));
    rows.filter_map(|row| row.split(" | ").next()).flat_map(|cell| between(cell, '`')).collect()
}

#[test]
fn every_verdict_is_on_the_page_as_it_is() {
    for verdict in Verdict::ALL {
        let side = if verdict.is_inbound() { "inbound" } else { "outbound" };
        let action = match verdict.action() {
            Action::Pass => "passes",
            Action::Redirect => "redirected",
            Action::Refuse => "refused",
        };
        let row = format!("| `{}` | {side}, {action} | {} |", verdict.code(), verdict.sentence());
        assert!(PAGE.contains(&row), "docs/codes.md lacks: {row}");
    }
}

#[test]
fn every_other_code_is_on_the_page_and_no_more() {
    let of_code = |source: &&'static str| {
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        let is_text =
            |line: &&str| ["//", "#["].iter().all(|other| !line.trim_start().starts_with(other));
        let lines = code.lines().filter(is_text);
        lines.flat_map(|line| between(line, '"')).collect::<BTreeSet<_>>()
    };
    let made: BTreeSet<&str> = SOURCES.iter().flat_map(of_code).collect();
    let told = told();
    let verdicts: BTreeSet<&str> = Verdict::ALL.iter().map(|verdict| verdict.code()).collect();
    let elsewhere = between(WIRE, '`');
    let is_told = |code: &&&str| told.contains(**code) || elsewhere.contains(**code);
    let silent: Vec<_> =
        made.iter().filter(|code| code.contains('_')).filter(|code| !is_told(code)).collect();
    assert!(made.len() > 50 && silent.is_empty(), "not on the page: {silent:?}");
    let gone: Vec<_> =
        told.iter().filter(|code| !made.contains(**code) && !verdicts.contains(**code)).collect();
    assert!(gone.is_empty(), "on the page, and nowhere made: {gone:?}");
}
