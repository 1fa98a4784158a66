//! What applications and their users observe of the mesh.

mod behaviour;
mod behaviour_doc;
mod bytes;
mod clients;
mod dialling;
mod failover;
mod masquerade;
mod programs;
mod same_node;
mod services;
mod sockets;
mod untouched;
