//! What identities, modes and the wire promise against peers that lie.

mod hostile;
mod identity;
mod inputs;
mod keys;
mod strict;
mod wire;
