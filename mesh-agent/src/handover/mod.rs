//! One agent hands its node over to another, with no moment in which new connections fail.
//!
//! The two talk over the admin socket. What makes it simple is that the listeners inside the pods are *given* to the heir, as
//! open descriptors: while both live both accept from the same sockets, and none is ever closed under a connection.
//!
//! | heir | predecessor |
//! |---|---|
//! | asks; says which cgroup it dials from | lets who is leaving leave; enrols and announces nobody any more; makes the heir's dials pass |
//! | | gives its listeners |
//! | enrols the same pods over them, swaps the programs behind the links | goes on with all connections, new ones too; holds strict pods that appear |
//! | says that it has switched | stops accepting, gives up its locks, drains until its deadline |
//! | takes the locks and the admin socket; copies the records of what still ends | ends |
//!
//! If the heir is gone before it has switched, the predecessor puts everything back as it was and goes on. So it does with one
//! that takes too long, which has ended by itself before. If the predecessor is gone, the heir has the node.

mod give;
mod protocol;
mod take;

pub use give::{Desk, Switched, Wish, give};
pub use protocol::{Ask, Estate, Listener, VERSION};
pub use take::{Inherited, Predecessor, TakeOverError, follow};
