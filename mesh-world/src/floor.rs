//! The least protection that stays in force for a pod, whatever its object says.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::{Mode, PortSet};

use super::membership::{Membership, Readable};
use super::objects::{NamespaceObject, Objects, PodObject};
use super::origin::Origin;
use super::settings::{Declaration, MeshLabel, PodSettings};

/// How closed a pod is. Knowledge older than this must not open it further.
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
    fn above(&self, settings: &PodSettings) -> PodSettings {
        PodSettings {
            mode: settings.mode.max(self.mode),
            exclude_ports: settings.exclude_ports.only(|port| self.exclude_ports.contains(&port)),
            permissive_ports: settings
                .permissive_ports
                .only(|port| self.permissive_ports.contains(&port)),
            same_node: settings.same_node,
        }
    }
}

impl Floor {
    /// The settings for a pod with an unreadable setting and no earlier value. The floor stands in
    /// for what cannot be read; a readable setting counts as far as it opens no more.
    fn instead_of(&self, said: &Readable) -> PodSettings {
        let own = PodSettings {
            mode: self.mode,
            exclude_ports: PortSet::of(self.exclude_ports.iter().copied()),
            permissive_ports: PortSet::default(),
            same_node: None,
        };
        self.above(&PodSettings {
            mode: said.mode.unwrap_or(own.mode),
            exclude_ports: said.exclude_ports.clone().unwrap_or(own.exclude_ports),
            permissive_ports: said.permissive_ports.clone(),
            same_node: said.same_node,
        })
    }
}

/// Whether the label that decides about a pod is unreadable.
fn is_label_unreadable(
    pod: &PodObject,
    namespace: Option<&NamespaceObject>,
    is_unreadable: impl Fn(&Origin) -> bool,
) -> bool {
    let of = |mesh: &Declaration, origin| mesh.mesh.is_unreadable() || is_unreadable(origin);
    let own = of(&pod.mesh, &pod.origin);
    let above = || namespace.is_some_and(|it| of(&it.mesh, &it.origin));
    own || (pod.mesh.mesh.is_unset() && above())
}

impl Objects {
    /// These objects, with the pods at some addresses at least as closed as `floors` say; each pod
    /// object then states what is in force for it. A pod that is not to be in the mesh stays as it
    /// is, unless the label that decides cannot be read now (`is_unreadable` says the same of whole
    /// objects). That such a pod was in the mesh when the floor was laid is newer than anything
    /// said earlier.
    #[must_use]
    pub fn above(
        &self,
        floors: &HashMap<IpAddr, Floor>,
        is_unreadable: impl Fn(&Origin) -> bool,
    ) -> Self {
        let mut lifted = self.clone();
        let pods = self.pods().filter(|pod| pod.ips.iter().any(|ip| floors.contains_key(ip)));
        for pod in pods {
            let namespace = self.namespaces.get(&pod.name.namespace);
            let membership = Membership::decide(pod, namespace.map(Arc::as_ref));
            let mut floors = pod.ips.iter().filter_map(|ip| floors.get(ip));
            let (said, start) = match membership {
                Membership::Enabled(said) | Membership::Waiting { settings: said, .. } => {
                    (Some(said.clone()), said)
                }
                Membership::Disabled(reason)
                    if !reason.is_by_label()
                        || !is_label_unreadable(
                            pod,
                            namespace.map(Arc::as_ref),
                            &is_unreadable,
                        ) =>
                {
                    continue;
                }
                Membership::Invalid { .. } | Membership::Disabled(_) => {
                    let Some(floor) = floors.next() else { continue };
                    let readable = Membership::readable(pod, namespace.map(Arc::as_ref));
                    (None, floor.instead_of(&readable))
                }
            };
            let settings = floors.fold(start, |settings, floor| floor.above(&settings));
            if said.as_ref() != Some(&settings) {
                let mut pod = PodObject::clone(pod);
                if said.is_none() {
                    pod.mesh.mesh.put(MeshLabel::Enabled);
                }
                pod.mesh.mode.put(settings.mode);
                pod.mesh.exclude_ports.put(settings.exclude_ports);
                pod.mesh.permissive_ports.put(settings.permissive_ports);
                // Replaced directly: as a later version, it would inherit unreadable settings from
                // the earlier one.
                lifted.pods.insert(pod.uid.clone(), Arc::new(pod));
            }
        }
        lifted
    }

