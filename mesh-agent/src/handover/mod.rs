//! One agent hands its node over to another, with no moment in which new connections fail.
//!
//! The two talk over the admin socket. What makes it simple is that the listeners inside the pods
//! are *given* to the successor, as open descriptors. While both agents live, both accept from the
//! same sockets, and none is ever closed under a connection.
//!
//! 1. The successor asks, and says which cgroup it dials from.
//! 2. The predecessor waits until leaving pods have left, enrols and announces no pod any more,
//!    lets the successor's dials pass, and gives its listeners.
//! 3. The successor enrols the same pods over them and swaps the programs behind the links. The
//!    predecessor goes on with all connections, new ones too, and holds strict pods that appear.
//! 4. The successor says that it has switched. The predecessor stops accepting, gives up its locks
//!    and drains until its deadline.
//! 5. The successor takes the locks and the admin socket, and copies the records of what still
//!    ends. The predecessor ends.
//!
//! If the successor is gone before it has switched, the predecessor puts everything back as it was
//! and goes on. It does the same if the successor takes too long; such a successor has ended by
//! itself before. If the predecessor is gone, the successor has the node.

mod give;
mod take;

pub use give::{TakeoverDone, TakeoverQueue, TakeoverRequest, give};
pub use take::{Inherited, Predecessor, TakeOverError, follow};
