//! The agent's dials, all from inside a pod's network namespace and from the pod's own address.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mesh_api::Reason;
use mesh_common::{
    maps::{DialOptions, FlowKey, LEG_NOTED},
    ports,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

use super::{
    pod::Pod,
    relay::AppStream,
    silence,
    socket_memory::{APP_MSS, SEND_AHEAD},
    source_ports::PortLease,
};
use crate::{
    kernel::Kernel,
    netns::{Factory, NetnsError},
};

/// How long a peer's node may take to answer a SYN: three retransmissions (1 + 2 + 4 s). A dial
/// that waits in `connect()` is tried again with its next SYN.
pub(super) const PEER_TIMEOUT: Duration = Duration::from_secs(7);

/// How long an application may take: as long as the SYN of its client would be repeated by default
/// (`tcp_syn_retries`, 131 s). One that is too busy to accept drops SYNs for a while.
const APPLICATION_TIMEOUT: Duration = Duration::from_secs(135);

/// How long a dial to a peer waits for a source port when all are in use. Longer than a short
/// connection lives, shorter than what looks like a hang to an application. A dial never uses a
/// port outside the range: the peer would take it for plaintext.
const PORT_WAIT: Duration = Duration::from_secs(1);

/// How many source ports are tried when one that should be free is not. A process in the pod may
/// have bound it explicitly, or an agent that has handed over still uses it. If half of the ports
/// are taken, all attempts fail once in 4 billion times.
const BIND_ATTEMPTS: usize = 32;

/// Why a dial failed.
#[derive(Debug, Error)]
pub enum DialError {
    /// Nothing listens there.
    #[error(
        "{to} refused the connection; nothing listens there, or a firewall or NetworkPolicy answers so"
    )]
    Refused {
        /// What was dialled.
        to: SocketAddr,
    },
    /// No answer.
    #[error(
        "{to} answered no SYN; the host is down, or a firewall or NetworkPolicy drops the packets"
    )]
    TimedOut {
        /// What was dialled.
        to: SocketAddr,
    },
    /// The destination cannot be reached.
    #[error("{to} cannot be reached: {source}")]
    Unreachable {
        /// What was dialled.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// What has answered is not the pod that was meant.
    #[error(
        "{to} has answered, but not as the pod of this node that has that address: something between the two changes source addresses, or the address is another pod's by now"
    )]
    Elsewhere {
        /// What was dialled.
        to: SocketAddr,
    },
    /// Every source port is in use.
    #[error(
        "all {} source ports from this pod to {to} are in use, or a process in the pod holds them; let the application keep fewer connections open to it",
        ports::MESH_COUNT
    )]
    NoSourcePort {
        /// What was dialled.
        to: SocketAddr,
    },
    /// The pod has no address of that family.
    #[error("the pod has no address of the family of {to}")]
    NoAddress {
        /// What was dialled.
        to: SocketAddr,
    },
    /// The socket could not be made.
    #[error("no socket in the pod's network namespace: {0}")]
    Socket(#[source] io::Error),
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel could not be told the client's address.
    #[error("the kernel could not be told the client's address: {0}")]
    Leg(#[source] io::Error),
}

impl DialError {
    /// Its code, sentence and the rest.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused { .. } => Reason::ConnectionRefused,
            Self::TimedOut { .. } => Reason::ConnectionTimedOut,
            Self::Unreachable { .. } | Self::Elsewhere { .. } => Reason::Unreachable,
            Self::NoSourcePort { .. } => Reason::NoSourcePort,
            Self::NoAddress { .. } => Reason::NoAddressOfFamily,
            Self::Socket(_) => Reason::NoSocket,
            Self::Netns(_) => Reason::NoNetworkNamespace,
            Self::Leg(_) => Reason::LegNotAnnounced,
        }
    }

    fn of(to: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
                Self::Refused { to }
            }
            io::ErrorKind::TimedOut => Self::TimedOut { to },
            _ => Self::Unreachable { to, source },
        }
    }
}

/// A connection to a peer's agent.
pub(super) struct DialledPeer {
    /// The connection.
    pub(super) stream: TcpStream,
    /// Its own address, in the pod.
    pub(super) from: SocketAddr,
    /// Its source port. Keep it as long as the connection.
    pub(super) lease: PortLease,
}

/// Dials a peer's agent, from the mesh's port range: the source port says that TLS follows.
///
/// # Errors
/// See [`DialError`].
///
/// # Cancel safety
/// If dropped, the dial is given up and its port returned.
pub(super) async fn to_peer(
    factory: &Factory,
    pod: &Pod,
    to: SocketAddr,
    options: DialOptions,
) -> Result<DialledPeer, DialError> {
    let dialled = from_mesh_port(factory, pod, to, options, Other::Agent).await;
    dialled.map(|(dialled, _no_note)| dialled).map_err(|not| not.error)
}

