//! Every way in which a connection between two agents can fail, each with a name.
//!
//! Each has a [`Reason`](mesh_api::Reason), which is its code as flows, metrics and logs show it, a
//! text for people (`Display`), and the party at fault. docs/wire.md has the numbers; a test
//! compares them with this room.

mod refusal;
mod session;
mod tls;

pub use refusal::{Refusal, ResetCode};
pub use session::{HandshakeError, SessionError, StateError};
pub use tls::{JudgedBy, TlsReason};

/// Defines reasons that cross the wire as numbers: name, number, [`Reason`](mesh_api::Reason). The
/// last line is for a number that has no name.
macro_rules! numbered {
    ($(#[$doc:meta])* $enum:ident($number:ty), $to:ident, $from:ident;
        $($name:ident = $value:literal, $reason:ident;)+
        _ = $other:ident, $reason_of_other:ident, $text:literal;
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $enum {
            $(#[doc = concat!("See [`Reason::", stringify!($reason), "`](mesh_api::Reason).")] $name,)+
            #[doc = concat!("See [`Reason::", stringify!($reason_of_other), "`](mesh_api::Reason).")]
            $other($number),
        }

        impl $enum {
            /// Every one with a number of its own.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Its number on the wire.
            pub const fn $to(self) -> $number {
                match self {
                    $(Self::$name => $value,)+
                    Self::$other(number) => number,
                }
            }

            /// The reason of a number.
            pub fn $from(number: $number) -> Self {
                Self::ALL.iter().copied().find(|it| it.$to() == number).unwrap_or(Self::$other(number))
            }

            /// Its code, sentence and the rest.
            pub const fn reason(self) -> mesh_api::Reason {
                match self {
                    $(Self::$name => mesh_api::Reason::$reason,)+
                    Self::$other(_) => mesh_api::Reason::$reason_of_other,
                }
            }
        }

        impl std::fmt::Display for $enum {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    Self::$other(number) => write!(f, $text, number),
                    known => f.write_str(known.reason().sentence()),
                }
            }
        }
    };
}
use numbered;

#[cfg(test)]
mod tests;
