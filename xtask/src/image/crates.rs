//! The licences of what is linked into our programs: the crates, as Cargo knows them, and Rust's
//! own library.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::tree::{self, Tree};
use crate::process;
use crate::workspace::Workspace;

/// Where an image has the licences of crates: a list of them, and each text once.
const DIRECTORY: &str = "/licenses/rust";

/// How the names of files with licences begin, in whatever case.
const TEXTS: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// What the toolchain says of std and of the crates in it, below its own directory.
const STD: &str = "share/doc/rust/COPYRIGHT-library.html";

const ABOUT: &str = "\
# The crates of this program: name, version, licence, texts. Those that are linked in, and those that were run to build it.
# The texts are in texts/. Crates with the same text name the same file.
";

/// Adds the list and the texts, for a program that these packages of ours are made into.
pub(super) fn add(tree: &mut Tree, workspace: &Workspace, ours: &[&str]) -> Result<()> {
    let cargo = process::read_showing_errors(process::cargo(workspace).arg("-vV"))?;
    let mut texts = Texts::default();
    let std = texts.name(tree::read(&sysroot()?.join(STD))?, || "std.html".to_owned());
    let mut list = ABOUT.to_owned();
    let _ = writeln!(list, "std {}, MIT OR Apache-2.0: {std}", field(&cargo, "release")?);
    for it in linked(&metadata(workspace, field(&cargo, "host")?)?, ours)? {
        let names = texts.of(&it)?;
        let names = if names.is_empty() { "none in its source" } else { &names.join(" ") };
        let _ = writeln!(list, "{} {}, {}: {names}", it.name, it.version, it.licence);
    }
    tree.data(&Path::new(DIRECTORY).join("crates.txt"), list);
    for (text, name) in texts.names {
        tree.data(&Path::new(DIRECTORY).join("texts").join(name), text);
    }
    Ok(())
}

/// The compiler's own directory.
fn sysroot() -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let printed = process::read_showing_errors(Command::new(rustc).args(["--print", "sysroot"]))?;
    Ok(printed.trim().into())
}

/// A field of what `cargo -vV` prints.
fn field<'a>(versions: &'a str, name: &str) -> Result<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(": ");
    versions.lines().find_map(value).with_context(|| format!("cargo does not tell its {name}"))
}

/// What Cargo knows of all crates for this machine.
fn metadata(workspace: &Workspace, host: &str) -> Result<Value> {
    let mut cargo = process::cargo(workspace);
    cargo.args(["metadata", "--format-version", "1", "--filter-platform", host]);
    Ok(serde_json::from_str(&process::read_showing_errors(&mut cargo)?)?)
}

/// A crate that is not ours, as far as its licence goes.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Crate {
    name: String,
    version: String,
    licence: String,
    /// The directory of its source.
    directory: PathBuf,
}

/// What packages of ours need to be built and to run, but not to be tested. Features are those that
/// the whole workspace asks for, as in its builds.
fn linked(metadata: &Value, ours: &[&str]) -> Result<BTreeSet<Crate>> {
    let packages = by_id(&metadata["packages"]);
    let nodes = by_id(&metadata["resolve"]["nodes"]);
    let is_ours = |package: &Value| package["source"].is_null();
    let is_root = |package: &Value| ours.iter().any(|name| package["name"] == *name);
    let roots = packages.iter().filter(|(_, package)| is_ours(package) && is_root(package));
    let mut open: Vec<_> = roots.map(|(id, _)| *id).collect();
    ensure!(open.len() == ours.len(), "cargo does not know all of {}", ours.join(", "));
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            let node = nodes.get(id).with_context(|| format!("cargo has not resolved {id}"))?;
            let needed = array(&node["deps"])
                .filter(|needed| array(&needed["dep_kinds"]).any(|kind| kind["kind"] != "dev"));
            open.extend(needed.filter_map(|needed| needed["pkg"].as_str()));
        }
    }
    let foreign = seen.iter().filter_map(|id| packages.get(id)).filter(|package| !is_ours(package));
    foreign.map(|package| crate_of(package)).collect()
}