/// Why an application of another pod of this node was not reached.
#[derive(Debug)]
pub(super) struct NotReached {
    pub(super) error: DialError,
    /// Whether the packet has come to the pod that was meant: then the pod has refused it.
    pub(super) has_arrived: bool,
}

impl From<DialError> for NotReached {
    fn from(error: DialError) -> Self {
        Self { error, has_arrived: false }
    }
}

/// Dials an application of another pod of this node, from the mesh's port range: the kernel lets it
/// in by the note that is left first, and shows the application the client as its peer. The packets
/// go the way of any other between the two pods, so that network policies hold. A connection that
/// did not come to that pod as it was sent is none.
///
/// # Errors
/// See [`DialError`].
///
/// # Cancel safety
/// If dropped, the dial is given up, its port returned and the note removed.
pub(super) async fn neighbour(
    kernel: &Arc<Kernel>,
    factory: &Factory,
    [pod, neighbour]: [&Pod; 2],
    ends: LegEnds,
    options: DialOptions,
) -> Result<Leg, NotReached> {
    let other = Other::Application { kernel, pod: neighbour, ends };
    let dialled = from_mesh_port(factory, pod, ends.application, options, other).await?;
    let (DialledPeer { stream, lease, .. }, Some(note)) = dialled else {
        return Err(DialError::Elsewhere { to: ends.application }.into());
    };
    let stream = AppStream::prepared(stream);
    Ok(Leg { stream, held: LegHeld { _note: note, _port: Some(lease) } })
}

/// What is dialled from a port of the mesh's range.
#[derive(Clone, Copy)]
enum Other<'a> {
    Agent,
    /// One of this pod of the node.
    Application {
        kernel: &'a Arc<Kernel>,
        pod: &'a Pod,
        ends: LegEnds,
    },
}

impl Other<'_> {
    async fn socket(self, factory: &Factory, pod: &Pod, ip: IpAddr) -> Result<Socket, DialError> {
        match self {
            Self::Agent => socket(factory, pod, ip, true).await,
            Self::Application { .. } => leg_socket(factory, pod, ip).await,
        }
    }

    fn note(self, socket: &Socket) -> Result<Option<LegNote>, DialError> {
        match self {
            Self::Agent => Ok(None),
            Self::Application { kernel, pod, ends } => {
                LegNote::leave(kernel, pod, socket, ends).map(Some)
            }
        }
    }
}

/// Dials from a free port of the mesh's range.
async fn from_mesh_port(
    factory: &Factory,
    pod: &Pod,
    to: SocketAddr,
    options: DialOptions,
    other: Other<'_>,
) -> Result<(DialledPeer, Option<LegNote>), NotReached> {
    let ip = pod.address_like(to.ip()).ok_or(DialError::NoAddress { to })?;
    for _ in 0..BIND_ATTEMPTS {
        let lease = pod.source_ports.wait(to, PORT_WAIT).await;
        let lease = lease.ok_or(DialError::NoSourcePort { to })?;
        let socket = other.socket(factory, pod, ip).await?;
        set_class(&socket, options, to.is_ipv4()).map_err(DialError::Socket)?;
        socket.set_tcp_keepalive(&silence::keepalive(options)).map_err(DialError::Socket)?;
        let from = SocketAddr::new(ip, lease.port);
        match socket.bind(&from.into()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                lease.give_up();
                continue;
            }
            Err(error) => return Err(DialError::Socket(error).into()),
        }
        let note = match other.note(&socket) {
            Err(DialError::Leg(error)) if error.kind() == io::ErrorKind::AlreadyExists => {
                lease.give_up();
                continue;
            }
            note => note?,
        };
        match connect_noted(socket, to, note.as_ref()).await {
            // The 4-tuple is in use by a socket that is not ours.
            Err(NotReached { error: DialError::Unreachable { source, .. }, .. })
                if source.kind() == io::ErrorKind::AddrNotAvailable =>
            {
                drop(note); // before the port: the next one's note has the same key
                lease.give_up();
            }
            Ok(stream) => return Ok((DialledPeer { stream, from, lease }, note)),
            Err(error) => {
                drop(note);
                return Err(error);
            }
        }
    }
    Err(DialError::NoSourcePort { to }.into())
}

