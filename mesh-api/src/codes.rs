//! Every stable code, as one table for each kind: its sentence, the likely cause, what to do, and
//! the party at fault. docs/codes.md is generated from these tables.
//!
//! Flow records, `status` and metrics hold a code as text. An agent or command line that is older
//! than the code can still read it.

mod fault;
#[cfg(test)]
mod page;
mod pod;
mod problem;
mod reason;
mod verdict;

pub use fault::Fault;
pub use pod::{PodCode, PodState};
pub use problem::ProblemCode;
pub use reason::{Outcome, PlaintextReason, Reason};
pub use verdict::about_verdict;

/// What is known of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// The code itself, in `snake_case`. It never changes.
    pub code: &'static str,
    /// What it says, in one sentence for people.
    pub sentence: &'static str,
    /// The likely cause; empty if the sentence says it.
    pub cause: &'static str,
    /// What to do; never empty if there is a fault.
    pub remedy: &'static str,
    /// The party at fault, if there is a fault.
    pub fault: Option<Fault>,
}

/// Defines an enum of codes by its table: name, code, party at fault, sentence, cause, remedy.
macro_rules! codes {
    ($(#[$doc:meta])* $enum:ident {
        $($name:ident $code:literal $fault:ident $sentence:literal, $cause:literal, $remedy:literal;)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $enum { $(#[doc = concat!("`", $code, "`: ", $sentence, ".")] $name,)+ }

        impl $enum {
            /// All of them, in the order of docs/codes.md.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// All that is known of it.
            pub const fn about(self) -> $crate::About {
                match self {
                    $(Self::$name => $crate::About {
                        code: $code,
                        sentence: $sentence,
                        cause: $cause,
                        remedy: $remedy,
                        fault: $crate::codes::fault::party!($fault),
                    },)+
                }
            }

            /// Stable `snake_case` code.
            pub const fn code(self) -> &'static str {
                self.about().code
            }

            /// One sentence for people, without a capital and a full stop.
            pub const fn sentence(self) -> &'static str {
                self.about().sentence
            }

            /// The party at fault, if there is a fault.
            pub const fn fault(self) -> Option<$crate::Fault> {
                self.about().fault
            }
        }
    };
}
use codes;
