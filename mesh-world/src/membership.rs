//! Whether a pod is in the mesh, and if not, why not.

use std::fmt;
use std::net::IpAddr;

use mesh_api::{Mode, PodCode, PortSet, SameNode};

use super::objects::{NamespaceObject, PodObject};
use super::origin::FieldError;
use super::settings::{Declared, MeshLabel, PodSettings};

/// Whether one pod is to be in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It is, with these settings.
    Enabled(PodSettings),
    /// It is not.
    Disabled(NotEnabledReason),
    /// It is meant to be, but cannot be yet.
    Waiting {
        /// For what.
        reason: NotEnabledReason,
        /// The settings it will have.
        settings: PodSettings,
    },
    /// A label or annotation cannot be read and nothing earlier is known. The pod is not enrolled,
    /// since its intended settings are unknown.
    Invalid {
        /// Which field, and why.
        error: FieldError,
        /// True if a readable label, or the namespace's own, opts the pod in and its mode is
        /// `strict` or unreadable. An unreadable mode counts as strict: an author does not misspell
        /// the default.
        strict: bool,
    },
}

/// See [`Membership::readable`].
pub(super) struct Readable {
    /// `None` if it cannot be read.
    pub(super) mode: Option<Mode>,
    /// The same.
    pub(super) exclude_ports: Option<PortSet>,
    /// Those that cannot be read open nothing.
    pub(super) permissive_ports: PortSet,
    /// One that cannot be read means mutual TLS.
    pub(super) same_node: Option<SameNode>,
}

/// Why a pod is not in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotEnabledReason {
    /// It is in the mesh's own namespace: the agents must not depend on what they keep.
    MeshNamespace,
    /// No label asks for it.
    NotLabelled,
    /// The pod's own label says `disabled`.
    PodOptedOut,
    /// The namespace's label says `disabled`.
    NamespaceOptedOut,
    /// The Namespace object is unknown, and with it the settings that the pod would inherit. A pod
    /// that itself says that it is to be in the mesh, and in which mode, waits for it. What any
    /// other pod is meant to be is not known.
    NamespaceMissing,
    /// It shares the node's network.
    HostNetwork,
    /// It has ended, and its address may be another pod's by now.
    Completed,
    /// It has no address yet.
    NoAddress,
    /// Another pod has one of its addresses.
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// The pod that has it, as `namespace/name`.
        holder: String,
    },
}

impl NotEnabledReason {
    /// Its code, sentence and the rest.
    pub fn code(&self) -> PodCode {
        match self {
            Self::MeshNamespace => PodCode::MeshNamespace,
            Self::NotLabelled => PodCode::NotLabelled,
            Self::PodOptedOut => PodCode::PodOptedOut,
            Self::NamespaceOptedOut => PodCode::NamespaceOptedOut,
            Self::NamespaceMissing => PodCode::NamespaceMissing,
            Self::HostNetwork => PodCode::HostNetwork,
            Self::Completed => PodCode::Completed,
            Self::NoAddress => PodCode::NoAddress,
            Self::AddressTaken { .. } => PodCode::AddressTaken,
        }
    }

    /// Whether the reason is a label, or that there is none.
    pub(super) fn is_by_label(&self) -> bool {
        matches!(self, Self::NotLabelled | Self::PodOptedOut | Self::NamespaceOptedOut)
    }
}

impl fmt::Display for NotEnabledReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressTaken { address, holder } => {
                write!(f, "its address {address} is already that of pod {holder}")
            }
            other => f.write_str(other.code().sentence()),
        }
    }
}

impl Membership {
    /// The code for `status`.
    pub fn code(&self) -> PodCode {
        match self {
            Self::Enabled(_) => PodCode::Enabled,
            Self::Disabled(reason) | Self::Waiting { reason, .. } => reason.code(),
            Self::Invalid { .. } => PodCode::InvalidSetting,
        }
    }