/// Connects to an agent; or to an application whose kernel has a note of the leg, and only if the
/// leg has come there.
async fn connect_noted(
    socket: Socket,
    to: SocketAddr,
    note: Option<&LegNote>,
) -> Result<TcpStream, NotReached> {
    let has_arrived = || note.is_some_and(LegNote::has_arrived);
    let (stream, is_connected) = begin(socket, to)?;
    if !is_connected {
        let mut finished = finish(&stream, to, PEER_TIMEOUT).await;
        if matches!(finished, Err(DialError::TimedOut { .. })) && has_arrived() {
            // The application's queue is full.
            finished = finish(&stream, to, APPLICATION_TIMEOUT).await;
        }
        finished.map_err(|error| NotReached { error, has_arrived: has_arrived() })?;
    }
    if note.is_some() && !has_arrived() {
        reset(stream);
        return Err(DialError::Elsewhere { to }.into());
    }
    Ok(stream)
}

/// Dials as the pod itself would, for destinations that are not in the mesh.
///
/// # Errors
/// See [`DialError`].
///
/// # Cancel safety
/// If dropped, the dial is given up.
pub(super) async fn plain(
    factory: &Factory,
    pod: &Pod,
    to: SocketAddr,
    options: DialOptions,
) -> Result<AppStream, DialError> {
    let from = pod.address_like(to.ip()).ok_or(DialError::NoAddress { to })?;
    let socket = socket(factory, pod, from, false).await?;
    set_class(&socket, options, to.is_ipv4()).map_err(DialError::Socket)?;
    let keepalive = silence::keepalive_with_stranger(options);
    socket.set_tcp_keepalive(&keepalive).map_err(DialError::Socket)?;
    let stream = connect(socket, to, PEER_TIMEOUT).await?;
    AppStream::new(stream).map_err(DialError::Socket)
}

/// A connection to an application inside the pod.
pub(super) struct Leg {
    /// The connection.
    pub(super) stream: AppStream,
    /// Keep it as long as the connection.
    pub(super) held: LegHeld,
}

/// The two ends of a leg, as the application sees them.
#[derive(Clone, Copy)]
pub(super) struct LegEnds {
    /// The application's address: the pod's own.
    pub(super) application: SocketAddr,
    /// The client's, which the application is shown as its peer's.
    pub(super) client: SocketAddr,
}

/// What a leg holds besides its socket. The note is dropped before the port: the next leg from that
/// port leaves a note with the same key.
pub(super) struct LegHeld {
    _note: LegNote,
    _port: Option<PortLease>,
}

/// Dials the application inside the pod, so that it sees the client as its peer.
///
/// The source port comes from the mesh's range too (from the pod's own address to itself, the range
/// means nothing). An ephemeral port would be lost to the pod for a minute after each connection
/// that its client ends: the kernel gives an explicitly bound port to no other socket, not even in
/// `TIME_WAIT`.
///
/// # Errors
/// See [`DialError`].
///
/// # Cancel safety
/// If dropped, the dial is given up and the kernel's note of the client is removed.
pub(super) async fn application(
    kernel: &Arc<Kernel>,
    factory: &Factory,
    pod: &Pod,
    ends: LegEnds,
) -> Result<Leg, DialError> {
    let to = ends.application;
    if ports::is_magic(to.port()) {
        return Err(DialError::Refused { to }); // it would lead back to the agent
    }
    for _ in 0..BIND_ATTEMPTS {
        // If all of them are in use, an ephemeral port is better than none.
        let lease = pod.source_ports.lease_for_leg(to);
        let socket = leg_socket(factory, pod, to.ip()).await?;
        if lease.is_none() {
            socket.set_reuse_address(false).map_err(DialError::Socket)?;
        }
        let port = lease.as_ref().map_or(0, |lease| lease.port);
        match socket.bind(&SocketAddr::new(to.ip(), port).into()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if let Some(lease) = lease {
                    lease.give_up();
                }
                continue;
            }
            Err(error) => return Err(DialError::Socket(error)),
        }
        let note = LegNote::leave(kernel, pod, &socket, ends)?;
        match connect(socket, to, APPLICATION_TIMEOUT).await {
            Err(DialError::Unreachable { source, .. })
                if source.kind() == io::ErrorKind::AddrNotAvailable =>
            {
                if let Some(lease) = lease {
                    lease.give_up();
                }
            }
            Err(error) => return Err(error),
            Ok(stream) => {
                let stream = AppStream::prepared(stream);
                return Ok(Leg { stream, held: LegHeld { _note: note, _port: lease } });
            }
        }
    }
    Err(DialError::NoSourcePort { to })
}

/// The kernel's note of a leg's client. Sockops takes it when the application's socket is
/// established. That may be long after ours is (`TCP_DEFER_ACCEPT`), or never. So what is left of
/// the note is removed with the leg.
struct LegNote {
    kernel: Arc<Kernel>,
    leg: FlowKey,
}

