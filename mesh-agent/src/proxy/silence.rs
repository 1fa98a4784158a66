//! Peers from which nothing comes any more, because their node or the network between has failed.
//! The kernel's keep-alive finds them while nothing is to be sent. While something is, a look at
//! what TCP knows does.

use std::{sync::LazyLock, time::Duration};

use mesh_common::maps::DialOptions;
use socket2::TcpKeepalive;
use tokio::{net::TcpStream, time::Instant};

use crate::sys::{sock, uname};

/// How long a peer may be silent before its connection ends, in all.
const DEAD_AFTER: Duration = Duration::from_secs(20);

/// How long a peer may acknowledge nothing while data is on its way. Less than [`DEAD_AFTER`]: it
/// is seen only once the kernel has repeated something, and up to 1.6 s after that.
const PATIENCE: Duration = Duration::from_secs(16);

/// The same for a destination outside the mesh.
const STRANGER_DEAD_AFTER: Duration = Duration::from_hours(2);

/// How often keep-alive asks before it gives up.
const PROBES: u32 = 3;

/// Keep-alive with a peer's agent: what the application has set, if that is shorter than ours.
pub(super) fn keepalive(options: DialOptions) -> TcpKeepalive {
    keepalive_within(DEAD_AFTER, options)
}

/// Keep-alive with a destination outside the mesh. Ours is there only so that a connection whose
/// other end is gone does not stay for ever.
pub(super) fn keepalive_with_stranger(options: DialOptions) -> TcpKeepalive {
    keepalive_within(STRANGER_DEAD_AFTER, options)
}

fn keepalive_within(ours: Duration, options: DialOptions) -> TcpKeepalive {
    let silence = match options.keepalive_s {
        0 => ours,
        own => ours.min(Duration::from_secs(own.into())),
    };
    // Whole seconds, and at least one, are what the kernel takes.
    let interval = Duration::from_secs((silence.as_secs() / 5).max(1));
    let idle = silence.saturating_sub(interval * PROBES).max(Duration::from_secs(1));
    TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(PROBES)
}

/// How long one peer has acknowledged nothing.
#[derive(Debug)]
pub(super) struct Silence {
    /// `TCP_USER_TIMEOUT`, if the application has set it.
    own: Option<Duration>,
    /// Whether silence means that the peer is gone.
    acknowledges_drops: bool,
    since: Option<Instant>,
}

impl Silence {
    /// Of the agent of what was dialled, which has said `answered` of its kernel, if it has
    /// answered yet. With the limit that the application has set, if that is shorter than ours.
    pub(super) fn of_server(options: DialOptions, answered: Option<bool>) -> Self {
        // It is most likely on the same kernel. Little can be on its way before it says.
        let acknowledges_drops = answered.unwrap_or_else(acknowledges_drops);
        Self { acknowledges_drops, ..Self::of_stranger(options) }
    }

    /// Of the agent of a client, which has said this of its kernel.
    pub(super) fn of_client(acknowledges_drops: bool) -> Self {
        Self { own: None, acknowledges_drops, since: None }
    }

    /// Of a destination outside the mesh. With the limit that the application has set.
    pub(super) fn of_stranger(options: DialOptions) -> Self {
        let own = (options.user_timeout_ms != 0)
            .then(|| Duration::from_millis(options.user_timeout_ms.into()));
        Self { own, acknowledges_drops: false, since: None }
    }

    /// The peer has answered, and has said this of its kernel.
    pub(super) fn answered(&mut self, acknowledges_drops: bool) {
        self.acknowledges_drops = acknowledges_drops;
    }

    /// `None`: as long as the kernel bears it.
    fn limit(&self) -> Option<Duration> {
        let ours = self.acknowledges_drops.then_some(PATIENCE);
        self.own.into_iter().chain(ours).min()
    }

    /// Whether the peer has acknowledged nothing for too long. Counts from the first look that
    /// finds data unacknowledged: the last acknowledgement may be older than that data.
    pub(super) fn is_over(&mut self, peer: &TcpStream) -> bool {
        let Some(limit) = self.limit() else { return false };
        // A socket that cannot be asked is dead, or about to be.
        let owing = sock::other_end(peer).ok().filter(|peer| peer.owes_acknowledgement);
        let Some(peer) = owing else {
            self.end();
            return false;
        };
        let since = self.since.get_or_insert_with(Instant::now);
        let silence = since.elapsed().min(peer.acknowledged);
        silence >= limit
    }

    /// Nothing is on its way to the peer.
    pub(super) fn end(&mut self) {
        self.since = None;
    }
}

/// Whether this kernel acknowledges something even when it drops data. Before 6.6, Linux says
/// nothing when it drops a segment for which its receive buffer has no room. Peers are told
/// ([`mesh_wire::Accepted::acknowledges_drops`]).
pub(super) fn acknowledges_drops() -> bool {
    static IT_DOES: LazyLock<bool> = LazyLock::new(|| {
        let version = uname::release().ok().and_then(|release| uname::version(&release));
        version.is_some_and(|version| version >= (6, 6))
    });
    *IT_DOES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_can_only_make_it_shorter() {
        let options = |user_timeout_ms| DialOptions { user_timeout_ms, ..DialOptions::default() };
        let (five, minute) = (Some(Duration::from_secs(5)), Some(Duration::from_mins(1)));
        let of_server = |ms, acknowledges_drops| {
            let before = Silence::of_server(options(ms), Some(acknowledges_drops));
            let mut later = Silence::of_server(options(ms), None);
            later.answered(acknowledges_drops);
            assert_eq!(before.limit(), later.limit());
            later.limit()
        };
        assert_eq!(
            [0, 5_000, 60_000].map(|ms| of_server(ms, true)),
            [Some(PATIENCE), five, Some(PATIENCE)]
        );
        assert_eq!([0, 5_000, 60_000].map(|ms| of_server(ms, false)), [None, five, minute]);
        assert_eq!([false, true].map(|it| Silence::of_client(it).limit()), [None, Some(PATIENCE)]);
        assert_eq!(Silence::of_stranger(options(0)).limit(), None);
        assert_eq!(Silence::of_stranger(options(5_000)).limit(), five);
        let of = |keepalive_s| keepalive(DialOptions { keepalive_s, ..DialOptions::default() });
        let whole = |idle, interval| {
            let [idle, interval] = [idle, interval].map(Duration::from_secs);
            TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(PROBES)
        };
        // Debug output, since the type cannot be compared.
        let same = |one: TcpKeepalive, other| assert_eq!(format!("{one:?}"), format!("{other:?}"));
        same(of(0), whole(8, 4));
        same(of(7_200), whole(8, 4));
        same(of(11), whole(5, 2));
        same(of(1), whole(1, 1));
    }
}