    /// Why the pod is not in the mesh, for people; empty if it is.
    pub fn reason(&self) -> String {
        match self {
            Self::Enabled(_) => String::new(),
            Self::Disabled(reason) | Self::Waiting { reason, .. } => reason.to_string(),
            Self::Invalid { error, .. } => error.to_string(),
        }
    }

    /// The settings, if the pod is to be in the mesh.
    pub fn settings(&self) -> Option<&PodSettings> {
        match self {
            Self::Enabled(settings) => Some(settings),
            Self::Disabled(_) | Self::Waiting { .. } | Self::Invalid { .. } => None,
        }
    }

    /// Whether the declaration asks for strict. This holds also for a pod that is not in the mesh
    /// yet, and for one whose settings cannot be read.
    pub fn means_strict(&self) -> bool {
        match self {
            Self::Enabled(settings) | Self::Waiting { settings, .. } => {
                settings.mode == Mode::Strict
            }
            Self::Invalid { strict, .. } => *strict,
            Self::Disabled(_) => false,
        }
    }

    /// What a pod and its namespace say of its settings, as far as it can be read.
    pub(super) fn readable(pod: &PodObject, namespace: Option<&NamespaceObject>) -> Readable {
        let above = namespace.map(|namespace| &namespace.mesh);
        let mode = inherit(&pod.mesh.mode, above.map(|above| &above.mode));
        let ports = inherit(&pod.mesh.exclude_ports, above.map(|above| &above.exclude_ports));
        Readable {
            mode: mode.ok().map(|mode| mode.map(|(mode, _)| mode).unwrap_or_default()),
            exclude_ports: ports.ok().map(|ports| ports.map(|(it, _)| it).unwrap_or_default()),
            permissive_ports: permissive_ports(pod, namespace),
            same_node: same_node(pod, namespace),
        }
    }

    /// Decides for one pod. Whether its address is its own is settled elsewhere.
    pub(super) fn decide(pod: &PodObject, namespace: Option<&NamespaceObject>) -> Self {
        Self::try_decide(pod, namespace).unwrap_or_else(|not| not)
    }

    fn try_decide(pod: &PodObject, namespace: Option<&NamespaceObject>) -> Result<Self, Self> {
        let above = namespace.map(|namespace| &namespace.mesh);
        let label = inherit(&pod.mesh.mesh, above.map(|above| &above.mesh));
        // A pod that states label and mode itself inherits nothing that matters.
        let says_its_mode = !matches!(pod.mesh.mode.in_force(), Ok(None));
        let not_wanted = match (&label, namespace) {
            (Err(_) | Ok(Some((MeshLabel::Enabled, _))), Some(_)) => None,
            (Ok(Some((MeshLabel::Enabled, _))), None) if says_its_mode => None,
            (Ok(Some((MeshLabel::Disabled, Level::Pod))), _) => Some(NotEnabledReason::PodOptedOut),
            (Ok(Some((MeshLabel::Disabled, Level::Namespace))), _) => {
                Some(NotEnabledReason::NamespaceOptedOut)
            }
            (_, None) => Some(NotEnabledReason::NamespaceMissing),
            (Ok(None), Some(_)) => Some(NotEnabledReason::NotLabelled),
        };
        let not_possible = || {
            let reasons = [
                (pod.host_network, NotEnabledReason::HostNetwork),
                (pod.completed, NotEnabledReason::Completed),
            ];
            reasons.into_iter().find_map(|(applies, reason)| applies.then_some(reason))
        };
        if let Some(reason) = not_wanted.or_else(not_possible) {
            return Err(Self::Disabled(reason));
        }
        let mode = inherit(&pod.mesh.mode, above.map(|above| &above.mode));
        let ports = inherit(&pod.mesh.exclude_ports, above.map(|above| &above.exclude_ports));
        let permissive = matches!(mode, Ok(None | Some((Mode::Permissive, _))));
        // An unreadable label puts no pod into the mesh, and takes none out of its namespace's.
        let by_namespace = above.is_some_and(|above| {
            above.mesh.in_force().is_ok_and(|label| label == Some(&MeshLabel::Enabled))
        });
        let strict = !permissive && (label.is_ok() || by_namespace);
        let (mode, ports) = match (label, mode, ports) {
            (Ok(_), Ok(mode), Ok(ports)) => (mode, ports),
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
                return Err(Self::Invalid { error, strict });
            }
        };
        let settings = PodSettings {
            mode: mode.map(|(mode, _)| mode).unwrap_or_default(),
            exclude_ports: ports.map(|(ports, _)| ports).unwrap_or_default(),
            permissive_ports: permissive_ports(pod, namespace),
            same_node: same_node(pod, namespace),
        };
        let waits_for = [
            (namespace.is_none(), NotEnabledReason::NamespaceMissing),
            (pod.ips.is_empty(), NotEnabledReason::NoAddress),
        ];
        let reason = waits_for.into_iter().find_map(|(waits, reason)| waits.then_some(reason));
        Ok(match reason {
            Some(reason) => Self::Waiting { reason, settings },
            None => Self::Enabled(settings),
        })
    }
}

