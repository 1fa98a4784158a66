//! What a namespace or a pod says about the mesh: one label, four annotations.

use std::collections::BTreeMap;
use std::str::FromStr;

use mesh_api::PortSet;
use mesh_api::{Mode, ProblemCode, SameNode};

use super::origin::{FieldError, Origin};
use super::problem::Problem;
use super::slips::{Slip, slips};

/// Label on a namespace or pod: `enabled` or `disabled`. The pod's wins.
pub const MESH_LABEL: &str = "nodemesh.dev/mesh";
/// Annotation on a namespace or pod: `permissive` (the default) or `strict`. The pod's wins.
pub const MODE_ANNOTATION: &str = "nodemesh.dev/mode";
/// Annotation on a namespace or pod: ports such as `6379,8000-8010`. The pod's replaces the
/// namespace's; the two are not merged.
pub const EXCLUDE_PORTS_ANNOTATION: &str = "nodemesh.dev/exclude-ports";
/// Annotation on a namespace or pod: on these ports a strict pod takes what a permissive one would.
/// Form and precedence are those of [`EXCLUDE_PORTS_ANNOTATION`].
pub const PERMISSIVE_PORTS_ANNOTATION: &str = "nodemesh.dev/permissive-ports";
/// Annotation on a namespace or pod: `tls` or `local`, how connections with pods of the same node
/// go. The pod's wins; of the two pods, the stricter does.
pub const SAME_NODE_ANNOTATION: &str = "nodemesh.dev/same-node";
/// Annotation on a pod in a file: its network namespace, a path or a name under /run/netns.
pub const NETNS_ANNOTATION: &str = "nodemesh.dev/netns";

/// Stands for an unreadable value without an earlier one: none of the keys accepts it.
const UNREADABLE: &str = "unreadable";

/// The value of [`MESH_LABEL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeshLabel {
    /// In the mesh.
    Enabled,
    /// Out of it, even if the namespace is in.
    Disabled,
}

/// What is in force for one pod of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSettings {
    /// Permissive or strict.
    pub mode: Mode,
    /// Ports that the mesh leaves alone.
    pub exclude_ports: PortSet,
    /// Ports on which plaintext is accepted although the mode is strict.
    pub permissive_ports: PortSet,
    /// How connections with pods of the same node go; `None` if nothing says so.
    pub same_node: Option<SameNode>,
}

/// One value that may be declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Declared<T> {
    /// Not there.
    #[default]
    Unset,
    /// There, and readable.
    Set(T),
    /// There, but not readable.
    Unreadable {
        /// Why.
        error: FieldError,
        /// The value before it became unreadable, which stays in force: a slip of the pen must not
        /// take a running pod out of the mesh, nor open a strict one. `None` if nothing readable
        /// has been seen since the agent started.
        before: Option<Box<Self>>,
    },
}

impl<T: Clone> Declared<T> {
    /// What is in force, or why nothing can be.
    pub fn in_force(&self) -> Result<Option<&T>, &FieldError> {
        match self {
            Self::Unset => Ok(None),
            Self::Set(value) => Ok(Some(value)),
            Self::Unreadable { before: Some(before), .. } => before.in_force(),
            Self::Unreadable { error, before: None } => Err(error),
        }
    }

    /// The value in force, as text for an object.
    fn text(&self, write: impl FnOnce(&T) -> String) -> Option<String> {
        match self.in_force() {
            Ok(value) => value.map(write),
            Err(_unreadable) => Some(UNREADABLE.to_owned()),
        }
    }

    /// The value that can be read now, without regard to earlier ones.
    pub(super) fn readable(&self) -> Option<&T> {
        match self {
            Self::Set(value) => Some(value),
            Self::Unset | Self::Unreadable { .. } => None,
        }
    }

    /// Whether nothing is declared, readable or not.
    pub(super) fn is_unset(&self) -> bool {
        matches!(self, Self::Unset)
    }

