//! Generates docs/codes.md, and holds the page against the tables.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::{env, fs, path::Path};

use mesh_common::verdict::{Action, Verdict};

use super::{About, PlaintextReason, PodCode, PodState, ProblemCode, Reason, about_verdict};
use crate::Fault;

/// Set, the page is written and not compared.
const WRITE: &str = "NODEMESH_WRITE_DOCS";

const INTRODUCTION: &str = "\
# Codes

Everything that Nodemesh decides or finds wrong has a stable code: in `status`, `flows`, logs and
metrics alike.

This page is generated from `mesh-api/src/codes/`. Edit the tables there, then write the page:
`NODEMESH_WRITE_DOCS=1 cargo test --lib codes_md`.
";

const VERDICTS: &str = "
## Verdicts
What the eBPF programs decided about a connection, when it was dialled (outbound) or arrived
(inbound). `status -o json` counts them for the node (`verdicts`) and each pod (`pod_verdicts`),
metrics for the node (`nodemesh_verdicts_total`). What is redirected or refused has a flow record
besides, but for the questions on `inbound_agents_port` and what a flood folds or loses
(`events_lost`); what passes is only counted. `direct` and `direct_sockmap` are reserved.
";

const REASONS: &str = "
## How a connection ended
The outcome of a flow record: `open` while it has not ended, a verdict's code where the kernel
refused it, else one of these. [wire.md](wire.md) says which reasons two agents tell each other.
The party at fault is that of the agent that finds the reason itself. `fault` of a record is seen
from the record's node: of a refusal by a peer, `us` becomes `peer`.
";

const PLAINTEXT: &str = "
And why one that the agent carried went in plaintext (`security` of a record in `flows -o json`):
";

const POD_STATES: &str = "
## Pods
The state of a pod in `status`, and the label of `nodemesh_pods`:
";

const POD_CODES: &str = "
## Why a pod is not in the mesh
The code before the reason in `status`. From `no_address` on, a strict pod is held meanwhile, if its
cgroup is known.
";

const PROBLEMS: &str = "
## Problems
What is wrong with the node, the objects or the agent; `status` has a sentence for each, metrics
their number (`nodemesh_problems`). What is wrong with a pod or another object is a Kubernetes
Event, too: its reason is the code, written `LikeThis` ([enrol.md](enrol.md#events)).
";

const FAULTS: &str = "
## At fault
The party that has to act. It is `fault` of a flow record, which older records have not, and empty
where nothing is wrong.

| code | |
|---|---|
| `application` | one of the two applications, or its pod |
| `configuration` | the operator: labels and other objects, policy, certificates, clocks, versions |
| `peer` | the other agent, or the network to it |
| `platform` | what the agent runs on: the node, its kernel and kubelet, or the API server |
| `us` | the agent that reports it |
";

fn page() -> String {
    let mut page = format!("{INTRODUCTION}{VERDICTS}");
    let side_and_action = |verdict: Verdict| {
        let side = if verdict.is_inbound() { "inbound" } else { "outbound" };
        let action = match verdict.action() {
            Action::Pass => "passes",
            Action::Redirect => "redirected",
            Action::Refuse => "refused",
        };
        format!(" {side}, {action} |")
    };
    let verdicts = Verdict::ALL.iter().copied();
    table(&mut page, " |", verdicts.map(|it| (about_verdict(it), side_and_action(it))));
    let plain = |about| (about, String::new());
    page += REASONS;
    table(&mut page, "", Reason::ALL.iter().map(|it| plain(it.about())));
    page += PLAINTEXT;
    table(&mut page, "", PlaintextReason::ALL.iter().map(|it| plain(it.about())));
    page += POD_STATES;
    table(&mut page, "", PodState::ALL.iter().map(|it| plain(it.about())));
    page += POD_CODES;
    table(&mut page, "", PodCode::ALL.iter().map(|it| plain(it.about())));
    page += PROBLEMS;
    table(&mut page, "", ProblemCode::ALL.iter().map(|it| plain(it.about())));
    page + FAULTS
}

/// A table of codes. `more` heads a column behind the code, and is empty if there is none.
fn table(page: &mut String, more: &str, rows: impl Iterator<Item = (About, String)>) {
    let rule = if more.is_empty() { "" } else { "---|" };
    write!(page, "\n| code |{more} what it says | likely cause | what to do | at fault |\n")
        .unwrap();
    writeln!(page, "|---|{rule}---|---|---|---|").unwrap();
    for (about, more) in rows {
        let About { code, sentence, cause, remedy, fault } = about;
        let fault = fault.map_or("", Fault::code);
        let cells = [sentence, &linked(cause), &linked(remedy), fault]
            .map(|cell| if cell.is_empty() { " |".to_owned() } else { format!(" {cell} |") });
        writeln!(page, "| `{code}` |{more}{}", cells.concat()).unwrap();
    }
}

/// The text with each mention of another page as a link.
fn linked(text: &str) -> String {
    let link = |word: &str| match word.strip_prefix("docs/") {
        Some(target) => {
            let name = target.split('#').next().unwrap_or(target);
            format!("[{name}]({target})")
        }
        None => word.to_owned(),
    };
    text.split(' ').map(link).collect::<Vec<_>>().join(" ")
}

#[test]
fn codes_md_is_what_the_tables_say() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/codes.md");
    let page = page();
    if env::var_os(WRITE).is_some() {
        fs::write(&file, page).unwrap();
        return;
    }
    let committed = fs::read_to_string(&file).unwrap();
    let differs = committed.lines().zip(page.lines()).find(|(is, should)| is != should);
    assert!(
        committed == page,
        "docs/codes.md is not what the tables say: {differs:?}; write it: {WRITE}=1 cargo test --lib codes_md"
    );
}

#[test]
fn every_code_is_well_formed_and_explained_and_unique_in_its_table() {
    let verdicts: Vec<_> = Verdict::ALL.iter().map(|it| about_verdict(*it)).collect();
    // A verdict and a reason are both outcomes, so they may not share a code.
    let outcomes = Reason::ALL.iter().map(|it| it.about()).chain(verdicts).collect::<Vec<_>>();
    let plaintext: Vec<_> = PlaintextReason::ALL.iter().map(|it| it.about()).collect();
    let pods: Vec<_> = PodCode::ALL.iter().map(|it| it.about()).collect();
    let problems: Vec<_> = ProblemCode::ALL.iter().map(|it| it.about()).collect();
    for table in [outcomes, plaintext, pods, problems] {
        let mut codes = BTreeSet::new();
        for About { code, sentence, cause, remedy, fault } in table {
            assert!(code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{code}");
            assert!(codes.insert(code), "{code} twice");
            assert!(sentence.len() > 15, "{code}: {sentence}");
            for text in [cause, remedy] {
                assert!(!text.ends_with('.') && !text.contains('|'), "{code}: {text}");
            }
            assert!(fault.is_none() || !remedy.is_empty(), "{code} does not say what to do");
        }
    }
}

#[test]
fn faults_and_states_are_written_as_their_codes() {
    for state in PodState::ALL {
        assert_eq!(serde_json::to_string(state).unwrap(), format!("\"{}\"", state.code()));
    }
    for fault in Fault::ALL {
        let row = format!("| `{}` |", fault.code());
        assert!(FAULTS.contains(&row), "{row}");
        assert_eq!(serde_json::to_string(fault).unwrap(), format!("\"{}\"", fault.code()));
        assert_eq!(fault.seen_by_peer().seen_by_peer(), *fault);
    }
}
