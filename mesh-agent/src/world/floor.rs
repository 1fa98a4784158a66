//! What holds of a pod at least, whatever its object says.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::membership::Membership;
use super::objects::{Objects, PodObject};
use super::settings::{Mode, Settings};

/// How closed a pod is. Nobody may open it further by knowledge that is older than this.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// The mode.
    pub mode: Mode,
    /// Ports that the mesh leaves alone.
    pub exclude_ports: BTreeSet<u16>,
    /// Ports on which it takes plaintext although it is strict.
    pub permissive_ports: BTreeSet<u16>,
}

impl Floor {
    /// These settings, as far as they open no more than this.
    fn above(&self, settings: &Settings) -> Settings {
        Settings {
            mode: settings.mode.max(self.mode),
            exclude_ports: settings.exclude_ports.only(|port| self.exclude_ports.contains(&port)),
            permissive_ports: settings
                .permissive_ports
                .only(|port| self.permissive_ports.contains(&port)),
        }
    }
}

impl Objects {
    /// These, with the pods at some addresses at least as closed as is said there: each says by itself then what is in force
    /// for it. Who is not to be in the mesh stays as he is.
    #[must_use]
    pub fn above(&self, floors: &HashMap<IpAddr, Floor>) -> Self {
        let mut lifted = self.clone();
        let pods = self.pods().filter(|pod| pod.ips.iter().any(|ip| floors.contains_key(ip)));
        for pod in pods {
            let namespace = self.namespaces.get(&pod.name.namespace);
            let membership = Membership::decide(pod, namespace.map(Arc::as_ref));
            let (Membership::Enabled(said) | Membership::Waiting { settings: said, .. }) =
                membership
            else {
                continue;
            };
            let floors = pod.ips.iter().filter_map(|ip| floors.get(ip));
            let settings = floors.fold(said.clone(), |settings, floor| floor.above(&settings));
            if settings != said {
                let mut pod = PodObject::clone(pod);
                pod.mesh.mode.put(settings.mode);
                pod.mesh.exclude_ports.put(settings.exclude_ports);
                pod.mesh.permissive_ports.put(settings.permissive_ports);
                // Not as a later version, of which what cannot be read would be as it was.
                lifted.pods.insert(pod.uid.clone(), Arc::new(pod));
            }
        }
        lifted
    }

    /// The addresses of pods of which something is declared that cannot be read, by themselves or by their namespaces: what is
    /// in force for them instead was said earlier.
    pub fn unreadable(&self) -> HashSet<IpAddr> {
        let is_unreadable = |pod: &&Arc<PodObject>| {
            let namespace = self.namespaces.get(&pod.name.namespace);
            pod.mesh.has_unreadable() || namespace.is_some_and(|it| it.mesh.has_unreadable())
        };
        self.pods().filter(is_unreadable).flat_map(|pod| &pod.ips).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::testing::{local, namespace, pod, uid};
    use super::super::{Announcements, Incumbents, Snapshot, Wanted};
    use super::*;

    const ENABLED: (&str, &str) = ("nodemesh.dev/mesh", "enabled");

    fn floor(mode: Mode, exclude_ports: &[u16], permissive_ports: &[u16]) -> Floor {
        let ports = |ports: &[u16]| ports.iter().copied().collect();
        Floor {
            mode,
            exclude_ports: ports(exclude_ports),
            permissive_ports: ports(permissive_ports),
        }
    }

    /// What is in force: mode, excluded ports, ports that are open.
    fn in_force(objects: &Objects, name: &str) -> Option<(Mode, String, String)> {
        let world = Snapshot::build(
            objects,
            &Announcements::new(),
            &local("node1", &[]),
            &Incumbents::default(),
        );
        match &world.local_pod(&uid(&format!("uid-{name}"))).unwrap().wanted {
            Wanted::In(it) => {
                Some((it.mode, it.exclude_ports.to_string(), it.permissive_ports.to_string()))
            }
            Wanted::Out => None,
        }
    }

    #[test]
    fn what_is_known_to_be_closed_is_not_opened_by_an_older_word() {
        let open = [
            ENABLED,
            ("nodemesh.dev/mode", "permissive"),
            ("nodemesh.dev/exclude-ports", "22,5000-5002"),
            ("nodemesh.dev/permissive-ports", "9102,9103"),
        ];
        let mut objects = Objects::default();
        objects.insert_namespace(namespace("shop", &open));
        for (name, address) in [("closed", "10.0.0.1,fd00::1"), ("unknown", "10.0.0.2")] {
            objects.insert_pod(pod("shop", name, "node1", address, &[]));
        }
        let disabled = [("nodemesh.dev/mesh", "disabled")];
        objects.insert_pod(pod("shop", "out", "node1", "10.0.0.3", &disabled));
        let strict = [("nodemesh.dev/mode", "strict")];
        objects.insert_pod(pod("shop", "strict", "node1", "10.0.0.4", &strict));
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let floors = HashMap::from([
            (address("10.0.0.1"), floor(Mode::Strict, &[5001, 5002], &[9102, 8080])),
            (address("fd00::1"), floor(Mode::Strict, &[5001], &[9102])),
            (address("10.0.0.3"), floor(Mode::Strict, &[], &[])),
            (address("10.0.0.4"), floor(Mode::Permissive, &[22], &[])),
        ]);
        let lifted = objects.above(&floors);
        let is = |mode, exclude: &str, permissive: &str| {
            Some((mode, exclude.to_owned(), permissive.to_owned()))
        };
        assert_eq!(in_force(&objects, "closed"), is(Mode::Permissive, "22,5000-5002", "9102-9103"));
        assert_eq!(in_force(&lifted, "closed"), is(Mode::Strict, "5001", "9102"));
        assert_eq!(in_force(&lifted, "unknown"), in_force(&objects, "unknown"));
        assert_eq!(in_force(&lifted, "out"), None, "nobody is taken in by it");
        assert_eq!(in_force(&lifted, "strict"), is(Mode::Strict, "22", ""), "nor opened");
        assert_eq!(lifted.above(&floors), lifted);
    }

    #[test]
    fn what_cannot_be_read_is_no_more_open_for_what_was_said_before() {
        let said = |mode: &'static str| {
            let mut objects = Objects::default();
            objects.insert_namespace(namespace("shop", &[ENABLED]));
            let slip = [("nodemesh.dev/mode", mode)];
            objects.insert_pod(pod("shop", "slip", "node1", "10.0.0.1", &slip));
            objects.insert_pod(pod("shop", "clear", "node1", "10.0.0.2", &[]));
            objects
        };
        let mut objects = said("strct");
        objects.inherit(&said("permissive"));
        let slip: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(objects.unreadable(), [slip].into());
        let mode = |objects: &Objects| in_force(objects, "slip").map(|(mode, ..)| mode);
        let lifted = objects.above(&HashMap::from([(slip, floor(Mode::Strict, &[], &[]))]));
        assert_eq!((mode(&objects), mode(&lifted)), (Some(Mode::Permissive), Some(Mode::Strict)));
        assert_eq!(lifted.unreadable(), [slip].into(), "it is told still");
    }
}
