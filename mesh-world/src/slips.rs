//! Keys of ours that have no effect where they stand: misspelt ones, labels that should be
//! annotations, and annotations that should be labels. The object is not refused for them. Each is
//! a problem, since its author believes that it is in force.

use std::collections::BTreeMap;

use mesh_api::ProblemCode;

use super::origin::{FieldError, Origin};
use super::problem::Problem;
use super::settings::{
    EXCLUDE_PORTS_ANNOTATION, MESH_LABEL, MODE_ANNOTATION, NETNS_ANNOTATION,
    PERMISSIVE_PORTS_ANNOTATION, SAME_NODE_ANNOTATION,
};

/// What our keys begin with, up to the slash.
const PREFIX: &str = "nodemesh.dev";
/// How many are reported of one object, since an author may write thousands.
const MOST: usize = 8;
/// How much of a value is shown, in characters.
const LONGEST_SHOWN: usize = 40;
/// How many letters may be wrong in a key, or in its prefix, so that it is still recognised.
const SLIPS_OF_THE_PEN: usize = 2;

/// Where a key stands in an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    Label,
    Annotation,
}

const KNOWN: [(&str, Stands); 6] = [
    (MESH_LABEL, Stands::Label),
    (MODE_ANNOTATION, Stands::Annotation),
    (EXCLUDE_PORTS_ANNOTATION, Stands::Annotation),
    (PERMISSIVE_PORTS_ANNOTATION, Stands::Annotation),
    (SAME_NODE_ANNOTATION, Stands::Annotation),
    (NETNS_ANNOTATION, Stands::Annotation),
];

/// A key of ours that says nothing where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slip {
    stands: Stands,
    key: String,
    value: String,
}

type Keys<'a> = Option<&'a BTreeMap<String, String>>;

/// Those of an object.
pub(super) fn slips(labels: Keys<'_>, annotations: Keys<'_>) -> Vec<Slip> {
    let all = |keys: Keys<'_>, stands: Stands| -> Vec<Slip> {
        let is_slip = |key: &str| looks_ours(key) && !KNOWN.contains(&(key, stands));
        let keys = keys.into_iter().flatten().filter(|(key, _)| is_slip(key)).take(MOST);
        let shown = |value: &String| value.chars().take(LONGEST_SHOWN).collect();
        keys.map(|(key, value)| Slip { stands, key: key.clone(), value: shown(value) }).collect()
    };
    let mut found = all(labels, Stands::Label);
    found.extend(all(annotations, Stands::Annotation));
    found.truncate(MOST);
    found
}

/// Whether a key is ours, or so nearly ours that it is meant to be.
fn looks_ours(key: &str) -> bool {
    let Some((prefix, name)) = key.split_once('/') else { return false };
    let is_name =
        || KNOWN.iter().any(|(known, _)| known.split_once('/').is_some_and(|it| it.1 == name));
    prefix == PREFIX || (is_near(prefix, PREFIX) && is_name())
}

fn is_near(text: &str, other: &str) -> bool {
    // The distance of long texts costs their lengths' product.
    text.len().abs_diff(other.len()) <= SLIPS_OF_THE_PEN
        && strsim::osa_distance(text, other) <= SLIPS_OF_THE_PEN
}

impl Slip {
    /// Puts it where it stood.
    pub(super) fn write(
        &self,
        labels: &mut BTreeMap<String, String>,
        annotations: &mut BTreeMap<String, String>,
    ) {
        let keys = match self.stands {
            Stands::Label => labels,
            Stands::Annotation => annotations,
        };
        keys.insert(self.key.clone(), self.value.clone());
    }

    /// The known key that is meant.
    fn meant(&self) -> Option<(&'static str, Stands)> {
        let exact = KNOWN.into_iter().find(|(known, _)| *known == self.key);
        exact.or_else(|| KNOWN.into_iter().find(|(known, _)| is_near(&self.key, known)))
    }

    pub(super) fn problem(&self, origin: &Origin) -> Problem {
        let Self { stands, key, value } = self;
        let meant = self.meant();
        // A key's author must not steer the terminal, nor the shell into which the hint is copied.
        let key = &printable(key);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-,".contains(c);
        let given = if value.chars().all(is_plain) { value.as_str() } else { "VALUE" };
        let (map, a, verb) = match stands {
            Stands::Label => ("metadata.labels", "a label", "label"),
            Stands::Annotation => ("metadata.annotations", "an annotation", "annotate"),
        };
        let is_strict =
            value.trim() == "strict" && meant.is_some_and(|(known, _)| known == MODE_ANNOTATION);
        let what = match meant {
            Some((known, Stands::Label)) if known == key => {
                format!("this is a label, and stands here as {a}")
            }
            Some((known, Stands::Annotation)) if known == key => {
                format!("this is an annotation, and stands here as {a}")
            }
            _ => format!("Nodemesh knows no such {}", a.rsplit(' ').next().unwrap_or_default()),
        };
        let consequence = if is_strict {
            "strict is asked for and NOT in force".to_owned()
        } else {
            format!("{value:?} is not in force")
        };
        let code = match meant {
            _ if is_strict => ProblemCode::StrictNotInForce,
            Some((known, _)) if known == key => ProblemCode::MisplacedSetting,
            _ => ProblemCode::UnknownSetting,
        };
        let object = {
            let kind = origin.kind.to_lowercase();
            let place = origin.namespace.as_ref().map(|it| format!(" -n {it}")).unwrap_or_default();
            format!("{kind} {}{place}", origin.name)
        };
        let away = format!("kubectl {verb} {object} {key}-");
        let hint = if let Some((known, meant)) = meant {
            let right = match meant {
                Stands::Label => "label",
                Stands::Annotation => "annotate",
            };
            format!(
                "did you mean `kubectl {right} {object} {known}={given}`? Then take this away: `{away}`"
            )
        } else {
            let known: Vec<_> = KNOWN.iter().map(|(known, _)| *known).collect();
            format!("known are {}; to take this away: `{away}`", known.join(", "))
        };
        let error = FieldError::new(format!("{map}[{key}]"), format!("{what}; {consequence}"));
        Problem::new(origin, code, error.hint(hint))
    }
}

