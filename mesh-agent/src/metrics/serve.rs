//! `GET /metrics`. Anybody in the cluster may reach the port, so that who asks gets little of the agent: a few connections
//! at once, a few seconds each, and a page that is made at most once a second.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
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
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::page;
use crate::{
    admin::{ProblemFacts, State},
    tasks::Tasks,
};

/// Connections at once: several scrapers, and people who look.
const MAX_OPEN: usize = 64;
/// Of these, from one address, so that nobody keeps the others out alone.
const MAX_OF_ONE: usize = 8;
/// How long a connection may last; Prometheus itself waits for 10 s unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a request's head may take, in bytes; hyper's least.
const MAX_HEAD_BYTES: usize = 8192;
/// Between two connections that are taken, or turned away: a pod that dials as fast as it can costs little.
const PAUSE: Duration = Duration::from_millis(1);
/// How old a page may be.
const FRESH: Duration = Duration::from_secs(1);
/// Between two attempts to have the port.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Where to listen, as `ADDRESS:PORT`. `[::]` is both families, or IPv4 alone on a node without IPv6.
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

/// Answers until dropped. While the port cannot be had, `status` says so, and it is tried again: an agent that is just
/// being replaced may still have it.
pub async fn keep_serving(address: Address, state: Arc<State>, tasks: Tasks) {
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
                let code = "metrics_not_served".to_owned();
                state.metrics_problem.store(Some(Arc::new(ProblemFacts { code, message })));
                sleep(AGAIN_AFTER).await;
            }
        }
    };
    state.metrics_problem.store(None);
    tracing::info!(%address, "metrics are served");
    let office = Arc::new(Office { state, kept: Mutex::default() });
    let guests = Guests::default();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                if let Some(seat) = guests.seat(from.ip().to_canonical()) {
                    let office = Arc::clone(&office);
                    tasks.spawn("metrics-answer", async move {
                        let _seat = seat;
                        answer(stream, &office).await;
                    });
                }
                sleep(PAUSE).await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection that asks for metrics");
                sleep(Duration::from_millis(100)).await;
            }
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

/// Makes the page, and keeps it for those who ask a moment later.
struct Office {
    state: Arc<State>,
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

    fn page(&self) -> prometheus::Result<Bytes> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, page)) = &*kept
            && made.elapsed() < FRESH
        {
            return Ok(page.clone());
        }
        let page = Bytes::from(page(&self.state.overview())?);
        *kept = Some((Instant::now(), page.clone()));
        Ok(page)
    }
}

/// Who is being answered.
#[derive(Clone, Default)]
struct Guests(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection's place among them, until it is dropped.
struct Seat {
    guests: Guests,
    of: IpAddr,
}

impl Guests {
    /// A place for a connection from there, if there is one.
    fn seat(&self, of: IpAddr) -> Option<Seat> {
        let mut seats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = seats.values().sum();
        let taken = seats.get(&of).copied().unwrap_or_default();
        if all >= MAX_OPEN || taken >= MAX_OF_ONE {
            return None;
        }
        seats.insert(of, taken + 1);
        Some(Seat { guests: self.clone(), of })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.guests.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = seats.get_mut(&self.of) {
            *taken -= 1;
            if *taken == 0 {
                seats.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_seats_and_a_seat_left_is_free() {
        let guests = Guests::default();
        let greedy = IpAddr::from([10, 0, 0, 1]);
        let taken: Vec<_> = std::iter::from_fn(|| guests.seat(greedy)).collect();
        assert_eq!(taken.len(), MAX_OF_ONE);
        let others: Vec<_> =
            (2..=255).filter_map(|host| guests.seat([10, 0, 0, host].into())).collect();
        assert_eq!(others.len(), MAX_OPEN - MAX_OF_ONE);
        drop(taken);
        assert!(guests.seat(greedy).is_some());
        drop(others);
        assert!(guests.0.lock().unwrap().is_empty());
    }

    #[test]
    fn an_address_without_port_is_refused_in_a_sentence() {
        assert!("[::]:15020".parse::<Address>().is_ok());
        let refused = "15020".parse::<Address>().unwrap_err();
        assert!(refused.contains("[::]:15020"), "{refused}");
    }
}
