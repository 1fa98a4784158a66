//! Which shared libraries programs need, and where the loader will find them inside an image.
//!
//! Read from the files; only the loader is run. What a program opens by name at run time (dlopen)
//! cannot be seen. The agent opens nothing, and glibc has its name services (files, DNS) built in
//! since 2.34.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use object::Endianness;
use object::elf::{DT_NEEDED, DT_RPATH, DT_RUNPATH, FileHeader64};
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};

use super::tree;
use crate::process;

/// The loader and the libraries that `programs` need, and those that the libraries need. The paths
/// are the host's, and are to be the same in the image.
pub(super) fn of(programs: &[&Path]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs {
        let elf = Elf::read(program)?;
        let Some(loader) = &elf.loader else {
            ensure!(elf.needed.is_empty(), "{} has libraries and no loader", program.display());
            continue;
        };
        let search = Search::of(loader)?;
        let mut open = elf.needed.clone();
        let mut seen = BTreeSet::new();
        while let Some(name) = open.pop() {
            // The loader is in memory before its libraries, so no file of its name is looked for.
            if loader.ends_with(&name) || seen.contains(&name) {
                continue;
            }
            let (file, library) = search
                .find(&name, elf.machine)
                .with_context(|| format!("{} cannot run", program.display()))?;
            found.insert(file);
            open.extend(library.needed);
            seen.insert(name);
        }
        found.insert(loader.clone());
    }
    Ok(found)
}

/// Where a loader looks for libraries by itself. An image has no cache of other places
/// (`/etc/ld.so.cache`).
struct Search {
    loader: PathBuf,
    directories: Vec<PathBuf>,
}

impl Search {
    /// Asks the loader. Distributions compile different directories into it.
    fn of(loader: &Path) -> Result<Self> {
        let help = process::read(Command::new(loader).arg("--help"))
            .with_context(|| format!("{} does not run", loader.display()))?;
        let directories = system_directories(&help);
        ensure!(
            !directories.is_empty(),
            "{} --help names no directories; glibc does from 2.33 on",
            loader.display()
        );
        Ok(Self { loader: loader.to_owned(), directories })
    }

    /// The library that the loader would take: the first of this name for this kind of machine.
    fn find(&self, name: &str, machine: u16) -> Result<(PathBuf, Elf)> {
        ensure!(!name.contains('/'), "it needs {name} by its path, which is not supported");
        for file in self.directories.iter().map(|directory| directory.join(name)) {
            if file.is_file() {
                let library = Elf::read(&file)?;
                if library.machine == machine {
                    return Ok((file, library));
                }
            }
        }
        bail!("{name} is in none of the directories of {}", self.loader.display())
    }
}

/// Lines such as `  /lib/x86_64-linux-gnu (system search path)`.
fn system_directories(help: &str) -> Vec<PathBuf> {
    let directory = |line: &str| line.trim().strip_suffix(" (system search path)").map(Into::into);
    help.lines().filter_map(directory).collect()
}

/// What a program or a library says of itself.
struct Elf {
    machine: u16,
    loader: Option<PathBuf>,
    needed: Vec<String>,
}

impl Elf {
    fn read(file: &Path) -> Result<Self> {
        Self::parse(&tree::read(file)?).with_context(|| format!("{} is unusable", file.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let elf: ElfFile64<'_, Endianness> = ElfFile64::parse(bytes)?;
        let header: &FileHeader64<Endianness> = elf.elf_header();
        let mut loader = None;
        for segment in elf.elf_program_headers() {
            if let Some(path) = segment.interpreter(elf.endian(), bytes)? {
                loader = Some(PathBuf::from(std::str::from_utf8(path)?));
            }
        }
        let mut needed = Vec::new();
        let dynamic = elf.elf_dynamic_table()?;
        for entry in &dynamic {
            if [DT_RPATH, DT_RUNPATH].contains(&entry.tag) {
                bail!("it has a search path of its own (RUNPATH), which is not followed");
            }
            if entry.tag == DT_NEEDED {
                needed.push(String::from_utf8(dynamic.string(entry)?.to_owned())?);
            }
        }
        Ok(Self { machine: header.e_machine(elf.endian()), loader, needed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_own_directories_are_taken_and_not_its_cache() {
        let help = "Shared library search path:\n  (libraries located via /etc/ld.so.cache)\n  /lib/x86_64-linux-gnu (system search path)\n  /lib (system search path)\n\nLegacy HWCAP:\n  tls (supported, searched)\n";
        let found = system_directories(help);
        assert_eq!(found, ["/lib/x86_64-linux-gnu", "/lib"].map(PathBuf::from));
    }

    /// The loader itself is asked what it would load (`--list`); it knows and we read.
    #[test]
    fn what_is_found_is_what_the_loader_would_load() {
        let ourselves = std::env::current_exe().unwrap();
        let curl = process::find("curl").unwrap();
        for program in [&*ourselves, &curl] {
            let found = of(&[program]).unwrap();
            let loader = Elf::read(program).unwrap().loader.unwrap();
            let list = process::read(Command::new(&loader).arg("--list").arg(program)).unwrap();
            let expected: BTreeSet<_> = list
                .split_whitespace()
                .filter(|word| word.starts_with('/'))
                .map(|word| Path::new(word).canonicalize().unwrap())
                .collect();
            let ours: BTreeSet<_> = found.iter().map(|file| file.canonicalize().unwrap()).collect();
            assert_eq!(ours, expected, "{}", program.display());
            assert!(found.contains(&loader), "{found:?}");
        }
    }

    #[test]
    fn what_is_no_program_is_told_by_name() {
        let error = of(&[Path::new("/proc/self/status")]).unwrap_err();
        assert!(format!("{error:#}").starts_with("/proc/self/status is unusable: "), "{error:#}");
    }
}
