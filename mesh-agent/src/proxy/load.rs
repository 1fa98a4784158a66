//! Open connections per endpoint, for the choice between two endpoints.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use parking_lot::Mutex;

/// Counts by endpoint.
#[derive(Clone, Default)]
pub(super) struct Load(Arc<Mutex<HashMap<SocketAddr, u32>>>);

/// One open connection to an endpoint, as long as it lives.
pub(super) struct Counted {
    load: Load,
    endpoint: SocketAddr,
}

impl Load {
    /// Connections open to an endpoint through this agent.
    pub(super) fn of(&self, endpoint: SocketAddr) -> u32 {
        self.0.lock().get(&endpoint).copied().unwrap_or(0)
    }

    /// Counts one more.
    pub(super) fn count(&self, endpoint: SocketAddr) -> Counted {
        *self.0.lock().entry(endpoint).or_insert(0) += 1;
        Counted { load: self.clone(), endpoint }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.load.0.lock();
        if let Some(count) = counts.get_mut(&self.endpoint) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.endpoint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_open() {
        let load = Load::default();
        let endpoint = ([10, 0, 0, 1], 80).into();
        let (one, two) = (load.count(endpoint), load.count(endpoint));
        assert_eq!(load.of(endpoint), 2);
        drop((one, two));
        assert_eq!(load.of(endpoint), 0);
        assert!(load.0.lock().is_empty());
    }
}
