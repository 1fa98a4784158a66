//! How the story of a demo looks on a terminal.
#![expect(clippy::print_stdout, reason = "telling is what it is for")]

use std::io::{self, IsTerminal as _};

/// Prints headings and observations.
#[derive(Debug)]
pub struct Teller {
    colour: bool,
    chapter: u8,
}

impl Default for Teller {
    fn default() -> Self {
        Self::new()
    }
}

impl Teller {
    /// With colours, if they are seen.
    pub fn new() -> Self {
        Self { colour: io::stdout().is_terminal(), chapter: 0 }
    }

    /// What is about to be shown.
    pub fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        println!("\n{}", self.paint("1", &format!("{}. {title}", self.chapter)));
    }

    /// A command as a user would give it.
    pub fn command(&self, command: &str) {
        println!("   {}", self.paint("36", &format!("$ {command}")));
    }

    /// Something that has been seen. Called only after it was checked.
    pub fn saw(&self, text: &str) {
        println!("   {} {text}", self.paint("32", "✓"));
    }

    /// What it looked like: bytes, lines of a log.
    pub fn quote(&self, text: &str) {
        for line in text.lines() {
            println!("     {}", self.paint("2", line.trim_end()));
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
