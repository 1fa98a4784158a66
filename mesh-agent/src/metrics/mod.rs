//! The agent's metrics, for Prometheus to scrape: every one, its labels and its help text, in one
//! place.
//!
//! They are made from the same [`Status`] that `mesh-agent status` prints, so that the two cannot
//! differ. Labels have few values, all of them our own words. No pod, address or service is named:
//! any client that reaches the port may read the page, and names would make as many series as there
//! are pods.

mod guests;
mod serve;

pub use self::serve::{Address, keep_serving};

use std::collections::BTreeMap;

use mesh_api::{KnowledgeSource, PodState, PodStatus, Status};
use prometheus::{
    Encoder as _, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TEXT_FORMAT, TextEncoder,
    core::Collector,
};

/// The content type of the page in HTTP.
pub const CONTENT_TYPE: &str = TEXT_FORMAT;

/// The page.
///
/// # Errors
/// If two metrics were given one name.
pub fn page(status: &Status) -> prometheus::Result<Vec<u8>> {
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

    page.counter(
        ("nodemesh_verdicts_total", "What the eBPF programs decided, by verdict, since their maps were made: an agent that is started again goes on counting."),
        "verdict",
        status.verdicts.iter().map(|(code, count)| (code.as_str(), *count)),
    )?;
    page.counter(
        (
            "nodemesh_connections_accepted_total",
            "Connections that the agent took: outbound from this node's pods, inbound for them. Where both ends are in the mesh, each is outbound at one agent and inbound at the other.",
        ),
        "direction",
        [("outbound", counters.accepted_outbound), ("inbound", counters.accepted_inbound)],
    )?;
    page.counter(
        (
            "nodemesh_application_bytes_total",
            "Bytes of applications over connections that have ended: sent from clients to servers, received by clients. Where both ends are in the mesh, both their agents count them.",
        ),
        "direction",
        [("sent", counters.bytes_sent), ("received", counters.bytes_received)],
    )?;
    page.one_counter(
        ("nodemesh_connections_by_agents_port_total", "Connections of this node's pods that went to the agents' port, because the path changes source addresses or ports."),
        counters.by_agents_port,
    )?;
    page.number(
        ("nodemesh_connections_open", "Connections that the agent carries now."),
        signed(counters.open),
    )?;
    page.number(
        ("nodemesh_connections_capacity", "How many the agent carries at most."),
        signed(counters.capacity),
    )?;
    page.one_counter(
        ("nodemesh_connections_refused_by_limits_total", "Connections refused because too many were open, or in their handshakes, over all, of a pod or of a client's address."),
        unsigned(counters.refused_by_limits),
    )?;
    page.number(
        (
            "nodemesh_socket_memory_bytes",
            "What the kernel holds for connections of which one side takes nothing.",
        ),
        signed(counters.socket_memory),
    )?;
    page.one_counter(
        ("nodemesh_refusal_reports_lost_total", "Reports of the programs' refusals that found their buffer full: counted as verdicts, absent from the flows."),
        counters.events_lost,
    )?;
    page.text()
}

/// The series of one answer.
struct Page(Registry);

/// A metric's name and what it means.
type About = (&'static str, &'static str);

impl Page {
    fn number(&self, about: About, value: i64) -> prometheus::Result<()> {
        let vector = IntGaugeVec::new(opts(about), &[])?;
        vector.with_label_values::<&str>(&[]).set(value);
        self.add(vector)
    }

    fn float(&self, about: About, value: f64) -> prometheus::Result<()> {
        let vector = GaugeVec::new(opts(about), &[])?;
        vector.with_label_values::<&str>(&[]).set(value);
        self.add(vector)
    }

    fn gauge<'a>(
        &self,
        about: About,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, i64)>,
    ) -> prometheus::Result<()> {
        let vector = IntGaugeVec::new(opts(about), &[label])?;
        for (of, value) in values {
            vector.with_label_values(&[of]).set(value);
        }
        self.add(vector)
    }

    fn one_counter(&self, about: About, value: u64) -> prometheus::Result<()> {
        let vector = IntCounterVec::new(opts(about), &[])?;
        vector.with_label_values::<&str>(&[]).inc_by(value);
        self.add(vector)
    }

    fn counter<'a>(
        &self,
        about: About,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> prometheus::Result<()> {
        let vector = IntCounterVec::new(opts(about), &[label])?;
        for (of, value) in values {
            vector.with_label_values(&[of]).inc_by(value);
        }
        self.add(vector)
    }

    fn add(&self, vector: impl Collector + 'static) -> prometheus::Result<()> {
        self.0.register(Box::new(vector))
    }

    fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.gather(), &mut text)?;
        Ok(text)
    }
}

fn opts((name, help): About) -> Opts {
    Opts::new(name, help)
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

fn unsigned(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_metric_is_in_the_document_and_the_other_way_round() {
        let document = include_str!("../../../docs/metrics.md");
        let source = include_str!("mod.rs");
        let names = |text: &str| -> std::collections::BTreeSet<String> {
            let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
            let names = text.split(|c| !is_name(c)).filter(|word| word.starts_with("nodemesh_"));
            names.map(str::to_owned).collect()
        };
        let (told, made) = (names(document), names(source.split("#[cfg(test)]").next().unwrap()));
        assert!(made.len() > 10 && told == made, "told: {told:#?}\nmade: {made:#?}");
    }
}
