//! The agent's metrics, for Prometheus to scrape.
//!
//! A part of the agent holds its counters and histograms itself and registers them, each in one
//! statement (`proxy/metrics.rs`). What `mesh-agent status` prints too is made here, from the same
//! [`Status`]: gauges, and what the kernel's programs have counted.
//!
//! Labels have few values, all of them our own words. No pod, address or service is named: any
//! client that reaches the port may read the page, and names would make as many series as there are
//! pods.

mod guests;
mod serve;

pub use self::serve::{Address, keep_serving};

use std::collections::BTreeMap;

use mesh_api::{KnowledgeSource, PodState, PodStatus, Status};
use prometheus::{
    Encoder as _, Registry, TEXT_FORMAT, TextEncoder, proto::MetricFamily,
    register_gauge_with_registry, register_int_counter_vec_with_registry,
    register_int_counter_with_registry, register_int_gauge_vec_with_registry,
    register_int_gauge_with_registry,
};

/// The content type of the page in HTTP.
pub const CONTENT_TYPE: &str = TEXT_FORMAT;

/// The page: the metrics that parts of the agent hold, and those of its status.
///
/// # Errors
/// If two metrics were given one name.
pub fn page(held: &Registry, status: &Status) -> prometheus::Result<Vec<u8>> {
    let mut text = Vec::new();
    TextEncoder::new().encode(&families(held, status)?, &mut text)?;
    Ok(text)
}

/// All metrics, by name.
fn families(held: &Registry, status: &Status) -> prometheus::Result<Vec<MetricFamily>> {
    let mut all = held.gather();
    all.extend(of_status(status)?.gather());
    all.sort_by(|one, other| one.name().cmp(other.name()));
    Ok(all)
}

/// The metrics of the agent's status.
fn of_status(status: &Status) -> prometheus::Result<Registry> {
    let page = Page(Registry::new());
    let counters = &status.counters;
    let seconds = |at: jiff::Timestamp| at.as_duration().as_secs_f64();

    page.gauge(
        ("nodemesh_build_info", "1, with the agent's version as a label."),
        "version",
        [(status.version.as_str(), 1)],
    )?;
    page.float(
        ("nodemesh_start_time_seconds", "When the agent started, in seconds since 1970."),
        seconds(status.started),
    )?;
    page.number(
        (
            "nodemesh_ready",
            "1 if the agent is in charge of its node, has read the world, and has not been told to stop, otherwise 0.",
        ),
        i64::from(status.ready && !status.draining),
    )?;

    let from = status.knowledge.from;
    page.gauge(
        (
            "nodemesh_knowledge",
            "1 for whom the agent has from what it knows of the world: source (the API server, or the directory of objects), disk (what an earlier agent left), nobody.",
        ),
        "from",
        [
            ("source", KnowledgeSource::Source),
            ("disk", KnowledgeSource::Disk),
            ("nobody", KnowledgeSource::Nobody),
        ]
        .map(|(label, source)| (label, i64::from(source == from))),
    )?;
    if from != KnowledgeSource::Nobody {
        page.number(
            (
                "nodemesh_knowledge_age_seconds",
                "How long ago what the agent knows of the world was last known to be true; 0 while the API server can be watched. Absent while it knows nothing.",
            ),
            signed(status.knowledge.age_s),
        )?;
    }
    page.gauge(
        (
            "nodemesh_problems",
            "Problems that `mesh-agent status` shows, by their code. No series: no problem.",
        ),
        "code",
        count(status.problems.iter().map(|problem| problem.code.as_str())),
    )?;
    page.gauge(
        (
            "nodemesh_pods",
            "This node's pods, by state: enrolled, leaving, held (strict, refused everything until they can be enrolled), not_enrolled.",
        ),
        "state",
        PodState::ALL.iter().map(|state| {
            let has = |pod: &&PodStatus| pod.state == *state;
            (state.code(), signed(status.pods.iter().filter(has).count()))
        }),
    )?;
    page.number(
        ("nodemesh_remote_pods", "Captured pods of other nodes, as these announce them."),
        signed(status.remote_peers),
    )?;
    if let Some(first) = status.identities.iter().filter_map(|identity| identity.not_after).min() {
        page.float(
            (
                "nodemesh_certificate_first_expiry_time_seconds",
                "When the first of the certificates in use ends, in seconds since 1970.",
            ),
            seconds(first),
        )?;
    }
    page.number(
        (
            "nodemesh_certificates_not_signed",
            "Identities whose certificate could not be had or renewed at the last attempt.",
        ),
        signed(status.identities.iter().filter(|identity| identity.failure.is_some()).count()),
    )?;

    let verdicts = register_int_counter_vec_with_registry!(
        "nodemesh_verdicts_total",
        "What the eBPF programs decided, by verdict, since their maps were made: an agent that is started again goes on counting.",
        &["verdict"],
        page.0
    )?;
    for (code, count) in &status.verdicts {
        verdicts.with_label_values(&[code]).inc_by(*count);
    }
    register_int_counter_with_registry!(
        "nodemesh_refusal_reports_lost_total",
        "Reports of the programs' refusals that found their buffer full: counted as verdicts, absent from the flows.",
        page.0
    )?
    .inc_by(counters.events_lost);
    page.number(
        ("nodemesh_connections_open", "Connections that the agent carries now."),
        signed(counters.open),
    )?;
    page.number(
        ("nodemesh_connections_capacity", "How many the agent carries at most."),
        signed(counters.capacity),
    )?;
    page.gauge(
        (
            "nodemesh_sessions_kept",
            "TLS sessions that carry nothing and are kept for the next connection: outbound dialled by this node's pods, inbound dialled to them.",
        ),
        "direction",
        [("outbound", counters.sessions.kept_outbound), ("inbound", counters.sessions.kept_inbound)]
            .map(|(direction, kept)| (direction, signed(kept))),
    )?;
    page.number(
        (
            "nodemesh_socket_memory_bytes",
            "What the kernel holds for connections of which one side takes nothing.",
        ),
        signed(counters.socket_memory),
    )?;
    Ok(page.0)
}