/// Its beginning, without what steers a terminal.
fn printable(key: &str) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    key.chars().take(2 * LONGEST_SHOWN).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn told(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Vec<(ProblemCode, String)> {
        let (labels, annotations) = (keys(labels), keys(annotations));
        let found = slips(Some(&labels), Some(&annotations));
        let (mut label, mut annotation) = (BTreeMap::new(), BTreeMap::new());
        for slip in &found {
            slip.write(&mut label, &mut annotation);
        }
        assert_eq!(slips(Some(&label), Some(&annotation)), found, "read again, it is another");
        let origin = Origin::api("Namespace", None, "shop");
        let problems = found.iter().map(|slip| slip.problem(&origin));
        problems.map(|problem| (problem.code, problem.to_string())).collect()
    }

    #[test]
    fn what_is_right_and_what_is_not_ours_is_no_slip() {
        let right = told(
            &[(MESH_LABEL, "enabled"), ("app", "x"), ("example.com/mode", "strict")],
            &[
                (MODE_ANNOTATION, "strict"),
                (NETNS_ANNOTATION, "x"),
                ("nodemesh.development/owner", "x"),
                ("node.dev/other", ""),
            ],
        );
        assert_eq!(right, []);
    }

    #[test]
    fn a_label_that_should_be_an_annotation_says_that_strict_is_not_in_force() {
        assert_eq!(
            told(&[(MODE_ANNOTATION, "strict")], &[]),
            [(
                ProblemCode::StrictNotInForce,
                "Namespace shop: metadata.labels[nodemesh.dev/mode]: this is an annotation, and stands here as a label; \
                 strict is asked for and NOT in force. Hint: did you mean `kubectl annotate namespace shop \
                 nodemesh.dev/mode=strict`? Then take this away: `kubectl label namespace shop nodemesh.dev/mode-`."
                    .to_owned()
            )]
        );
    }

    #[test]
    fn misspelt_and_misplaced_keys_are_told_with_what_was_meant() {
        use ProblemCode::{MisplacedSetting, StrictNotInForce, UnknownSetting};
        for (labels, annotations, code, words) in [
            (
                &[][..],
                &[(MESH_LABEL, "enabled")][..],
                MisplacedSetting,
                "kubectl label namespace shop nodemesh.dev/mesh=enabled",
            ),
            (&[("nodemesh.dev/msh", "enabled")], &[], UnknownSetting, "nodemesh.dev/mesh=enabled"),
            (&[("nodemesh.dev/Mesh", "enabled")], &[], UnknownSetting, "nodemesh.dev/mesh=enabled"),
            (&[("nodemash.dev/mesh", "enabled")], &[], UnknownSetting, "nodemesh.dev/mesh=enabled"),
            (&[], &[("nodemesh.dev/mdoe", "strict")], StrictNotInForce, "nodemesh.dev/mode=strict"),
            (
                &[],
                &[("nodemesh.dev/exclude-port", "22")],
                UnknownSetting,
                "nodemesh.dev/exclude-ports=22",
            ),
            (
                &[],
                &[("nodemesh.dev/retries", "3")],
                UnknownSetting,
                "known are nodemesh.dev/mesh, ",
            ),
        ] {
            let found = told(labels, annotations);
            assert!(
                matches!(&found[..], [(is, text)] if *is == code && text.contains(words)),
                "{found:?}"
            );
        }
    }

    #[test]
    fn what_is_shown_steers_neither_terminal_nor_shell() {
        let found =
            told(&[], &[("nodemesh.dev/mode\u{1b}[2J", "x"), ("nodemesh.dev/mod", "$(reboot)\n")]);
        let texts: Vec<_> = found.into_iter().map(|(_, text)| text).collect();
        assert!(texts.iter().all(|text| !text.contains(char::is_control)), "{texts:?}");
        assert!(texts.iter().any(|text| text.contains("nodemesh.dev/mode=VALUE`")), "{texts:?}");
    }

    #[test]
    fn of_one_object_only_some_are_told() {
        let many = (0..100).map(|n| (format!("nodemesh.dev/x{n}"), "y".repeat(1000)));
        let many: BTreeMap<_, _> = many.collect();
        let found = slips(Some(&many), Some(&many));
        assert!(found.len() == MOST && found.iter().all(|slip| slip.value.len() == LONGEST_SHOWN));
    }
}
