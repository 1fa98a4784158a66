//! `GET /metrics`. Every client in the cluster may reach the port, so that a client gets little of
//! the agent: a few connections at once, a few seconds each, and a page that is made at most once a
//! second. No connection is refused: when there are too many, the client with the most loses its
//! oldest.

use std::{
    convert::Infallible,
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::ready;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_api::{ProblemCode, ProblemFacts};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::{
    guests::{Guests, Left, MAX_OPEN},
    page,
};
use crate::{admin::AdminContext, tasks::Tasks};

/// How long a connection may last; Prometheus itself waits for 10 s unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest head of a request, in bytes; the least that hyper allows.
const MAX_HEAD_BYTES: usize = 8192;
/// The pause between two accepted connections: a pod that dials as fast as it can costs little.
const PAUSE: Duration = Duration::from_millis(1);
/// How old a page may be.
const FRESH: Duration = Duration::from_secs(1);
/// How long `status` shows that a client's connections were pushed out, after the last one.
const CROWDED_FOR: Duration = Duration::from_secs(10);
/// The pause between two attempts to bind the port.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Where to listen, as `ADDRESS:PORT`. `[::]` is both families, or IPv4 alone on a node without
/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(SocketAddr);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = text.parse().map_err(|_not_one| {
            format!("{text:?} is not an address and a port, such as [::]:15020 or 127.0.0.1:15020")
        })?;
        Ok(Self(address))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Address {
    async fn bind(self) -> io::Result<TcpListener> {
        let bound = TcpListener::bind(self.0).await;
        match bound {
            Err(error) if is_without_ipv6(&error) && self.0.ip() == Ipv6Addr::UNSPECIFIED => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, self.0.port())).await
            }
            bound => bound,
        }
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Answers until dropped. While the port cannot be bound, `status` says so, and binding is tried
/// again: an agent that is just being replaced may still hold the port.
pub async fn keep_serving(address: Address, state: Arc<AdminContext>, tasks: Tasks) {
    let mut is_told = false;
    let listener = loop {
        match address.bind().await {
            Ok(listener) => break listener,
            Err(error) => {
                let message = format!(
                    "cannot listen on {address} for metrics: {error}; --metrics sets another address"
                );
                if !is_told {
                    tracing::warn!("{message}");
                }
                is_told = true;
                let problem = ProblemFacts::new(ProblemCode::MetricsNotServed, message);
                state.metrics_problem.store(Some(Arc::new(problem)));
                sleep(AGAIN_AFTER).await;
            }
        }
    };
    state.metrics_problem.store(None);
    tracing::info!(%address, "metrics are served");
    let office = Arc::new(Office { state, kept: Mutex::default() });
    let guests = Guests::default();
    let mut crowded: Option<Instant> = None;
    loop {
        let accepted = timeout(CROWDED_FOR, listener.accept()).await;
        if crowded.take_if(|since| since.elapsed() >= CROWDED_FOR).is_some() {
            office.state.metrics_problem.store(None);
        }
        match accepted {
            Ok(Ok((stream, from))) => {
                let address = from.ip().to_canonical();
                let (seat, left) = guests.seat(office.state.mesh.client(address), address);
                if let Some(left) = left {
                    crowded = Some(Instant::now());
                    office.state.metrics_problem.store(Some(Arc::new(office.crowded_by(&left))));
                }
                let office = Arc::clone(&office);
                tasks.spawn("metrics-answer", async move {
                    tokio::select! {
                        () = answer(stream, &office) => {}
                        // Dropped: it has asked for nothing in its time.
                        () = seat.pushed_out() => {}
                    }
                });
                sleep(PAUSE).await;
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot accept a connection that asks for metrics");
                sleep(Duration::from_millis(100)).await;
            }
            Err(_nobody_asks) => {}
        }
    }
}

async fn answer(stream: TcpStream, office: &Office) {
    let service = service_fn(|request| ready(Ok::<_, Infallible>(office.respond(&request))));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false) // a scrape every 15 s gains nothing by it, and a seat is free sooner
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection that asked for metrics"),
        Err(_too_slow) => tracing::debug!("a connection that asked for metrics was too slow"),
    }
}

/// Makes the page, and keeps it for clients that ask a moment later.
struct Office {
    state: Arc<AdminContext>,
    kept: Mutex<Option<(Instant, Bytes)>>,
}

impl Office {
    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let text = "text/plain; charset=utf-8";
        let (status, content_type, body) = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => match self.page() {
                Ok(page) => (StatusCode::OK, super::CONTENT_TYPE, page),
                Err(error) => {
                    tracing::error!(%error, "the page of metrics cannot be made");
                    (StatusCode::INTERNAL_SERVER_ERROR, text, Bytes::from(format!("{error}\n")))
                }
            },
            (_, "/metrics") => {
                let body = Bytes::from_static(b"only GET and HEAD\n");
                (StatusCode::METHOD_NOT_ALLOWED, text, body)
            }
            _ => (StatusCode::NOT_FOUND, text, Bytes::from_static(b"there is only /metrics\n")),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }

    /// The client with the most connections, for `status`.
    fn crowded_by(&self, left: &Left) -> ProblemFacts {
        let Left { client, address } = left;
        let pod = self.state.mesh.pod_at(*address).map(|pod| format!(" ({pod})"));
        let message = format!(
            "more than {MAX_OPEN} connections at once ask for metrics; {client}{} has most of them, and its oldest are ended for others. Hint: allow only Prometheus by a NetworkPolicy",
            pod.unwrap_or_default()
        );
        ProblemFacts::new(ProblemCode::MetricsCrowded, message)
    }

    fn page(&self) -> prometheus::Result<Bytes> {
        let mut kept = self.kept.lock();
        if let Some((made, page)) = &*kept
            && made.elapsed() < FRESH
        {
            return Ok(page.clone());
        }
        let page = Bytes::from(page(&self.state.metrics, &self.state.overview())?);
        *kept = Some((Instant::now(), page.clone()));
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_port_is_refused_in_a_sentence() {
        assert!("[::]:15020".parse::<Address>().is_ok());
        let refused = "15020".parse::<Address>().unwrap_err();
        assert!(refused.contains("[::]:15020"), "{refused}");
    }
}