    /// Whether the declared value cannot be read.
    pub(super) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Unreadable { .. })
    }

    /// Puts this value in force; a value that cannot be read stays marked as such.
    pub(super) fn put(&mut self, value: T) {
        let value = Self::Set(value);
        match self {
            Self::Unreadable { before, .. } => *before = Some(Box::new(value)),
            Self::Unset | Self::Set(_) => *self = value,
        }
    }

    /// If this value cannot be read, keeps the object's earlier version in force.
    fn carry_over(&mut self, earlier: &Self) {
        if let Self::Unreadable { before, .. } = self {
            *before = match earlier {
                Self::Unreadable { before, .. } => before.clone(),
                readable => Some(Box::new(readable.clone())),
            };
        }
    }

    /// The problem, if this cannot be read. `consequence` applies if there is no earlier value.
    fn problem(&self, origin: &Origin, consequence: &str) -> Option<Problem> {
        let Self::Unreadable { before, .. } = self else {
            return None;
        };
        self.problem_that(
            origin,
            match before.as_deref() {
                Some(_) => "what it said before stays in force",
                None => consequence,
            },
        )
    }

    /// The problem, if this cannot be read, with this consequence even if an earlier value exists.
    fn problem_that(&self, origin: &Origin, consequence: &str) -> Option<Problem> {
        let Self::Unreadable { error, .. } = self else {
            return None;
        };
        let mut error = error.clone();
        error.message = format!("{}; {consequence}", error.message);
        Some(Problem::new(origin, ProblemCode::InvalidSetting, error))
    }
}

/// All that one namespace or pod declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declaration {
    /// [`MESH_LABEL`].
    pub mesh: Declared<MeshLabel>,
    /// [`MODE_ANNOTATION`].
    pub mode: Declared<Mode>,
    /// [`EXCLUDE_PORTS_ANNOTATION`].
    pub exclude_ports: Declared<PortSet>,
    /// [`PERMISSIVE_PORTS_ANNOTATION`]. An earlier value does not count: an unreadable annotation
    /// opens nothing.
    pub permissive_ports: Declared<PortSet>,
    /// [`SAME_NODE_ANNOTATION`]. An earlier value does not count: an unreadable annotation means
    /// mutual TLS.
    pub same_node: Declared<SameNode>,
    /// Keys of ours that have no effect where they stand.
    pub slips: Vec<Slip>,
}

impl Declaration {
    /// Reads labels and annotations. A value that cannot be read is kept as
    /// [`Declared::Unreadable`] and is not an error: the rest of the object is still good.
    pub fn parse(
        labels: Option<&BTreeMap<String, String>>,
        annotations: Option<&BTreeMap<String, String>>,
    ) -> Self {
        Self {
            mesh: declared(labels, "metadata.labels", MESH_LABEL, parse_mesh),
            mode: declared(annotations, "metadata.annotations", MODE_ANNOTATION, parse_mode),
            exclude_ports: declared(
                annotations,
                "metadata.annotations",
                EXCLUDE_PORTS_ANNOTATION,
                parse_ports,
            ),
            permissive_ports: declared(
                annotations,
                "metadata.annotations",
                PERMISSIVE_PORTS_ANNOTATION,
                parse_ports,
            ),
            same_node: declared(
                annotations,
                "metadata.annotations",
                SAME_NODE_ANNOTATION,
                parse_same_node,
            ),
            slips: slips(labels, annotations),
        }
    }

