//! The listeners inside a pod's network namespace, and the loops that accept from them.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use mesh_common::{
    addr::Addr,
    maps::{ASKING, DialOptions, INBOUND, ListenerKey, OUTBOUND},
    ports,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::TcpListener,
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Mesh, inbound, outbound,
    pod::Pod,
    relay::AppStream,
    silence,
    socket_memory::{APP_MSS, SEND_AHEAD},
};
use crate::{kernel::KernelError, netns::NetnsError};

/// The sockets at each of a pod's addresses from which connections are accepted, and their ports.
const ACCEPTING: [(u32, u16); 2] =
    [(OUTBOUND, ports::OUTBOUND_LISTENER), (INBOUND, ports::INBOUND_LISTENER)];

/// Connections that may wait for the accept loop. The kernel caps the number at the namespace's
/// `somaxconn` (4096 by default).
const BACKLOG: i32 = 4096;

/// Pause after an accept that failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections accepted before other tasks on the thread get their turn; the runtime alone would
/// allow 128.
const ACCEPTS_IN_A_ROW: u32 = 16;

/// Dials that are accepted from one pod per second, for each of our threads: as many as a thread
/// could make handshakes for. A pod that only dials and resets delays only itself, because the
/// queue is its own. Peers' dials are not slowed, because all peers share their queue.
const DIALS_PER_SECOND: u32 = 2_000;

/// The same for dials that kept sessions carry: as many as a thread could carry.
const WARM_DIALS_PER_SECOND: u32 = 6_000;

/// Minimum time between two creations of one listener: something in the pod may destroy it over and
/// over.
const REMAKE_PAUSE: Duration = Duration::from_secs(1);

/// Pause after a dial that its application reset before the agent accepted it. Only the pod's own
/// dials wait for it.
const GONE_PAUSE: Duration = Duration::from_millis(1);

/// How often kept sessions and sockets made ahead are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Why a pod has no listeners.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The address or port could not be taken.
    #[error(
        "cannot listen on {address} inside the pod: {source}; does something in the pod listen on ports {}-65535?",
        ports::RESERVED_FIRST
    )]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel's table could not be written.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// A pod's listening sockets, before the kernel steers connections to them.
pub struct Listening(Vec<Made>);

/// A pod's entries in the kernel's table. The accept loops own the sockets.
pub struct Steered(Vec<(ListenerKey, Weak<Post>)>);

/// One of a pod's listeners. It may have to be recreated.
struct Post {
    key: ListenerKey,
    address: SocketAddr,
    listener: ArcSwap<TcpListener>,
}

impl Listening {
    /// Makes the listeners of a pod. `inherited` are those that another agent made and handed over;
    /// they are used if they are exactly what the pod needs.
    ///
    /// # Errors
    /// See [`ListenError`]; nothing is left behind.
    ///
    /// # Cancel safety
    /// Nothing is left behind.
    pub async fn bind(
        mesh: &Mesh,
        pod: &Pod,
        inherited: &[(ListenerKey, Socket)],
    ) -> Result<Self, ListenError> {
        let accepting = match usable(pod, inherited) {
            Some(inherited) => inherited,
            None => bind_all(mesh, pod, &ACCEPTING).await?,
        };
        let asking = bind_all(mesh, pod, &[(ASKING, ports::ASKING_LISTENER)]).await?;
        Ok(Self(accepting.into_iter().chain(asking).collect()))
    }

    /// Enters the sockets into the kernel's table and begins to accept. The world must know the pod
    /// by now, because it judges what is accepted.
    ///
    /// # Errors
    /// See [`ListenError`]; the pod then accepts nothing.
    pub fn steer(self, mesh: &Arc<Mesh>, pod: &Arc<Pod>) -> Result<Steered, ListenError> {
        let mut keys = Vec::new();
        for (key, socket, address) in self.0 {
            let outcome = put(mesh, key, &socket).map_err(ListenError::from);
            let listener = outcome.and_then(|()| {
                let listener = TcpListener::from_std(socket.into());
                listener.map_err(|source| ListenError::Bind { address, source })
            });
            let listener = match listener {
                Ok(listener) => ArcSwap::from_pointee(listener),
                Err(error) => {
                    pod.accepting.stop();
                    return Err(error);
                }
            };
            let post = Arc::new(Post { key, address, listener });
            keys.push((key, Arc::downgrade(&post)));
            let name = match key.direction {
                OUTBOUND => "accept-outbound",
                INBOUND => "accept-inbound",
                _ => "accept-nothing",
            };
            pod.accepting.spawn(name, accept(Arc::clone(mesh), Arc::clone(pod), post));
        }
        pod.accepting.spawn("upkeep", upkeep(Arc::clone(pod)));
        mesh.waiting.add(pod);
        Ok(Steered(keys))
    }
}

