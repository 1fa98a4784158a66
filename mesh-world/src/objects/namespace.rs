//! `v1/Namespace`.

use std::sync::Arc;

use crate::origin::Origin;
use crate::settings::Declaration;

/// A namespace and what it declares for its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceObject {
    /// Where it was read.
    pub origin: Origin,
    /// Its name.
    pub name: Arc<str>,
    /// What it says about the mesh.
    pub mesh: Declaration,
}