impl LegNote {
    fn leave(
        kernel: &Arc<Kernel>,
        pod: &Pod,
        socket: &Socket,
        LegEnds { application: to, client }: LegEnds,
    ) -> Result<Self, DialError> {
        let from = socket.local_addr().map_err(DialError::Socket)?;
        let from = from.as_socket().ok_or(DialError::NoAddress { to })?;
        let leg = pod.flow_key(from, to);
        kernel.tables().put_leg(&leg, client.into()).map_err(DialError::Leg)?;
        Ok(Self { kernel: Arc::clone(kernel), leg })
    }

    /// Whether its packet has come to the pod.
    fn has_arrived(&self) -> bool {
        self.kernel.tables().leg(&self.leg).is_some_and(|state| state != LEG_NOTED)
    }
}

impl Drop for LegNote {
    fn drop(&mut self) {
        if let Err(error) = self.kernel.tables().drop_leg(&self.leg) {
            tracing::warn!(%error, "cannot take back the note of a leg");
        }
    }
}

async fn socket(
    factory: &Factory,
    pod: &Pod,
    like: IpAddr,
    reuse: bool,
) -> Result<Socket, DialError> {
    let domain = domain(like);
    in_pod(factory, pod, move || make(domain, reuse)).await
}

async fn in_pod(
    factory: &Factory,
    pod: &Pod,
    make: impl FnOnce() -> io::Result<Socket> + Send + 'static,
) -> Result<Socket, DialError> {
    // The factory is FIFO, so cap each pod's queued requests.
    let _turn = pod.sockets.acquire().await;
    pod.netns.run(factory, make).await?.map_err(DialError::Socket)
}

async fn leg_socket(factory: &Factory, pod: &Pod, like: IpAddr) -> Result<Socket, DialError> {
    let domain = domain(like);
    match pod.stock.take(domain, &pod.netns, factory, &pod.busy) {
        Some(ready) => Ok(ready),
        None => in_pod(factory, pod, move || make_leg(domain)).await,
    }
}

fn domain(like: IpAddr) -> Domain {
    if like.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 }
}

/// A socket for a connection to an application, which an [`AppStream`] takes as it is. Without
/// keep-alive: both ends are in the pod's own kernel.
pub(super) fn make_leg(domain: Domain) -> io::Result<Socket> {
    let socket = make(domain, true)?;
    socket.set_tcp_mss(APP_MSS)?;
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

fn make(domain: Domain, reuse: bool) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(SEND_AHEAD)?;
    socket.set_reuse_address(reuse)?;
    // Urgent data is a byte of the stream: without this, it would be lost to one that does not ask
    // for it.
    socket.set_out_of_band_inline(true)?;
    Ok(socket)
}

/// Gives a socket the traffic class that the application has set on its own.
fn set_class(socket: &Socket, options: DialOptions, is_v4: bool) -> io::Result<()> {
    match options.tos {
        0 => Ok(()),
        class if is_v4 => socket.set_tos_v4(class),
        class => socket.set_tclass_v6(class),
    }
}

async fn connect(socket: Socket, to: SocketAddr, limit: Duration) -> Result<TcpStream, DialError> {
    let (stream, is_connected) = begin(socket, to)?;
    if !is_connected {
        finish(&stream, to, limit).await?;
    }
    Ok(stream)
}

/// Begins to connect. Returns whether that is done.
fn begin(socket: Socket, to: SocketAddr) -> Result<(TcpStream, bool), DialError> {
    let is_connected = start(&socket, to).map_err(|error| DialError::of(to, error))?;
    let stream = TcpStream::from_std(socket.into()).map_err(DialError::Socket)?;
    Ok((stream, is_connected))
}

/// Waits until it is connected.
async fn finish(stream: &TcpStream, to: SocketAddr, limit: Duration) -> Result<(), DialError> {
    match timeout(limit, stream.writable()).await {
        Ok(Ok(())) => match stream.take_error() {
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(DialError::of(to, error)),
        },
        Ok(Err(error)) => Err(DialError::of(to, error)),
        Err(_elapsed) => Err(DialError::TimedOut { to }),
    }
}

/// Begins to connect. Returns whether that is done. A connection within the pod is made while the
/// first call lasts, but only the next one says so.
fn start(socket: &Socket, to: SocketAddr) -> io::Result<bool> {
    for _ in 0..2 {
        match socket.connect(&to.into()) {
            Ok(()) => return Ok(true),
            Err(error) if is_under_way(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn is_under_way(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY))
}

/// Ends a connection with a reset instead of a clean end of stream.
pub(super) fn reset(stream: TcpStream) {
    if let Err(error) = SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "cannot ask for a reset");
    }
    drop(stream);
}
