//! What the proxy counts for Prometheus. Each metric is looked up by its labels once,
//! here, so that a connection pays for an addition only.

use prometheus::{
    IntCounter, Registry, register_int_counter_vec_with_registry,
    register_int_counter_with_registry,
};

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
    /// Connections for which there was no room.
    pub refused_by_limits: IntCounter,
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
        let refused_by_limits = register_int_counter_with_registry!(
            "nodemesh_connections_refused_by_limits_total",
            "Connections refused because too many were open, or in their handshakes, over all, of a pod or of a client's address.",
            registry
        )?;
        Ok(Self {
            accepted_outbound: accepted.with_label_values(&["outbound"]),
            accepted_inbound: accepted.with_label_values(&["inbound"]),
            bytes_sent: bytes.with_label_values(&["sent"]),
            bytes_received: bytes.with_label_values(&["received"]),
            by_agents_port,
            refused_by_limits,
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
        let [page, others] =
            [ours, other].map(|it| TextEncoder::new().encode_to_string(&it.gather()).unwrap());
        for (sample, value, of_other) in [
            ("connections_accepted_total{direction=\"inbound\"}", "1", "0"),
            ("connections_accepted_total{direction=\"outbound\"}", "0", "0"),
        ] {
            let line = |value| format!("nodemesh_{sample} {value}\n");
            assert!(page.contains(&line(value)), "{sample} is not {value}: {page}");
            assert!(others.contains(&line(of_other)), "{sample} is not {of_other}: {others}");
        }
    }
}
