//! What needs the real Kubernetes, or a container runtime.

mod harness;
mod image;
mod install;
mod kubernetes;
mod pods;
mod probes;
mod world;
