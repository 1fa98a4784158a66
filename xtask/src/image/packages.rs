//! The licences of what an image takes from the host: Debian's packages, as they state them
//! themselves.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::tree::{self, Tree};
use crate::process;

/// Where an image has the licences of packages: a list of them, and a directory for each.
const DIRECTORY: &str = "/licenses/debian";

/// Licences that many packages share. The packages' own texts refer to them by this path, so it is
/// the image's too.
const COMMON: &str = "/usr/share/common-licenses";

const ABOUT: &str = "\
# Debian's packages that files of this image are from, each with its version, source package and that one's version.
# Their licences are in the directories here; the licences that those refer to are in /usr/share/common-licenses.
";

/// Adds the licences of the packages that `files` of the host are from.
pub(super) fn add<'a>(tree: &mut Tree, files: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let files: Vec<&Path> = files.into_iter().collect();
    let answer = ask(&files)?;
    let owners = files.into_iter().map(|file| {
        let none = || format!("no licence for {}: no package of Debian's has it", file.display());
        owner(&answer, file).map(str::to_owned).with_context(none)
    });
    let packages = owners.collect::<Result<BTreeSet<_>>>()?;
    let mut list = ABOUT.to_owned();
    let mut common = BTreeSet::new();
    for package in &packages {
        list += &describe(package).with_context(|| format!("dpkg is silent on {package}"))?;
        let name = package.split(':').next().unwrap_or(package);
        let text = tree::read(Path::new(&format!("/usr/share/doc/{name}/copyright")))?;
        common.extend(common_licences(&String::from_utf8_lossy(&text)));
        tree.data(Path::new(&format!("{DIRECTORY}/{name}/copyright")), text);
    }
    for licence in common.iter().map(|name| Path::new(COMMON).join(name)) {
        tree.copy(&licence, &licence)?;
    }
    tree.data(Path::new(&format!("{DIRECTORY}/packages.txt")), list);
    Ok(())
}

/// What dpkg says of all these files. It reads the lists of all packages to do so.
fn ask(files: &[&Path]) -> Result<String> {
    let mut search = Command::new("dpkg-query");
    search.arg("--search").args(files).args(files.iter().map(|file| elsewhere(file)));
    // It fails if it does not know one of them.
    let output = search.output().context("cannot start dpkg-query")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `/lib` is `/usr/lib` on newer systems, and dpkg knows a file by one of the two only.
fn elsewhere(file: &Path) -> PathBuf {
    file.strip_prefix("/usr").map_or_else(
        |_| Path::new("/usr").join(file.strip_prefix("/").unwrap_or(file)),
        |below| Path::new("/").join(below),
    )
}

/// The package that has a file, in `dpkg-query --search`'s answer:
/// `libc6:amd64: /lib/x86_64-linux-gnu/libc.so.6`.
fn owner<'a>(answer: &'a str, file: &Path) -> Option<&'a str> {
    let other = elsewhere(file);
    let lines = answer.lines().filter(|line| !line.starts_with("diversion by "));
    let mut owned = lines.filter_map(|line| line.rsplit_once(": "));
    let (packages, _) = owned.find(|(_, it)| [file, &other].contains(&Path::new(it)))?;
    packages.split(", ").next()
}

fn describe(package: &str) -> Option<String> {
    let format = "--showformat=${Package} ${Version} ${source:Package} ${source:Version}\\n";
    process::read(Command::new("dpkg-query").args(["--show", format, package]))
}

/// The names in a text's references to common licences.
fn common_licences(text: &str) -> BTreeSet<PathBuf> {
    let reference = format!("{COMMON}/");
    let names = text.split(&reference).skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"-.+".contains(c));
        let name = rest.get(..end.unwrap_or(rest.len()))?.trim_end_matches('.');
        (!name.is_empty()).then(|| PathBuf::from(name))
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_common_licences_end_with_their_sentence() {
        let text = "in /usr/share/common-licenses/GPL-2.  And `/usr/share/common-licenses/LGPL-2.1'; or\n/usr/share/common-licenses/GPL";
        let found: Vec<_> = common_licences(text).into_iter().collect();
        assert_eq!(found, ["GPL", "GPL-2", "LGPL-2.1"].map(PathBuf::from));
    }

    #[test]
    fn a_package_is_read_from_dpkgs_answer() {
        let answer = "diversion by dash from: /bin/sh\nlibc6:amd64: /lib/libc.so.6\na, b: /etc\n";
        let owner = |file: &str| owner(answer, Path::new(file));
        assert_eq!(owner("/lib/libc.so.6"), Some("libc6:amd64"));
        assert_eq!(owner("/usr/lib/libc.so.6"), Some("libc6:amd64"));
        assert_eq!((owner("/etc"), owner("/bin/sh")), (Some("a"), None));
    }
}
