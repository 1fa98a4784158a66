//! The programs that Nodemesh's build, demo and tests call. A new one is a new row here, and
//! nothing else.

/// What setup prepares for; each includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Compile everything.
    Build,
    /// Run the demo and the benchmark, or some tests.
    Demo,
    /// Build and run the tests' Kubernetes.
    Cluster,
    /// Pass every gate of `cargo xtask test`.
    Test,
    /// Test on other kernels.
    Kernels,
}

impl Purpose {
    pub(crate) const NAMES: &[&str] = &["build", "demo", "cluster", "test", "kernels"];

    /// The purpose that the command line calls `name`, one of [`Self::NAMES`].
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "build" => Self::Build,
            "demo" => Self::Demo,
            "cluster" => Self::Cluster,
            "kernels" => Self::Kernels,
            _ => Self::Test,
        }
    }
}

/// A program, or a file, and the Debian package that has it.
pub(crate) struct Program {
    /// Files by their whole paths.
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
    pub(crate) purpose: Purpose,
    /// What it does for us; shown when it has to be installed.
    pub(crate) why: &'static str,
}

pub(crate) const PROGRAMS: &[Program] = &[
    program("bpftool", "bpftool", Purpose::Test, "what the kernel holds of an agent"),
    program(
        "busybox",
        "busybox-static",
        Purpose::Cluster,
        "the programs in a cluster's pods, and most of a virtual machine's",
    ),
    program("c++", "g++", Purpose::Test, "compiles libFuzzer"),
    program(
        "containerd",
        "containerd",
        Purpose::Cluster,
        "runs the containers of a cluster's node",
    ),
    program("conntrack", "conntrack", Purpose::Cluster, "ends a service's old connections"),
    program("curl", "curl", Purpose::Demo, "HTTP/1.1 client in a pod"),
    program("faketime", "faketime", Purpose::Test, "agents whose clock is wrong"),
    program("haproxy", "haproxy", Purpose::Test, "a balancer that checks its servers"),
    program(
        "host-local",
        "containernetworking-plugins",
        Purpose::Cluster,
        "the network of a cluster's pods",
    ),
    program("ip", "iproute2", Purpose::Demo, "nodes and pods out of network namespaces"),
    program(
        "javac",
        "default-jdk-headless",
        Purpose::Test,
        "what a Java program hears of failures",
    ),
    program(
        "/usr/share/java/postgresql.jar",
        "libpostgresql-jdbc-java",
        Purpose::Test,
        "what JDBC hears of failures",
    ),
    program(
        "/usr/lib/python3/dist-packages/amqp/__init__.py",
        "python3-amqp",
        Purpose::Test,
        "what a client of a message broker hears of failures",
    ),
    program("make", "make", Purpose::Build, "builds jemalloc, the agent's allocator"),
    program("nghttp", "nghttp2-client", Purpose::Demo, "HTTP/2 client in a pod"),
    program("nghttpd", "nghttp2-server", Purpose::Demo, "HTTP/2 server in a pod"),
    program(
        "nft",
        "nftables",
        Purpose::Cluster,
        "a cluster's services, and a pod's own firewall rules",
    ),
    program("nginx", "nginx-light", Purpose::Demo, "a real HTTP server in a pod"),
    program(
        "openssl",
        "openssl",
        Purpose::Demo,
        "false certificates, and TLS peers that are not ours",
    ),
    program("python3", "python3", Purpose::Test, "stops threads of a process (ptrace)"),
    program(
        "qemu-system-x86_64",
        "qemu-system-x86",
        Purpose::Kernels,
        "virtual machines with other kernels",
    ),
    program("psql", "postgresql-client", Purpose::Test, "what a database client hears of failures"),
    program("redis-cli", "redis-tools", Purpose::Demo, "the database's own client"),
    program("redis-server", "redis-server", Purpose::Demo, "a real database in a pod"),
    program("runc", "runc", Purpose::Cluster, "starts a cluster's containers"),
    program("socat", "socat", Purpose::Test, "a server that sets no socket option"),
    program("tcpdump", "tcpdump", Purpose::Demo, "captures of the link between the nodes"),
    program("wget", "wget", Purpose::Test, "what another HTTP client hears of failures"),
];

const fn program(
    name: &'static str,
    package: &'static str,
    purpose: Purpose,
    why: &'static str,
) -> Program {
    Program { name, package, purpose, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_purpose_has_its_name() {
        let named: Vec<_> = Purpose::NAMES.iter().map(|name| Purpose::named(name)).collect();
        let all =
            [Purpose::Build, Purpose::Demo, Purpose::Cluster, Purpose::Test, Purpose::Kernels];
        assert_eq!(named, all);
        assert!(named.is_sorted(), "each purpose includes the ones before it");
    }
}