    /// The labels and annotations from which this can be read again. An unreadable value is written
    /// as its earlier one, since that is in force; without one, as a text that cannot be read
    /// either.
    pub(super) fn write(
        &self,
        labels: &mut BTreeMap<String, String>,
        annotations: &mut BTreeMap<String, String>,
    ) {
        let mesh = |label: &MeshLabel| match label {
            MeshLabel::Enabled => "enabled".to_owned(),
            MeshLabel::Disabled => "disabled".to_owned(),
        };
        labels.remove(MESH_LABEL);
        labels.extend(self.mesh.text(mesh).map(|text| (MESH_LABEL.to_owned(), text)));
        let mode = self.mode.text(ToString::to_string);
        annotations.extend(mode.map(|text| (MODE_ANNOTATION.to_owned(), text)));
        let ports = self.exclude_ports.text(ToString::to_string);
        annotations.extend(ports.map(|text| (EXCLUDE_PORTS_ANNOTATION.to_owned(), text)));
        let ports = self.permissive_ports.text(ToString::to_string);
        annotations.extend(ports.map(|text| (PERMISSIVE_PORTS_ANNOTATION.to_owned(), text)));
        let same_node = self.same_node.text(ToString::to_string);
        annotations.extend(same_node.map(|text| (SAME_NODE_ANNOTATION.to_owned(), text)));
        for slip in &self.slips {
            slip.write(labels, annotations);
        }
    }

    /// Whether an earlier version of the object can supply a value: never for permissive ports
    /// and for the way on the same node.
    pub(super) fn has_unreadable(&self) -> bool {
        self.mesh.is_unreadable() || self.mode.is_unreadable() || self.exclude_ports.is_unreadable()
    }

    pub(super) fn carry_over(&mut self, earlier: &Self) {
        self.mesh.carry_over(&earlier.mesh);
        self.mode.carry_over(&earlier.mode);
        self.exclude_ports.carry_over(&earlier.exclude_ports);
    }

    pub(super) fn problems(&self, origin: &Origin) -> impl Iterator<Item = Problem> {
        let all = [
            self.mesh.problem(origin, "pods that depend on it are not in the mesh; one whose namespace is, and that is strict, is held"),
            self.mode.problem(origin, "pods of the mesh that depend on it are held, since they may be meant to be strict"),
            self.exclude_ports.problem(origin, "pods that depend on it are not in the mesh, and held if they are strict"),
            self.permissive_ports
                .problem_that(origin, "until it can be read, strict pods are strict on all ports"),
            self.same_node.problem_that(
                origin,
                "until it can be read, connections on the same node go over mutual TLS",
            ),
        ];
        all.into_iter().flatten().chain(self.slips.iter().map(|slip| slip.problem(origin)))
    }
}