/// The metrics that are made for one answer.
struct Page(Registry);

/// A metric's name and what it means.
type About = (&'static str, &'static str);

impl Page {
    fn number(&self, (name, help): About, value: i64) -> prometheus::Result<()> {
        register_int_gauge_with_registry!(name, help, self.0)?.set(value);
        Ok(())
    }

    fn float(&self, (name, help): About, value: f64) -> prometheus::Result<()> {
        register_gauge_with_registry!(name, help, self.0)?.set(value);
        Ok(())
    }

    fn gauge<'a>(
        &self,
        (name, help): About,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, i64)>,
    ) -> prometheus::Result<()> {
        let vector = register_int_gauge_vec_with_registry!(name, help, &[label], self.0)?;
        for (of, value) in values {
            vector.with_label_values(&[of]).set(value);
        }
        Ok(())
    }
}

fn count<'a>(codes: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, i64> {
    let mut counts = BTreeMap::new();
    for code in codes {
        *counts.entry(code).or_default() += 1;
    }
    counts
}

/// A gauge's number; more than it can hold does not occur.
fn signed(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;
    use crate::proxy;

    /// A status that leaves no metric out.
    fn status() -> Status {
        let time = "2026-01-02T03:04:05Z";
        from_value(json!({
            "version": "0.1.0", "node": "node1", "pid": 1, "started": time, "draining": false,
            "trust_domain": "cluster.local", "anchors": [], "pods": [], "remote_peers": 0,
            "knowledge": {"from": "source", "as_of": null, "age_s": 0},
            "counters": {
                "accepted_outbound": 0, "accepted_inbound": 0, "bytes_sent": 0, "bytes_received": 0,
                "open": 0, "capacity": 0, "refused_by_limits": 0, "events_lost": 0,
            },
            "verdicts": {"redirect_peer": 7}, "pod_verdicts": {},
            "identities": [{"id": "", "serial": null, "not_after": time, "failure": null}],
            "problems": [{"code": "bad_ca", "message": ""}],
        }))
        .unwrap()
    }

    /// A name, and its type and labels as the document writes them.
    fn described(family: &MetricFamily) -> (String, String) {
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        let labels = family.get_metric().first().unwrap().get_label().iter();
        let labels = labels.map(|label| format!(", `{}`", label.name()));
        (family.name().to_owned(), [kind].into_iter().chain(labels).collect())
    }

    fn names(text: &str) -> impl Iterator<Item = &str> {
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        text.split(move |c| !is_name(c)).filter(|word| word.starts_with("nodemesh_"))
    }

    #[test]
    fn every_metric_is_in_the_document_and_the_other_way_round() {
        let held = Registry::new();
        proxy::Metrics::new(&held).unwrap();
        let families = families(&held, &status()).unwrap();
        let made: BTreeMap<_, _> = families.iter().map(described).collect();
        assert_eq!(made.len(), families.len(), "two have one name");

        let document = include_str!("../../../docs/metrics.md");
        let (table, rest) = document.split_once("Worth an alert").unwrap();
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
        let rows = rows.map(|row| row.split(" | ").collect::<Vec<_>>());
        let told = rows.flat_map(|row| names(row[0]).map(move |name| (name, row[1])));
        let told: BTreeMap<_, _> =
            told.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
        assert_eq!(told, made);
        let is_made = |name: &str| made.contains_key(name.trim_end_matches("_bucket"));
        assert_eq!(names(rest).find(|name| !is_made(name)), None);
    }
}