    /// The addresses of pods with a declaration that cannot be read, their own or their
    /// namespaces': what is in force for them was said earlier. Pods and namespaces whose whole
    /// object the source cannot read count, too.
    pub fn unreadable(&self, is_unreadable: impl Fn(&Origin) -> bool) -> HashSet<IpAddr> {
        let is_unreadable = |pod: &&Arc<PodObject>| {
            let of = |mesh: &Declaration, origin| mesh.has_unreadable() || is_unreadable(origin);
            let namespace = self.namespaces.get(&pod.name.namespace);
            of(&pod.mesh, &pod.origin) || namespace.is_some_and(|it| of(&it.mesh, &it.origin))
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
        let lifted = objects.above(&floors, |_| false);
        let is = |mode, exclude: &str, permissive: &str| {
            Some((mode, exclude.to_owned(), permissive.to_owned()))
        };
        assert_eq!(in_force(&objects, "closed"), is(Mode::Permissive, "22,5000-5002", "9102-9103"));
        assert_eq!(in_force(&lifted, "closed"), is(Mode::Strict, "5001", "9102"));
        assert_eq!(in_force(&lifted, "unknown"), in_force(&objects, "unknown"));
        assert_eq!(in_force(&lifted, "out"), None, "it takes no pod in");
        assert_eq!(in_force(&lifted, "strict"), is(Mode::Strict, "22", ""), "nor opened");
        assert_eq!(lifted.above(&floors, |_| false), lifted);
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
        assert_eq!(objects.unreadable(|_| false), [slip].into());
        let mode = |objects: &Objects| in_force(objects, "slip").map(|(mode, ..)| mode);
        let lifted =
            objects.above(&HashMap::from([(slip, floor(Mode::Strict, &[], &[]))]), |_| false);
        assert_eq!((mode(&objects), mode(&lifted)), (Some(Mode::Permissive), Some(Mode::Strict)));
        assert_eq!(lifted.unreadable(|_| false), [slip].into(), "it is told still");
    }

    #[test]
    fn a_pod_that_was_in_the_mesh_stays_in_it_while_nobody_can_read_what_it_is_to_be() {
        type Said = &'static [(&'static str, &'static str)];
        const LABEL_SLIP: (&str, &str) = ("nodemesh.dev/mesh", "enable");
        const MODE_SLIP: (&str, &str) = ("nodemesh.dev/mode", "strikt");
        const STRICT: (&str, &str) = ("nodemesh.dev/mode", "strict");
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let lifted = |on_pod: Said, on_namespace: Said, floors: &[(IpAddr, Floor)]| {
            let mut objects = Objects::default();
            objects.insert_namespace(namespace("shop", on_namespace));
            objects.insert_pod(pod("shop", "slip", "node1", "10.0.0.1", on_pod));
            let lifted = objects.above(&floors.iter().cloned().collect(), |_| false);
            let again = lifted.above(&floors.iter().cloned().collect(), |_| false);
            assert_eq!(again, lifted);
            in_force(&lifted, "slip")
        };
        let is = |mode, exclude: &str| Some((mode, exclude.to_owned(), String::new()));
        let open = [(address, floor(Mode::Permissive, &[22, 80], &[]))];
        let closed = [(address, floor(Mode::Strict, &[], &[]))];
        let cases: [(Said, Said); 2] = [(&[LABEL_SLIP], &[ENABLED]), (&[], &[LABEL_SLIP])];
        for (on_pod, on_namespace) in cases {
            assert_eq!(lifted(on_pod, on_namespace, &[]), None, "it was not in the mesh");
            assert_eq!(lifted(on_pod, on_namespace, &open), is(Mode::Permissive, ""));
            assert_eq!(lifted(on_pod, on_namespace, &closed), is(Mode::Strict, ""));
        }
        // A readable setting counts as far as it opens no more; for an unreadable one, the floor
        // stands.
        assert_eq!(lifted(&[LABEL_SLIP, STRICT], &[], &open), is(Mode::Strict, ""));
        assert_eq!(lifted(&[MODE_SLIP], &[ENABLED], &open), is(Mode::Permissive, ""));
        let ports: Said = &[("nodemesh.dev/exclude-ports", "http")];
        assert_eq!(lifted(ports, &[ENABLED], &open), is(Mode::Permissive, "22,80"));
        let out: Said = &[("nodemesh.dev/mesh", "disabled"), MODE_SLIP];
        assert_eq!(lifted(out, &[ENABLED], &closed), None, "that can be read");
    }

    #[test]
    fn that_a_pod_was_in_the_mesh_is_newer_than_what_was_written_down_of_its_label() {
        let at: IpAddr = "10.0.0.1".parse().unwrap();
        let floors = HashMap::from([(at, floor(Mode::Strict, &[], &[]))]);
        let said = |label: &'static str| {
            let mut objects = Objects::default();
            objects.insert_namespace(namespace("shop", &[("nodemesh.dev/mesh", label)]));
            objects.insert_pod(pod("shop", "slip", "node1", "10.0.0.1", &[]));
            objects
        };
        let mut objects = said("enabeld");
        objects.inherit(&said("disabled"));
        assert_eq!(in_force(&objects, "slip"), None);
        let lifted = objects.above(&floors, |_| false);
        assert_eq!(in_force(&lifted, "slip").map(|(mode, ..)| mode), Some(Mode::Strict));
        // A file that cannot be read at all stands for what it said at some time.
        let is_of = |kind: &'static str| move |origin: &Origin| origin.kind == kind;
        let out = said("disabled");
        assert_eq!(in_force(&out.above(&floors, |_| false), "slip"), None);
        for kind in ["Pod", "Namespace"] {
            assert!(in_force(&out.above(&floors, is_of(kind)), "slip").is_some(), "{kind}");
        }
    }
}
