//! The predecessor's side.

use std::{io, os::fd::AsFd as _, path::PathBuf, sync::Arc, time::Duration};

use mesh_api::{HANDOVER_VERSION, Listener, PredecessorInfo, Request, Response, SuccessorInfo};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Interest},
    net::{TcpListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::sys;

/// How long the successor may take from the first answer until it has switched: it loads programs
/// and enrols every pod. The predecessor enrols no pod meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Longest line of the successor.
const MAX_LINE_BYTES: u64 = 4096;

/// Where hand-overs are asked for: the way from the admin socket to the task that enrols pods.
pub struct TakeoverQueue {
    /// That task takes requests from here, one at a time.
    pub requests: mpsc::Sender<TakeoverRequest>,
    /// This agent's node.
    pub node: String,
    /// Where it pins.
    pub pin_dir: PathBuf,
    /// The cgroup that it dials from.
    pub cgroup: u64,
}

/// The request of a successor.
pub struct TakeoverRequest {
    /// The id of the cgroup that the successor dials from.
    pub successor: u64,
    /// Whether it has the kernel's tables that this agent has.
    pub shares_tables: bool,
    /// Gets the listeners, once nothing changes any more.
    pub listeners: oneshot::Sender<Vec<(Listener, Arc<TcpListener>)>>,
    /// Resolves when the successor has switched; fails if it is gone before.
    pub switched: oneshot::Receiver<TakeoverDone>,
}

/// The successor has switched, and waits to be told that everything is released.
#[derive(Debug)]
pub struct TakeoverDone {
    /// Tells the successor.
    pub released: oneshot::Sender<()>,
}

/// Gives this agent's listeners to the successor at the other end, which has just asked. Holds the
/// connection until `ended`.
///
/// # Errors
/// The connection failed, or the successor said something else. This agent then goes on, unless the
/// successor had switched by then.
pub async fn give(
    stream: UnixStream,
    ask: &SuccessorInfo,
    takeovers: &TakeoverQueue,
    ended: CancellationToken,
) -> io::Result<()> {
    let (request, answer) = match open(ask, takeovers).await {
        Ok(opened) => opened,
        Err(refusal) => return say(&stream, &Response::Error(refusal)).await,
    };
    tracing::info!(successor = ask.pid, listeners = answer.len(), "handing over");
    let (listeners, sockets): (Vec<_>, Vec<_>) = answer.into_iter().unzip();
    let predecessor =
        PredecessorInfo { pid: std::process::id(), cgroup: takeovers.cgroup, listeners };
    say(&stream, &Response::HandOver(Box::new(predecessor))).await?;
    let mut reader = BufReader::new(stream);
    if hear(&mut reader).await? != Request::Give {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let stream = reader.get_ref();
    for some in sockets.chunks(sys::fds::MOST) {
        let fds: Vec<_> = some.iter().map(|socket| socket.as_fd()).collect();
        stream.async_io(Interest::WRITABLE, || sys::fds::send(stream, &fds)).await?;
    }
    drop(sockets); // else a listener would outlive its accept loop
    if hear(&mut reader).await? != Request::Switched {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let (released, is_released) = oneshot::channel();
    if request.send(TakeoverDone { released }).is_ok() && is_released.await.is_ok() {
        say(reader.get_ref(), &Response::Released).await?;
        ended.cancelled().await; // the connection's end tells the successor of ours
    }
    Ok(())
}

type Given = Vec<(Listener, Arc<TcpListener>)>;

/// Checks the request and has enrolment stopped; else returns a sentence that says why not.
async fn open(
    ask: &SuccessorInfo,
    takeovers: &TakeoverQueue,
) -> Result<(oneshot::Sender<TakeoverDone>, Given), String> {
    if ask.version != HANDOVER_VERSION {
        return Err(format!(
            "it speaks version {HANDOVER_VERSION} of the hand-over, not {}; stop it first",
            ask.version
        ));
    }
    if (ask.node.as_str(), &ask.pin_dir) != (takeovers.node.as_str(), &takeovers.pin_dir) {
        return Err(format!(
            "it is the agent of node {} with pins in {}; give yours the same --node and --pin-dir",
            takeovers.node,
            takeovers.pin_dir.display()
        ));
    }
    let (listeners, answer) = oneshot::channel();
    let (switched, has_switched) = oneshot::channel();
    let request = TakeoverRequest {
        successor: ask.cgroup,
        shares_tables: ask.layout == Some(mesh_common::ABI),
        listeners,
        switched: has_switched,
    };
    let busy = |_| "it is stopping or handing over to another one; try again".to_owned();
    takeovers.requests.try_send(request).map_err(busy)?;
    let given = answer.await.map_err(|_stopping| "it is stopping; try again".to_owned())?;
    Ok((switched, given))
}

async fn hear(reader: &mut BufReader<UnixStream>) -> io::Result<Request> {
    let mut line = String::new();
    let limited = async { reader.take(MAX_LINE_BYTES).read_line(&mut line).await };
    timeout(PATIENCE, limited).await??;
    Ok(serde_json::from_str(&line)?)
}

async fn say(stream: &UnixStream, response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    loop {
        stream.writable().await?;
        match stream.try_write(&line) {
            Ok(written) if written == line.len() => return Ok(()),
            Ok(written) => drop(line.drain(..written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
