//! Which pods are in the mesh and where services lead, as immutable snapshots.
//!
//! PURE: nothing here opens a socket or a file, asks a clock, or talks to Kubernetes. A source
//! (`crate::source`) turns Kubernetes objects into [`Objects`]. [`World`] turns those, the
//! announcements of all nodes and the set of pods captured here into what the data path reads.
//!
//! Start at `snapshot/mod.rs` for the questions that can be asked, and at `membership.rs` for which
//! pods are in the mesh.

mod address;
mod announcement;
mod boots;
mod cidr;
mod floor;
mod incumbents;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod membership;
mod names;
mod objects;
mod origin;
mod problem;
mod service;
mod settings;
mod shared_map;
mod slips;
mod snapshot;
mod standing;
pub mod tables;
mod workload;

pub use address::parse_address;
pub use announcement::{AnnouncedCa, AnnouncedPod, Announcements, MeshNode};
pub use boots::{Answer, Answers, InForce, NodePods, add_pod, in_force};
pub use cidr::{Cidr, Cover};
pub use floor::Floor;
pub use incumbents::{Incumbents, Memory, NodeRank};
pub use membership::{Membership, NotEnabledReason};
pub use names::{NodeName, ObjectName, PodUid, check_subdomain};
pub use objects::{
    EndpointObject, EndpointSliceObject, NamespaceObject, NetnsRef, NodeObject, Objects, PodObject,
    Protocol, ServiceKind, ServiceObject, ServicePortObject, SlicePort, TargetPort,
};
pub use origin::{FieldError, FileLines, Origin, Place};
pub use problem::Problem;
pub use service::{Endpoint, Outside, ServicePort, pick};
pub use settings::{
    Declaration, Declared, EXCLUDE_PORTS_ANNOTATION, MESH_LABEL, MODE_ANNOTATION, MeshLabel,
    NETNS_ANNOTATION, PERMISSIVE_PORTS_ANNOTATION, PodSettings, SAME_NODE_ANNOTATION,
};
pub use snapshot::{KernelAddress, KernelService, LocalNode, Snapshot, Work, World};
pub use standing::{Claimant, DialAs, Dispute, Standing};
pub use workload::{LocalPod, Peer, Wanted, Workload};
