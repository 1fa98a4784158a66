//! Renewal at half-life, by one loop for the whole node.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use super::issue::Occasion;
use super::{Identities, Identity};
use crate::identity::SpiffeId;

/// The first pause after a failed renewal. Each further failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between attempts: a CA that is back is noticed within this time.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// Checks the clock at least this often: it may have been set, or the machine may have slept. Until
/// then peers refuse a certificate that is outside its dates.
const LONGEST_SLEEP: Duration = Duration::from_secs(2);

impl Identities {
    /// Renews every identity at half of its life, spread by up to a tenth of it, until `stop`.
    ///
    /// A failed renewal is tried again after 1 s, doubled up to 5 min, and logged. The valid
    /// certificate stays in use.
    ///
    /// # Cancel safety
    /// Safe; a renewal under way is given up.
    pub async fn renew_loop(&self, stop: CancellationToken) {
        let spread = RandomState::new();
        let mut retry_at: HashMap<SpiffeId, Instant> = HashMap::new();
        loop {
            let next_step = async {
                match self.next_due(&retry_at, &spread) {
                    Some((id, Duration::ZERO)) => self.renew(id, &mut retry_at).await,
                    next => {
                        let pause =
                            next.map_or(LONGEST_SLEEP, |(_, pause)| pause.min(LONGEST_SLEEP));
                        tokio::select! {
                            () = tokio::time::sleep(pause) => {}
                            () = self.changed.notified() => {}
                        }
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = next_step => {}
            }
            let known = self.current.load();
            retry_at.retain(|id, _| known.contains_key(id));
        }
    }

    /// The identity that is due first, and in how long by the present clock.
    fn next_due(
        &self,
        retry_at: &HashMap<SpiffeId, Instant>,
        spread: &RandomState,
    ) -> Option<(SpiffeId, Duration)> {
        let due = |identity: &Identity| match retry_at.get(identity.id()) {
            Some(retry) => retry.saturating_duration_since(Instant::now()),
            None if identity.is_outdated() => Duration::ZERO,
            None => {
                let at = identity.renew_at() + jitter(identity, spread);
                at.duration_since(SystemTime::now()).unwrap_or_default()
            }
        };
        let current = self.current.load();
        let all = current.values().map(|identity| (identity, due(identity)));
        let (first, due) = all.min_by_key(|(_, due)| *due)?;
        Some((first.id().clone(), due))
    }

    async fn renew(&self, id: SpiffeId, retry_at: &mut HashMap<SpiffeId, Instant>) {
        match self.issue(&id, Occasion::Renewal).await {
            Ok(identity) => {
                retry_at.remove(&id);
                tracing::info!(%id, serial = identity.serial(), "certificate renewed");
            }
            Err(error) => {
                let attempts = self.failures.lock().get(&id).map_or(1, |f| f.attempts);
                let pause = pause_after(attempts);
                let valid_s = self.current(&id).map_or(0, |identity| {
                    let left = identity.not_after().duration_since(SystemTime::now());
                    left.unwrap_or_default().as_secs()
                });
                tracing::warn!(
                    %id, %error, attempts, retry_s = pause.as_secs(), valid_s,
                    "certificate not renewed; the one in use stays in use while it is valid",
                );
                retry_at.insert(id, Instant::now() + pause);
            }
        }
    }
}

/// 1 s, 2 s, 4 s … 5 min.
fn pause_after(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    (FIRST_PAUSE * 2u32.pow(doublings)).min(LONGEST_PAUSE)
}

/// Up to a tenth of the life, always the same for one certificate. So the identities of a node (and
/// the nodes of a cluster that started together) do not all ask the CA in one second.
fn jitter(identity: &Identity, spread: &RandomState) -> Duration {
    let life = identity.not_after().duration_since(identity.issued_at).unwrap_or_default();
    let share = (spread.hash_one(identity.serial()) % 1000) as u32;
    life / 10 * share / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_minutes() {
        let pauses: Vec<u64> = (1..12).map(|n| pause_after(n).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }
}