/// Reads one key of a string map with `parse`, whose error is a message and a hint.
pub(super) fn declared<T>(
    map: Option<&BTreeMap<String, String>>,
    map_field: &str,
    key: &str,
    parse: impl FnOnce(&str) -> Result<T, (String, &'static str)>,
) -> Declared<T> {
    let Some(text) = map.and_then(|map| map.get(key)) else {
        return Declared::Unset;
    };
    match parse(text) {
        Ok(value) => Declared::Set(value),
        Err((message, hint)) => {
            let error = FieldError::new(format!("{map_field}[{key}]"), message).hint(hint);
            Declared::Unreadable { error, before: None }
        }
    }
}

fn parse_mesh(text: &str) -> Result<MeshLabel, (String, &'static str)> {
    match text {
        "enabled" => Ok(MeshLabel::Enabled),
        "disabled" => Ok(MeshLabel::Disabled),
        _ => Err((format!("unknown value {text:?}"), "write enabled or disabled")),
    }
}

fn parse_mode(text: &str) -> Result<Mode, (String, &'static str)> {
    match text {
        "permissive" => Ok(Mode::Permissive),
        "strict" => Ok(Mode::Strict),
        _ => Err((format!("unknown mode {text:?}"), "write permissive or strict")),
    }
}

fn parse_same_node(text: &str) -> Result<SameNode, (String, &'static str)> {
    text.parse().map_err(|_unknown| (format!("unknown value {text:?}"), "write tls or local"))
}

fn parse_ports(text: &str) -> Result<PortSet, (String, &'static str)> {
    const HINT: &str = "write ports and ranges with commas between them, such as 6379,8000-8010";
    PortSet::from_str(text).map_err(|error| (error.to_string(), HINT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declaration(mode: &str) -> Declaration {
        let annotations = BTreeMap::from([(MODE_ANNOTATION.to_owned(), mode.to_owned())]);
        Declaration::parse(None, Some(&annotations))
    }

    #[test]
    fn the_last_readable_value_survives_any_number_of_slips() {
        let mut slip = declaration("strikt");
        assert!(slip.mode.in_force().is_err());

        slip.carry_over(&declaration("strict"));
        assert_eq!(slip.mode.in_force(), Ok(Some(&Mode::Strict)));
        let mut again = declaration("stric");
        again.carry_over(&slip);
        assert_eq!(again.mode.in_force(), Ok(Some(&Mode::Strict)));

        let mut after_unset = declaration("strikt");
        after_unset.carry_over(&Declaration::default());
        assert_eq!(after_unset.mode.in_force(), Ok(None));
    }

    #[test]
    fn a_readable_value_is_not_overruled_by_an_earlier_one() {
        let mut now = declaration("permissive");
        now.carry_over(&declaration("strict"));
        assert_eq!(now, declaration("permissive"));
    }

    #[test]
    fn what_is_written_says_what_is_in_force() {
        let written = |it: &Declaration| {
            let (mut labels, mut annotations) = (BTreeMap::new(), BTreeMap::new());
            it.write(&mut labels, &mut annotations);
            Declaration::parse(Some(&labels), Some(&annotations))
        };
        let labels = BTreeMap::from([(MESH_LABEL.to_owned(), "disabled".to_owned())]);
        let annotations = BTreeMap::from([
            (MODE_ANNOTATION.to_owned(), "strict".to_owned()),
            (EXCLUDE_PORTS_ANNOTATION.to_owned(), "22,8000-8010".to_owned()),
            (PERMISSIVE_PORTS_ANNOTATION.to_owned(), "9102".to_owned()),
            (SAME_NODE_ANNOTATION.to_owned(), "local".to_owned()),
        ]);
        let all = Declaration::parse(Some(&labels), Some(&annotations));
        assert_eq!(written(&all), all);
        let mut slip = declaration("strikt");
        assert!(written(&slip).mode.in_force().is_err(), "it must not be read as permissive");
        slip.carry_over(&declaration("strict"));
        assert_eq!(written(&slip).mode.in_force(), Ok(Some(&Mode::Strict)));
    }

    #[test]
    fn ports_that_cannot_be_read_open_nothing_and_say_so() {
        let ports = |text: &str| {
            let annotation = (PERMISSIVE_PORTS_ANNOTATION.to_owned(), text.to_owned());
            Declaration::parse(None, Some(&BTreeMap::from([annotation])))
        };
        let mut slip = ports("8443,x");
        slip.carry_over(&ports("8443"));
        assert_eq!(slip.permissive_ports.readable(), None);
        let origin = Origin::api("Pod", Some("shop"), "cart");
        let problems: Vec<_> = slip.problems(&origin).map(|p| p.to_string()).collect();
        assert_eq!(
            problems,
            [
                "Pod shop/cart: metadata.annotations[nodemesh.dev/permissive-ports]: \"x\" is neither a \
              port (1 to 65535) nor a range such as 8000-8010; until it can be read, strict pods are \
              strict on all ports. Hint: write ports and ranges with commas between them, such as \
              6379,8000-8010."
            ]
        );
    }

    #[test]
    fn a_problem_says_whether_something_stays_in_force() {
        let origin = Origin::api("Pod", Some("shop"), "cart");
        let mut slip = declaration("strikt");
        let text = |d: &Declaration| d.problems(&origin).map(|p| p.to_string()).collect::<Vec<_>>();
        assert_eq!(
            text(&slip),
            ["Pod shop/cart: metadata.annotations[nodemesh.dev/mode]: unknown mode \"strikt\"; \
              pods of the mesh that depend on it are held, since they may be meant to be strict. \
              Hint: write permissive or strict."]
        );
        slip.carry_over(&declaration("strict"));
        assert_eq!(
            text(&slip),
            ["Pod shop/cart: metadata.annotations[nodemesh.dev/mode]: unknown mode \"strikt\"; \
              what it said before stays in force. Hint: write permissive or strict."]
        );
    }
}