/// The ports that a strict pod leaves open: the pod's own annotation, else the namespace's. An
/// unreadable annotation opens none. It keeps no pod out of the mesh, since the pod is then only
/// more closed.
fn permissive_ports(pod: &PodObject, namespace: Option<&NamespaceObject>) -> PortSet {
    let above = namespace.map(|namespace| &namespace.mesh.permissive_ports);
    own_or(&pod.mesh.permissive_ports, above)
        .and_then(Declared::readable)
        .cloned()
        .unwrap_or_default()
}

/// How connections with pods of the same node go: the pod's own annotation, else the namespace's.
/// An unreadable annotation means mutual TLS.
fn same_node(pod: &PodObject, namespace: Option<&NamespaceObject>) -> Option<SameNode> {
    let above = namespace.map(|namespace| &namespace.mesh.same_node);
    match own_or(&pod.mesh.same_node, above)? {
        Declared::Unset => None,
        declared => Some(declared.readable().copied().unwrap_or_default()),
    }
}

/// The pod's declaration, if it says anything, else the namespace's.
fn own_or<'a, T: Clone>(
    own: &'a Declared<T>,
    above: Option<&'a Declared<T>>,
) -> Option<&'a Declared<T>> {
    if own.is_unset() { above } else { Some(own) }
}

#[derive(Clone, Copy)]
enum Level {
    Pod,
    Namespace,
}

