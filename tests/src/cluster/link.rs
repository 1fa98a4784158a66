//! The network below the cluster.
//!
//! ```text
//!  pod eth0 ── cni0 node1 uplink ── br0 (in control's namespace) ── uplink node2 cni0 ── eth0 pod
//!                                   │ 198.18.N.1: API server, DNS server
//!                                   └─ nmcN, the host: 198.18.N.254
//! ```
//! `cni0` and `br0` are bridges. Pods reach pods of the other node by their own addresses; nothing
//! on the way changes them.

use std::{fs, net::IpAddr, process::Command};

use anyhow::{Context as _, Result};

use super::plan::{CONTROL, NODES, Plan, gateways, node_name, pod_ranges};
use crate::netns;

/// Makes the machines' namespaces and what is between them.
pub(super) fn make(plan: &Plan) -> Result<()> {
    let control = plan.netns(CONTROL);
    // A router without a route to elsewhere, which says so: a pod's dials to the outside fail at
    // once.
    netns::add(&control, true)?;
    let (v4, v6) = plan.control();
    netns::ip(
        Some(&control),
        &format!(
            "link set lo up\n\
             link add br0 type bridge mcast_snooping 0\n\
             addr add {v4}/24 dev br0\naddr add {v6}/64 dev br0 nodad\n\
             link set br0 up\n"
        ),
    )?;
    for node in 1..=NODES {
        let (name, (v4, v6)) = (plan.netns(&node_name(node)), plan.node(node));
        netns::add(&name, true)?;
        netns::ip(
            Some(&control),
            &format!(
                "link add port{node} type veth peer name uplink netns {name}\n\
                 link set port{node} master br0 up\n"
            ),
        )?;
        // As in `topology`: a bridge without an address of its own changes it with its ports.
        let [gateway4, gateway6] = gateways(node);
        netns::ip(
            Some(&name),
            &format!(
                "link set lo up\nlink set uplink up\n\
                 addr add {v4}/24 dev uplink\naddr add {v6}/64 dev uplink nodad\n\
                 link add cni0 address 02:00:0a:f4:{node:02x}:01 type bridge mcast_snooping 0\n\
                 addr add {gateway4}/24 dev cni0\naddr add {gateway6}/64 dev cni0 nodad\n\
                 link set cni0 up\n\
                 route add default via {}\nroute add default via {}\n",
                plan.control().0,
                plan.control().1,
            ),
        )?;
        // A service's pod answers a client on its own node through the bridge, not through the
        // node's routes. Without this setting such answers would keep the pod's address.
        netns::inside(&netns::path(&name), || -> Result<()> {
            for family in ["iptables", "ip6tables"] {
                let setting = format!("/proc/sys/net/bridge/bridge-nf-call-{family}");
                fs::write(&setting, "1").with_context(|| {
                    format!("{setting}: the kernel has no br_netfilter (modprobe br_netfilter)")
                })?;
            }
            Ok(())
        })??;
    }
    for from in 1..=NODES {
        let others = (1..=NODES).filter(|to| *to != from);
        let routes: String = others.map(|to| routes(plan, to)).collect();
        netns::ip(Some(&plan.netns(&node_name(from))), &routes)?;
    }
    let routes: String = (1..=NODES).map(|to| routes(plan, to)).collect();
    netns::ip(Some(&control), &routes)?;
    host(plan)
}

/// The way to a node's pods.
fn routes(plan: &Plan, node: u8) -> String {
    let (v4, v6) = plan.node(node);
    let via = [IpAddr::from(v4), IpAddr::from(v6)];
    let ranges = pod_ranges(node);
    let routes = ranges.iter().zip(via);
    routes.map(|(range, via)| format!("route add {range} via {via}\n")).collect::<Vec<_>>().concat()
}

/// The host is on the link too, so that kubectl works there.
fn host(plan: &Plan) -> Result<()> {
    let (link, control, (v4, _)) = (plan.host_link(), plan.netns(CONTROL), plan.host());
    netns::ip(
        None,
        &format!(
            "link add {link} type veth peer name host netns {control}\n\
             addr add {v4}/24 dev {link}\nlink set {link} up\n"
        ),
    )?;
    netns::ip(Some(&control), "link set host master br0 up\n")
}

/// Whether the host's link is still there.
pub(super) fn host_link_exists(plan: &Plan) -> bool {
    fs::exists(format!("/sys/class/net/{}", plan.host_link())).unwrap_or(false)
}

/// Removes the host's link at once; otherwise it would go with the namespace of its other end, but
/// later.
pub(super) fn remove(plan: &Plan) {
    if host_link_exists(plan) {
        // It may go by itself just now.
        drop(Command::new("ip").args(["link", "del", &plan.host_link()]).output());
    }
}
