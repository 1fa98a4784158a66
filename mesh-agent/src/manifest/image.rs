//! Which image the agents run, and whether a node may fetch it.

use std::fmt;
use std::str::FromStr;

/// The project's own name in image names. No registry answers for it: an image of this name is
/// loaded on each node by hand. The owner of such a domain must not be asked for a program that
/// runs with `SYS_ADMIN`.
const OURS: &str = "nodemesh.dev";
/// The name that podman gives to images built on the machine itself.
const LOCAL: &str = "localhost";

/// Longest name of an image without tag and digest (distribution/reference, `NameTotalLengthMax`).
const LONGEST_NAME: usize = 255;
/// Longest tag (distribution/reference, `tag`).
const LONGEST_TAG: usize = 128;

/// The name of an image with a tag or digest, as distribution/reference reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image(String);

impl Image {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether its name contains the registry to ask for it, one that the user has chosen.
    pub fn has_registry(&self) -> bool {
        !self.is_ours() && registry(&self.0).is_some_and(|registry| registry != LOCAL)
    }

    /// Whether it has the name of the images that `cargo xtask image` makes.
    pub fn is_ours(&self) -> bool {
        let host = registry(&self.0).and_then(|registry| registry.split(':').next());
        host == Some(OURS)
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Image {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, digest) =
            text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest)));
        // A colon before the last slash belongs to the registry's port.
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let colon = rest.get(last..).and_then(|it| it.find(':')).map(|at| last + at);
        let (name, tag) = match colon {
            Some(at) => (rest.get(..at).unwrap_or_default(), rest.get(at + 1..)),
            None => (rest, None),
        };
        let path = match registry(name) {
            Some(registry) if !is_host(registry) => {
                return Err(format!(
                    "{registry:?} is no registry: write a host and perhaps a port"
                ));
            }
            Some(registry) => name.get(registry.len() + 1..).unwrap_or_default(),
            None => name,
        };
        if name.len() > LONGEST_NAME || !path.split('/').all(is_part) {
            return Err(format!(
                "{path:?} is no image's name: small letters and digits, with `.`, `_` or `-` between them and `/` between parts"
            ));
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(format!("{tag:?} is no tag: letters, digits, `.`, `_` and `-`"));
        }
        if let Some(digest) = digest.filter(|digest| !is_digest(digest)) {
            return Err(format!(
                "{digest:?} is no digest: write sha256: and 64 hexadecimal digits"
            ));
        }
        if tag.is_none() && digest.is_none() {
            return Err("write a tag or a digest, too: an upgrade is known by it".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

/// The first part of a name, if it is a host: with a dot or a port, or `localhost`.
fn registry(name: &str) -> Option<&str> {
    let (first, _) = name.split_once('/')?;
    (first.contains(['.', ':']) || first == LOCAL).then_some(first)
}

fn is_host(text: &str) -> bool {
    let (host, port) =
        text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_label = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_name = host.split('.').all(is_label);
    let is_v6 = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let is_v6 = is_v6.is_some_and(|it| it.parse::<std::net::Ipv6Addr>().is_ok());
    (is_name || is_v6) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Letters and digits, with separators between them.
fn is_part(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let all = text.bytes().all(|byte| is_word(byte) || b"._-".contains(&byte));
    let ends = [text.bytes().next(), text.bytes().next_back()];
    let no_dots = !text.contains("..") && !text.contains("._") && !text.contains("_.");
    all && ends.into_iter().all(|end| end.is_some_and(is_word)) && no_dots
}

fn is_tag(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let begins = !text.starts_with(['.', '-']) && !text.is_empty();
    begins && text.len() <= LONGEST_TAG && text.bytes().all(good)
}

fn is_digest(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    digits.len() == 64 && digits.bytes().all(is_hex)
}

/// Whether a node may fetch the image (`imagePullPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// It has been loaded on the node, or the agent does not start.
    Never,
    /// From the registry in its name, if the node has no image of this name.
    IfNotPresent,
    /// From that registry, each time.
    Always,
}

impl PullPolicy {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "Never",
            Self::IfNotPresent => "IfNotPresent",
            Self::Always => "Always",
        }
    }

    /// The default: an image whose name contains no registry is not fetched.
    pub fn of(image: &Image) -> Self {
        if image.has_registry() { Self::IfNotPresent } else { Self::Never }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_registries_read_them() {
        let digest = format!("registry.example/a/b@sha256:{}", "0123456789abcdef".repeat(4));
        for good in [
            "nodemesh.dev/mesh-agent:0.1.0",
            "registry.example:5000/team/mesh-agent:1",
            "[fd00::1]:5000/mesh-agent:1",
            "localhost/mesh-agent:dev",
            "mesh_agent:V1.0-rc_1",
            "a/b__c---d:x",
            &digest,
            &digest.replace('@', ":1@"),
        ] {
            assert_eq!(good.parse::<Image>().map(|it| it.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "",
            " ",
            "bad image",
            "bad image:1",
            ":1",
            "/a:1",
            "a/:1",
            "a//b:1",
            "A/b:1",
            "-a:1",
            "a-:1",
            "a..b:1",
            "a:",
            "a:.1",
            "a:b:c",
            "a:1\n",
            "a@sha256:00",
            "a:1@sha512:00",
            "x.y:0/a:1",
            "x.y:65536/a:1",
            "x..y/a:1",
            "registry.example/mesh-agent",
            "a",
        ] {
            assert!(bad.parse::<Image>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(256).parse::<Image>().is_err());
    }

    #[test]
    fn only_a_registry_that_the_user_has_named_is_asked() {
        let policy = |name: &str| PullPolicy::of(&name.parse().unwrap());
        for nobodys in [
            "nodemesh.dev/mesh-agent:1",
            "localhost/mesh-agent:1",
            "mesh-agent:1",
            "team/mesh-agent:1",
            "nodemesh.dev:5000/a:1",
        ] {
            assert_eq!(policy(nobodys), PullPolicy::Never, "{nobodys}");
        }
        for theirs in ["registry.example/mesh-agent:1", "localhost:5000/mesh-agent:1"] {
            assert_eq!(policy(theirs), PullPolicy::IfNotPresent, "{theirs}");
        }
    }
}
