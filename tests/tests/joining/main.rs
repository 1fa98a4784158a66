//! Which pods are in the mesh, from when on, and which addresses are theirs.

mod addresses;
mod arrivals;
mod held;
mod membership;
mod user_namespaces;