/// The pod's value, else the namespace's. An error if that value cannot be read and nothing earlier
/// is known.
fn inherit<T: Clone>(
    pod: &Declared<T>,
    namespace: Option<&Declared<T>>,
) -> Result<Option<(T, Level)>, FieldError> {
    for (declared, level) in [(Some(pod), Level::Pod), (namespace, Level::Namespace)] {
        match declared.map_or(Ok(None), Declared::in_force) {
            Ok(Some(value)) => return Ok(Some((value.clone(), level))),
            Ok(None) => {}
            Err(error) => return Err(error.clone()),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::settings::MODE_ANNOTATION;
    use super::super::snapshot::testing::{namespace, pod};
    use super::*;

    const ON: &[(&str, &str)] = &[("nodemesh.dev/mesh", "enabled")];
    const OFF: &[(&str, &str)] = &[("nodemesh.dev/mesh", "disabled")];

    fn code(pod: &PodObject, namespace: &NamespaceObject) -> &'static str {
        Membership::decide(pod, Some(namespace)).code().code()
    }

    #[test]
    fn the_pods_label_wins() {
        let plain = |labels| pod("shop", "cart", "node1", "10.0.0.1", labels);
        assert_eq!(code(&plain(&[]), &namespace("shop", ON)), "enabled");
        assert_eq!(code(&plain(ON), &namespace("shop", OFF)), "enabled");
        assert_eq!(code(&plain(OFF), &namespace("shop", ON)), "pod_opted_out");
        assert_eq!(code(&plain(&[]), &namespace("shop", OFF)), "namespace_opted_out");
        assert_eq!(code(&plain(&[]), &namespace("shop", &[])), "not_labelled");
        let slip = plain(&[("nodemesh.dev/mesh", "enable")]);
        assert_eq!(code(&slip, &namespace("shop", ON)), "invalid_setting");
    }

    #[test]
    fn a_pod_that_cannot_be_in_says_why() {
        let shop = namespace("shop", ON);
        let mut it = pod("shop", "cart", "node1", "10.0.0.1", &[]);
        it.host_network = true;
        assert_eq!(code(&it, &shop), "host_network");
        it.host_network = false;
        it.completed = true;
        assert_eq!(code(&it, &shop), "completed");
        it.completed = false;
        it.ips.clear();
        assert_eq!(code(&it, &shop), "no_address");
    }

    #[test]
    fn only_what_can_be_read_opens_ports_of_a_strict_pod() {
        let key = "nodemesh.dev/permissive-ports";
        let open = |on_pod: Option<&str>, on_namespace: Option<&str>| {
            let on_pod: Vec<_> = on_pod.map(|ports| (key, ports)).into_iter().collect();
            let above: Vec<_> = on_namespace.map(|ports| (key, ports)).into_iter().collect();
            let strict = &[(MODE_ANNOTATION, "strict")];
            let pod = pod("shop", "cart", "node1", "10.0.0.1", &[&on_pod[..], strict].concat());
            let namespace = namespace("shop", &[&above[..], ON].concat());
            let membership = Membership::decide(&pod, Some(&namespace));
            let settings = membership.settings().expect("it is in the mesh");
            assert_eq!(settings.mode, Mode::Strict);
            settings.permissive_ports.to_string()
        };
        assert_eq!(open(None, None), "");
        assert_eq!(open(None, Some("9102, 8443")), "8443,9102");
        assert_eq!(open(Some("80-81"), Some("9102")), "80-81");
        assert_eq!(open(Some(""), Some("9102")), "");
        assert_eq!(open(Some("x"), Some("9102")), "", "not the namespace's either");
        assert_eq!(open(None, Some("http")), "");
    }

    #[test]
    fn settings_come_from_the_pod_else_the_namespace_else_the_default() {
        let settings = |on_pod: &[(&str, &str)], on_namespace: &[(&str, &str)]| {
            let pod = pod("shop", "cart", "node1", "10.0.0.1", &[ON, on_pod].concat());
            let namespace = namespace("shop", on_namespace);
            Membership::decide(&pod, Some(&namespace)).settings().cloned()
        };
        let strict = &[(MODE_ANNOTATION, "strict"), ("nodemesh.dev/exclude-ports", "22")];
        assert_eq!(settings(&[], &[]), Some(PodSettings::default()));
        let inherited = settings(&[], strict).unwrap();
        assert_eq!(
            (inherited.mode, inherited.exclude_ports.to_string()),
            (Mode::Strict, "22".into())
        );
        let own = settings(
            &[(MODE_ANNOTATION, "permissive"), ("nodemesh.dev/exclude-ports", "")],
            strict,
        );
        assert_eq!(own, Some(PodSettings::default()), "an empty list undoes the namespace's");
        assert_eq!(settings(&[], &[(MODE_ANNOTATION, "strikt")]), None);
    }

    #[test]
    fn without_its_namespace_a_pod_is_what_it_says_for_itself() {
        let decide = |labels: &[&[(&str, &str)]]| {
            Membership::decide(&pod("shop", "cart", "node1", "10.0.0.1", &labels.concat()), None)
        };
        let (strict, permissive) =
            (&[(MODE_ANNOTATION, "strict")], &[(MODE_ANNOTATION, "permissive")]);
        for nobody_knows in [decide(&[]), decide(&[ON]), decide(&[strict])] {
            assert_eq!(nobody_knows, Membership::Disabled(NotEnabledReason::NamespaceMissing));
        }
        for (mode, waits) in
            [(Mode::Strict, decide(&[ON, strict])), (Mode::Permissive, decide(&[ON, permissive]))]
        {
            let settings = PodSettings { mode, ..PodSettings::default() };
            assert_eq!(waits.means_strict(), mode == Mode::Strict);
            assert_eq!(waits.settings(), None, "not in the mesh yet");
            assert_eq!(
                waits,
                Membership::Waiting { reason: NotEnabledReason::NamespaceMissing, settings }
            );
        }
        assert!(decide(&[ON, &[(MODE_ANNOTATION, "strikt")]]).means_strict());
        assert_eq!(
            decide(&[&[("nodemesh.dev/mesh", "enable")], strict]).code().code(),
            "namespace_missing"
        );
        assert_eq!(decide(&[OFF, strict]).code().code(), "pod_opted_out");
    }

    #[test]
    fn who_wants_no_plaintext_is_known_before_the_pod_has_an_address() {
        let means_strict = |annotations: &[(&str, &str)], address: bool| {
            let mut pod = pod("shop", "cart", "node1", "10.0.0.1", annotations);
            if !address {
                pod.ips.clear();
            }
            Membership::decide(&pod, Some(&namespace("shop", ON))).means_strict()
        };
        let strict = &[(MODE_ANNOTATION, "strict")];
        assert!(means_strict(strict, true) && means_strict(strict, false));
        assert!(!means_strict(&[], true) && !means_strict(&[], false));
        let out = [OFF, strict].concat();
        assert!(!means_strict(&out, false));
    }

    #[test]
    fn a_strict_pod_of_the_mesh_is_meant_to_be_closed_whatever_else_cannot_be_read() {
        type Said = &'static [(&'static str, &'static str)];
        const STRICT: (&str, &str) = (MODE_ANNOTATION, "strict");
        const PERMISSIVE: (&str, &str) = (MODE_ANNOTATION, "permissive");
        const MODE_SLIP: (&str, &str) = (MODE_ANNOTATION, "strikt");
        const PORTS_SLIP: (&str, &str) = ("nodemesh.dev/exclude-ports", "http");
        const LABEL_SLIP: (&str, &str) = ("nodemesh.dev/mesh", "enable");
        const IN: (&str, &str) = ("nodemesh.dev/mesh", "enabled");
        const OUT: (&str, &str) = ("nodemesh.dev/mesh", "disabled");
        let cases: [(Said, Said, bool); 12] = [
            (&[IN, MODE_SLIP], &[], true),
            (&[], &[IN, MODE_SLIP], true),
            (&[IN, STRICT, PORTS_SLIP], &[], true),
            (&[PORTS_SLIP], &[IN, STRICT], true),
            (&[], &[IN, STRICT, PORTS_SLIP], true),
            (&[IN, PERMISSIVE, PORTS_SLIP], &[], false),
            // The namespace opts in; what the pod says about that cannot be read.
            (&[LABEL_SLIP], &[IN, STRICT], true),
            (&[LABEL_SLIP, PERMISSIVE], &[IN, STRICT], false),
            // No readable label opts in.
            (&[LABEL_SLIP, STRICT], &[], false),
            (&[LABEL_SLIP], &[OUT, STRICT], false),
            (&[], &[LABEL_SLIP, STRICT], false),
            (&[STRICT], &[LABEL_SLIP], false),
        ];
        for (on_pod, on_namespace, strict) in cases {
            let mut pod = pod("shop", "cart", "node1", "10.0.0.1", on_pod);
            let namespace = namespace("shop", on_namespace);
            let membership = Membership::decide(&pod, Some(&namespace));
            assert_eq!(membership.code().code(), "invalid_setting", "{on_pod:?} {on_namespace:?}");
            assert_eq!(membership.means_strict(), strict, "{on_pod:?} {on_namespace:?}");
            pod.host_network = true;
            let membership = Membership::decide(&pod, Some(&namespace));
            assert_eq!(membership.code().code(), "host_network", "the node's own may not be held");
        }
    }
}