type Made = (ListenerKey, Socket, SocketAddr);

async fn bind_all(mesh: &Mesh, pod: &Pod, wanted: &[(u32, u16)]) -> Result<Vec<Made>, ListenError> {
    let mut sockets = Vec::new();
    for own in pod.addresses() {
        let at = match own {
            IpAddr::V4(_) => IpAddr::from(ports::LISTENER_V4),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        for &(direction, port) in wanted {
            let (address, shared) = (SocketAddr::new(at, port), direction == ASKING);
            let made = pod.netns.run(&mesh.factory, move || bind(address, shared)).await?;
            let socket = made.map_err(|source| ListenError::Bind { address, source })?;
            let key = ListenerKey::new(pod.netns.cookie(), own.into(), direction);
            sockets.push((key, socket, address));
        }
    }
    Ok(sockets)
}

/// Sockets that another agent made. `None` unless they are exactly what the pod needs.
fn usable(pod: &Pod, sockets: &[(ListenerKey, Socket)]) -> Option<Vec<Made>> {
    let keys: HashSet<_> = sockets.iter().map(|(key, _)| *key).collect();
    let netns = pod.netns.cookie();
    let needed = |own: IpAddr| {
        ACCEPTING.map(|(direction, _)| ListenerKey::new(netns, own.into(), direction))
    };
    let complete =
        keys.len() == sockets.len() && keys == pod.addresses().flat_map(needed).collect();
    let listening = |(key, socket): &(ListenerKey, Socket)| {
        let address = socket.local_addr().ok()?.as_socket()?;
        let socket = socket.try_clone().ok()?;
        socket.set_nonblocking(true).ok()?;
        Some((*key, socket, address))
    };
    complete.then(|| sockets.iter().map(listening).collect::<Option<_>>())?
}

/// Enters a socket into the kernel's table. What takes the packets of dials that wait has its
/// filter before it gets any.
fn put(mesh: &Mesh, key: ListenerKey, socket: &(impl AsFd + AsRawFd)) -> Result<(), KernelError> {
    if key.direction == ASKING {
        mesh.kernel.take_questions(socket)?;
    }
    mesh.kernel.tables().listeners.put(key, socket)
}

impl Steered {
    /// Removes the pod's entries from the kernel's table. The loops end with [`Pod::accepting`].
    pub fn withdraw(&self, mesh: &Mesh) {
        for (key, _) in &self.0 {
            mesh.kernel.tables().listeners.remove(key);
            mesh.waiting.remove(key.netns);
        }
    }

    /// Enters the sockets into the kernel's table again, after another agent may have changed it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn again(&self, mesh: &Mesh) -> Result<(), KernelError> {
        self.sockets().try_for_each(|(key, socket)| put(mesh, key, &*socket))
    }

    /// The sockets that are still open.
    pub fn sockets(&self) -> impl Iterator<Item = (ListenerKey, Arc<TcpListener>)> {
        self.0.iter().filter_map(|(key, post)| Some((*key, post.upgrade()?.listener.load_full())))
    }
}

impl Post {
    /// Recreates the listener. That lasts for as long as something in the pod holds its port.
    ///
    /// # Cancel safety
    /// Nothing is left behind.
    async fn make_anew(&self, mesh: &Mesh, pod: &Pod) {
        let name = pod.name.to_string();
        mesh.lost.note(&name, Instant::now());
        while let Err(error) = self.try_to_make_anew(mesh, pod).await {
            mesh.lost.failed(&name, &error, Instant::now());
            sleep(REMAKE_PAUSE).await;
        }
        mesh.lost.made_anew(&name);
    }

    async fn try_to_make_anew(&self, mesh: &Mesh, pod: &Pod) -> io::Result<()> {
        let (address, shared) = (self.address, self.key.direction == ASKING);
        let made = pod.netns.run(&mesh.factory, move || bind(address, shared)).await;
        let socket = made.map_err(io::Error::other)??;
        put(mesh, self.key, &socket).map_err(io::Error::other)?;
        self.listener.store(Arc::new(TcpListener::from_std(socket.into())?));
        Ok(())
    }
}

/// Whether an address still belongs to that pod, and has not passed to another one.
pub fn owns(mesh: &Mesh, pod: &Pod, address: &Addr) -> bool {
    let entry = mesh.kernel.tables().local.get(address);
    entry.is_some_and(|entry| entry.netns == pod.netns.cookie())
}

