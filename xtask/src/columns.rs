//! The gate on long lines: rustfmt wraps code, and leaves comments and Markdown as they are.
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::workspace::Workspace;

/// How long a line may be, in characters: two versions of a file fit side by side on a screen.
const MAX_COLUMNS: usize = 100;

/// Directories that are not ours to wrap, by name.
const LEFT_OUT: [&str; 3] = [".git", "target", "corpus"];

/// Fails if a comment of a Rust file, or a line of Markdown outside tables and code blocks, is
/// longer than [`MAX_COLUMNS`].
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut files = Vec::new();
    find(&workspace.root, &mut files)?;
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let is_markdown = file.extension().is_some_and(|extension| extension == "md");
        let name = file.strip_prefix(&workspace.root).unwrap_or(&file).display();
        found.extend(too_long(&text, is_markdown).map(|(line, columns)| {
            format!("{name}:{line}: {columns} columns, at most {MAX_COLUMNS} may be")
        }));
    }
    if !found.is_empty() {
        bail!("lines are too long; wrap them:\n{}", found.join("\n"));
    }
    Ok(())
}

/// Adds the Rust and Markdown files below a directory.
fn find(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    for entry in entries {
        let path = entry.with_context(|| directory.display().to_string())?.path();
        let is_left_out =
            path.file_name().is_some_and(|it| LEFT_OUT.iter().any(|name| it == *name));
        if path.is_dir() && !is_left_out && !path.is_symlink() {
            find(&path, files)?;
        } else if path.extension().is_some_and(|it| it == "rs" || it == "md") {
            files.push(path);
        }
    }
    Ok(())
}

/// The number, from 1, and the length of each line that is too long.
fn too_long(text: &str, is_markdown: bool) -> impl Iterator<Item = (usize, usize)> {
    let mut is_code = false;
    text.lines().zip(1..).filter_map(move |(line, number)| {
        let (columns, start) = (line.chars().count(), line.trim_start());
        is_code ^= is_markdown && start.starts_with("```");
        let counts =
            if is_markdown { !is_code && !start.starts_with('|') } else { start.starts_with("//") };
        (counts && columns > MAX_COLUMNS).then_some((number, columns))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_prose_count_but_no_code_and_no_table() {
        let long = "x".repeat(MAX_COLUMNS);
        let found = |text: &str, is_markdown| too_long(text, is_markdown).collect::<Vec<_>>();
        assert_eq!(found(&format!("let a = 1; // {long}\n    // {long}"), false), [(2, 107)]);
        assert_eq!(found(&"é".repeat(MAX_COLUMNS), true), []);
        let page = format!("{long}y\n| {long} |\n```\n{long}y\n```\n- {long}");
        assert_eq!(found(&page, true), [(1, 101), (6, 102)]);
    }
}