fn crate_of(package: &Value) -> Result<Crate> {
    let text = |name: &str| {
        let value = package[name].as_str();
        value.with_context(|| format!("{} {} has no {name}", package["name"], package["version"]))
    };
    let manifest = Path::new(text("manifest_path")?);
    Ok(Crate {
        name: text("name")?.to_owned(),
        version: text("version")?.to_owned(),
        licence: text("license")?.to_owned(),
        directory: manifest.parent().unwrap_or(manifest).to_owned(),
    })
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn by_id(list: &Value) -> BTreeMap<&str, &Value> {
    array(list).filter_map(|it| Some((it["id"].as_str()?, it))).collect()
}

/// Texts by their content, each with the name of the first crate that had it.
#[derive(Default)]
struct Texts {
    names: HashMap<Vec<u8>, String>,
}

impl Texts {
    /// The name of a text.
    fn name(&mut self, text: Vec<u8>, first: impl FnOnce() -> String) -> String {
        self.names.entry(text).or_insert_with(first).clone()
    }

    /// The names of a crate's texts.
    fn of(&mut self, it: &Crate) -> Result<Vec<String>> {
        let entries = fs::read_dir(&it.directory)
            .with_context(|| format!("cannot read {}", it.directory.display()))?;
        let mut files = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let upper = name.to_uppercase();
            let is_text = TEXTS.iter().any(|start| upper.starts_with(start));
            if is_text && it.directory.join(&name).is_file() {
                files.push(name);
            }
        }
        files.sort();
        let name = |file: String| {
            let text = tree::read(&it.directory.join(&file))?;
            Ok(self.name(text, || format!("{}-{}-{file}", it.name, it.version)))
        };
        files.into_iter().map(name).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, source: Option<&str>) -> Value {
        json!({
            "id": name, "name": name, "version": "1.0.0", "source": source,
            "license": "MIT", "manifest_path": format!("/src/{name}/Cargo.toml"),
        })
    }

    fn node(name: &str, needed: &[(&str, Option<&str>)]) -> Value {
        let needed = needed.iter().map(
            |(name, kind)| json!({ "pkg": name, "dep_kinds": [{ "kind": kind, "target": null }] }),
        );
        json!({ "id": name, "deps": needed.collect::<Vec<_>>() })
    }

    #[test]
    fn what_only_tests_or_other_packages_need_is_not_listed() {
        let registry = Some("registry");
        let metadata = json!({
            "packages": [
                package("mesh-agent", None), package("mesh-ebpf", None), package("tests", None),
                package("builder", registry), package("core", registry), package("far", registry),
                package("mock", registry), package("other", registry),
            ],
            "resolve": { "nodes": [
                node("mesh-agent", &[("core", None), ("builder", Some("build")), ("mock", Some("dev"))]),
                node("mesh-ebpf", &[("far", None)]), node("tests", &[("other", None)]),
                node("core", &[("far", None)]), node("far", &[("core", None)]),
                node("builder", &[]), node("mock", &[]), node("other", &[]),
            ]},
        });
        let crates = linked(&metadata, &["mesh-agent", "mesh-ebpf"]).unwrap();
        let names: Vec<_> = crates.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["builder", "core", "far"]);
    }

    #[test]
    fn a_crate_without_a_licence_is_an_error() {
        let mut bare = package("bare", None);
        bare["license"] = Value::Null;
        let error = crate_of(&bare).unwrap_err().to_string();
        assert_eq!(error, r#""bare" "1.0.0" has no license"#);
    }

    #[test]
    fn the_same_text_is_kept_once() {
        let mut texts = Texts::default();
        assert_eq!(texts.name(b"MIT".to_vec(), || "a".to_owned()), "a");
        assert_eq!(texts.name(b"MIT".to_vec(), || "b".to_owned()), "a");
        assert_eq!(texts.name(b"ISC".to_vec(), || "c".to_owned()), "c");
    }
}