/// `shared`: while one agent takes over from another, both have such a socket. The program that
/// leads packets to it names the one that is in the kernel's table.
fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // Accepted sockets inherit this. Without it they would keep the application from binding its
    // own port again.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    // Inherited too. The client may be an application: until more is known, killing this agent must
    // not look like a clean end to it.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?; // inherited as well, and so is keep-alive
    socket.set_tcp_keepalive(&silence::keepalive(DialOptions::default()))?;
    socket.set_tcp_notsent_lowat(SEND_AHEAD)?;
    socket.set_tcp_mss(APP_MSS)?;
    socket.set_out_of_band_inline(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Closes what the pod keeps ready for its connections, in time; all of it when the pod accepts no
/// more connections.
fn upkeep(pod: Arc<Pod>) -> impl Future<Output = ()> {
    let close = CloseOnDrop(pod); // also if the task never runs
    async move {
        let CloseOnDrop(pod) = &close;
        loop {
            pod.busy.notified().await;
            while pod.kept.sweep() | pod.stock.sweep() {
                sleep(SWEEP_EVERY).await;
            }
        }
    }
}

struct CloseOnDrop(Arc<Pod>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.kept.close();
        self.0.stock.close();
    }
}

/// How long [`ACCEPTS_IN_A_ROW`] dials of one pod take at least, on so many threads, if `warm` of
/// them took no handshake.
fn time_of_dials(warm: u32, threads: usize) -> Duration {
    let warm = warm.min(ACCEPTS_IN_A_ROW);
    let second = Duration::from_secs(1);
    let one_thread = second / WARM_DIALS_PER_SECOND * warm
        + second / DIALS_PER_SECOND * (ACCEPTS_IN_A_ROW - warm);
    one_thread / u32::try_from(threads).unwrap_or(1)
}

async fn accept(mesh: Arc<Mesh>, pod: Arc<Pod>, post: Arc<Post>) {
    let (direction, mut listener) = (post.key.direction, post.listener.load_full());
    let mut may_be_made_anew = Instant::now();
    let (mut in_a_row, mut begun) = (0_u32, Instant::now());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    loop {
        in_a_row = in_a_row.wrapping_add(1);
        if in_a_row.is_multiple_of(ACCEPTS_IN_A_ROW) {
            let may_go_on = (direction == OUTBOUND)
                .then(|| begun + time_of_dials(pod.take_warm_dials(), threads))
                .filter(|at| Instant::now() < *at);
            match may_go_on {
                Some(at) => sleep_until(at).await,
                None => yield_now().await,
            }
            begun = Instant::now();
        }
        match listener.accept().await {
            Ok((stream, from)) if direction == OUTBOUND => {
                mesh.metrics.accepted_outbound.inc();
                let app = AppStream::prepared(stream);
                if outbound::is_gone(&app) {
                    drop(app);
                    sleep(GONE_PAUSE).await;
                    continue;
                }
                let dial = outbound::dial_of(&pod, app.tcp(), from);
                match outbound::admit(&mesh, &pod, dial.as_ref()) {
                    Ok(admitted) => {
                        let (mesh, of) = (Arc::clone(&mesh), Arc::clone(&pod));
                        let serving = outbound::serve(mesh, of, app, (from, dial), admitted);
                        pod.connections.spawn("outbound", serving);
                    }
                    // Dropped, it is reset.
                    Err(reached) => outbound::refuse(&mesh, &pod, from, dial.as_ref(), reached),
                }
            }
            // Its filter lets nothing in.
            Ok((stream, _)) if direction == ASKING => drop(stream),
            Ok((stream, from)) => {
                match mesh.limits.admit(&pod.inbound, Some(mesh.client(from.ip()))) {
                    Ok(admitted) => pod.connections.spawn(
                        "inbound",
                        inbound::serve(Arc::clone(&mesh), Arc::clone(&pod), stream, from, admitted),
                    ),
                    Err(reached) => inbound::refuse(&mesh, &pod, stream, from, reached),
                }
            }
            // The connection was gone before it was accepted.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) => {}
            // The listener is closed: something in the pod has destroyed it.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                sleep_until(may_be_made_anew).await;
                post.make_anew(&mesh, &pod).await;
                listener = post.listener.load_full();
                may_be_made_anew = Instant::now() + REMAKE_PAUSE;
            }
            Err(error) => {
                tracing::warn!(pod = %pod.name, %error, "cannot accept; trying again");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dials_that_made_no_handshake_may_come_faster() {
        let per_second = |warm| ACCEPTS_IN_A_ROW * 1000 / time_of_dials(warm, 1).as_millis() as u32;
        assert_eq!(per_second(0), DIALS_PER_SECOND);
        assert!(per_second(ACCEPTS_IN_A_ROW / 2) < 2 * DIALS_PER_SECOND);
        let warm = per_second(ACCEPTS_IN_A_ROW);
        assert!((WARM_DIALS_PER_SECOND..WARM_DIALS_PER_SECOND * 2).contains(&warm), "{warm}");
        // What was saved up does not count.
        assert_eq!(time_of_dials(1000, 1), time_of_dials(ACCEPTS_IN_A_ROW, 1));
        assert_eq!(time_of_dials(0, 4) * 4, time_of_dials(0, 1));
    }
}
