//! Many requests to the API server in little time: `kubectl` limits itself to 50 a second.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Cluster, kubectl};

/// Requests at a time.
const AT_ONCE: usize = 8;
/// How long one may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// One request.
#[derive(Debug)]
pub struct Request {
    /// `POST`, or `PATCH` for a merge patch.
    pub method: &'static str,
    /// Such as `/api/v1/nodes`.
    pub path: String,
    /// What is sent.
    pub body: Value,
}

/// A way to the API server, with the rights of the administrator. It ends when it is dropped.
#[derive(Debug)]
pub struct Bulk {
    proxy: Child,
    address: SocketAddr,
}

impl Bulk {
    /// Starts `kubectl proxy`, which limits nothing.
    pub fn of(cluster: &Cluster) -> Result<Self> {
        let mut command = Command::new(kubectl());
        command.args(["proxy", "--port=0"]).env("KUBECONFIG", cluster.kubeconfig());
        let mut proxy = command.stdout(Stdio::piped()).spawn().context("kubectl proxy")?;
        let mut line = String::new();
        let out = proxy.stdout.take().context("no output")?;
        let read = BufReader::new(out).read_line(&mut line);
        let address = line.trim().rsplit(' ').next().and_then(|text| text.parse().ok());
        // From here on it is killed.
        let bulk = Self { proxy, address: address.unwrap_or(([127, 0, 0, 1], 0).into()) };
        ensure!(read.is_ok() && address.is_some(), "kubectl proxy says {line:?}");
        Ok(bulk)
    }

    /// Sends them all, in no order.
    ///
    /// # Errors
    /// The first that is not answered with success.
    pub fn send(&self, requests: &[Request]) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.send_one(request).with_context(|| request.path.clone())?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("a thread panicked"))
        })
    }

    fn send_one(&self, Request { method, path, body }: &Request) -> Result<()> {
        let kind = if *method == "PATCH" { "merge-patch+json" } else { "json" };
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/{kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let is_good = answer.starts_with("HTTP/1.1 2");
        ensure!(is_good, "{}", answer.chars().take(2000).collect::<String>());
        Ok(())
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        drop(self.proxy.kill());
        drop(self.proxy.wait());
    }
}
