//! The cast: web → cart → db in namespace `shop`, a `legacy` pod outside the mesh, and a stranger.

use std::net::SocketAddr;

use anyhow::Result;
use tests::{
    Net, Node, Pod, PodSpec,
    agent::Agent,
    exec::{Output, Process},
    programs::{self, Nginx},
};

/// Where cart listens.
pub(crate) const HTTP: u16 = 8080;
/// Where db listens.
pub(crate) const REDIS: u16 = 6379;
/// The service in front of cart.
pub(crate) const CART_SERVICE: &str = "10.96.0.10:80";
/// What must not be readable on the link.
pub(crate) const SECRET: &str = "X-Card: 4929-1234-5678-9012";

pub(crate) struct Shop<'a> {
    pub(crate) net: &'a Net,
    pub(crate) nodes: [Node; 2],
    pub(crate) agents: [Agent; 2],
    pub(crate) web: Pod,
    pub(crate) cart: Pod,
    pub(crate) db: Pod,
    pub(crate) legacy: Pod,
    pub(crate) stranger: Pod,
    pub(crate) nginx: Nginx,
    pub(crate) redis: Process,
}

impl<'a> Shop<'a> {
    /// Everything runs; no pod is in the mesh.
    pub(crate) fn open(net: &'a Net) -> Result<Self> {
        let nodes = [net.node("node1")?, net.node("node2")?];
        let [one, two] = &nodes;
        let pod = |node, namespace, name| net.pod(node, PodSpec::new(namespace, name));
        let web = pod(one, "shop", "web")?;
        let cart = pod(two, "shop", "cart")?;
        let db = pod(one, "shop", "db")?;
        let legacy = pod(one, "old", "legacy")?;
        let stranger = pod(two, "elsewhere", "stranger")?;
        let service: SocketAddr = CART_SERVICE.parse()?;
        net.objects().service("shop", "cart", &[service], HTTP, &[&cart])?;
        let nginx = programs::nginx(&cart, HTTP, "cart: two pears")?;
        let redis = programs::redis(&db, REDIS)?;
        let agents = [net.agent(one)?, net.agent(two)?];
        Ok(Self { net, nodes, agents, web, cart, db, legacy, stranger, nginx, redis })
    }

    /// `redis-cli` in a pod, to db.
    pub(crate) fn redis(&self, pod: &Pod, words: &[&str]) -> Result<Output> {
        let (host, port) = (self.db.v4.to_string(), REDIS.to_string());
        let options = ["redis-cli", "-h", &host, "-p", &port];
        pod.run(options.iter().chain(words))
    }
}

/// What a customer's request does: `curl` in a pod, with the secret.
pub(crate) fn curl(pod: &Pod, to: &str) -> Result<String> {
    let url = format!("http://{to}/");
    pod.run(["curl", "-sS", "--max-time", "10", "-H", SECRET, &url])?.success()
}
