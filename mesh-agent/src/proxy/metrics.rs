//! What the proxy counts and measures for Prometheus. Each metric is looked up by its labels once,
//! here, so that a connection costs only an addition.

use prometheus::{
    Histogram, IntCounter, Registry, register_histogram_vec_with_registry,
    register_int_counter_vec_with_registry, register_int_counter_with_registry,
};

/// Upper bounds in seconds. The last one is the time limit of a handshake.
const HANDSHAKE_BUCKETS: [f64; 13] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// What the proxy has done since the agent started.
pub struct Metrics {
    /// Connections accepted from pods.
    pub accepted_outbound: IntCounter,
    /// Connections accepted for pods.
    pub accepted_inbound: IntCounter,
    /// Bytes of applications that went from clients to servers.
    pub bytes_sent: IntCounter,
    /// Bytes of applications that went from servers to clients.
    pub bytes_received: IntCounter,
    /// Connections of pods that went to the agents' port.
    pub by_agents_port: IntCounter,
    /// Connections between two pods of the node that went without TLS.
    pub(super) local: IntCounter,
    /// Connections for which there was no room.
    pub refused_by_limits: IntCounter,
    /// Handshakes for connections of pods that resumed an earlier one.
    pub(super) resumed_outbound: IntCounter,
    /// The same, for connections to pods.
    pub(super) resumed_inbound: IntCounter,
    /// Connections of pods that a kept session carried.
    pub(super) reused_outbound: IntCounter,
    /// Connections for pods that a kept session carried.
    pub(super) reused_inbound: IntCounter,
    /// Kept sessions that could not be used when a connection came.
    pub(super) sessions_stale: IntCounter,
    /// Sessions for which there was no room when they had nothing to carry.
    pub(super) sessions_not_kept: IntCounter,
    /// Seconds from a dial to a session with the peer's agent.
    pub(super) handshake_outbound: Histogram,
    /// Seconds from a ClientHello to the OPEN of the peer's agent.
    pub(super) handshake_inbound: Histogram,
}

impl Metrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// The registry has a metric of that name already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let accepted = register_int_counter_vec_with_registry!(
            "nodemesh_connections_accepted_total",
            "Connections that the agent took: outbound from this node's pods, inbound for them. Where both ends are in the mesh, each is outbound at one agent and inbound at the other.",
            &["direction"],
            registry
        )?;
        let bytes = register_int_counter_vec_with_registry!(
            "nodemesh_application_bytes_total",
            "Bytes of applications over connections that have ended: sent from clients to servers, received by clients. Where both ends are in the mesh, both their agents count them.",
            &["direction"],
            registry
        )?;
        let by_agents_port = register_int_counter_with_registry!(
            "nodemesh_connections_by_agents_port_total",
            "Connections of this node's pods that went to the agents' port, because the path changes source addresses or ports.",
            registry
        )?;
        let local = register_int_counter_with_registry!(
            "nodemesh_connections_local_total",
            "Connections between two pods of this node that the agent carried without TLS, because both pods say so.",
            registry
        )?;
        let refused_by_limits = register_int_counter_with_registry!(
            "nodemesh_connections_refused_by_limits_total",
            "Connections refused because too many were open or in their handshakes: on this node, of one pod or of one client.",
            registry
        )?;
        let handshakes = register_histogram_vec_with_registry!(
            "nodemesh_handshake_duration_seconds",
            "Time until each session over mutual TLS was established: outbound from the agent's dial until the peer has proven its identity, inbound from the ClientHello until the peer's agent has said what it asks for.",
            &["direction"],
            HANDSHAKE_BUCKETS.to_vec(),
            registry
        )?;
        let resumed = register_int_counter_vec_with_registry!(
            "nodemesh_handshakes_resumed_total",
            "Handshakes over mutual TLS that resumed an earlier one of the same two service accounts between the same two agents: outbound from this node's pods, inbound for them.",
            &["direction"],
            registry
        )?;
        let reused = register_int_counter_vec_with_registry!(
            "nodemesh_sessions_reused_total",
            "Connections over mutual TLS that a kept session carried, without a dial and a handshake: outbound from this node's pods, inbound for them.",
            &["direction"],
            registry
        )?;
        let sessions_stale = register_int_counter_with_registry!(
            "nodemesh_sessions_stale_total",
            "Kept sessions of this node's pods that could not carry the next connection, because they had ended or are not as they would be made now. Another session carried it.",
            registry
        )?;
        let sessions_not_kept = register_int_counter_with_registry!(
            "nodemesh_sessions_not_kept_total",
            "Sessions that were closed after their connection, because too many were kept: on this node, of one pod, of one client or to one destination.",
            registry
        )?;
        Ok(Self {
            accepted_outbound: accepted.with_label_values(&["outbound"]),
            accepted_inbound: accepted.with_label_values(&["inbound"]),
            bytes_sent: bytes.with_label_values(&["sent"]),
            bytes_received: bytes.with_label_values(&["received"]),
            by_agents_port,
            local,
            refused_by_limits,
            resumed_outbound: resumed.with_label_values(&["outbound"]),
            resumed_inbound: resumed.with_label_values(&["inbound"]),
            reused_outbound: reused.with_label_values(&["outbound"]),
            reused_inbound: reused.with_label_values(&["inbound"]),
            sessions_stale,
            sessions_not_kept,
            handshake_outbound: handshakes.with_label_values(&["outbound"]),
            handshake_inbound: handshakes.with_label_values(&["inbound"]),
        })
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn what_is_counted_is_in_the_registry_of_this_agent_alone() {
        let (ours, other) = (Registry::new(), Registry::new());
        let metrics = Metrics::new(&ours).unwrap();
        Metrics::new(&other).unwrap();
        metrics.accepted_inbound.inc();
        metrics.handshake_inbound.observe(0.003);
        let [page, others] =
            [ours, other].map(|it| TextEncoder::new().encode_to_string(&it.gather()).unwrap());
        for (sample, value, of_other) in [
            ("connections_accepted_total{direction=\"inbound\"}", "1", "0"),
            ("connections_accepted_total{direction=\"outbound\"}", "0", "0"),
            ("handshake_duration_seconds_bucket{direction=\"inbound\",le=\"0.002\"}", "0", "0"),
            ("handshake_duration_seconds_bucket{direction=\"inbound\",le=\"0.005\"}", "1", "0"),
            ("handshake_duration_seconds_sum{direction=\"inbound\"}", "0.003", "0"),
            ("handshake_duration_seconds_count{direction=\"outbound\"}", "0", "0"),
        ] {
            let line = |value| format!("nodemesh_{sample} {value}\n");
            assert!(page.contains(&line(value)), "{sample} is not {value}: {page}");
            assert!(others.contains(&line(of_other)), "{sample} is not {of_other}: {others}");
        }
    }
}
