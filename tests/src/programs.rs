//! Real programs, configured to run in a pod and nowhere else: nothing below `/etc` or `/var` is
//! read or written.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    exec::{Place, Process},
    wait_until,
};

/// How long a server may take to listen.
const SOON: Duration = Duration::from_secs(10);

/// An nginx: HTTP/1.1 on both families.
#[derive(Debug)]
pub struct Nginx {
    _process: Process,
    access_log: PathBuf,
    /// What it serves.
    pub root: PathBuf,
}

/// Starts nginx; `/` answers with `greeting` and the address that nginx sees its client at.
pub fn nginx(place: &Place, port: u16, greeting: &str) -> Result<Nginx> {
    let dir = own_dir(place, "nginx")?;
    let (root, access_log) =
        (dir.join("www"), place.logs.join(format!("{}-nginx.access", place.name)));
    fs::create_dir_all(&root)?;
    let http = format!(
        "log_format client '$remote_addr:$remote_port \"$request\" $status';\n\
         access_log {} client;\n\
         server {{\n\
         listen {port} reuseport;\nlisten [::]:{port};\n\
         root {};\ndefault_type text/plain;\n\
         location = / {{ return 200 \"{greeting}, $remote_addr\\n\"; }}\n\
         }}\n",
        access_log.display(),
        root.display(),
    );
    let process = run_nginx(place, port, &dir, &http)?;
    Ok(Nginx { _process: process, access_log, root })
}

/// Starts an nginx that passes what it is asked at loopback on to servers, each in turn until one
/// can be reached. Its complaints go to standard error.
pub fn nginx_proxy(place: &Place, port: u16, servers: &[SocketAddr]) -> Result<Process> {
    let dir = own_dir(place, &format!("nginx-{port}"))?;
    let server = |server: &SocketAddr| format!("server {server} max_fails=0; ");
    let servers = servers.iter().map(server).collect::<Vec<_>>().concat();
    let http = format!(
        "access_log off;\nupstream all {{ {servers}}}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://all; }} }}\n"
    );
    run_nginx(place, port, &dir, &http)
}

fn run_nginx(place: &Place, port: u16, dir: &Path, http: &str) -> Result<Process> {
    let shown = dir.display();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {shown}/{kind};\n"))
        .concat();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {shown}/pid;\nerror_log stderr;\n\
         events {{ worker_connections 512; }}\nhttp {{\n{temp}{http}}}\n"
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config)?;
    let argv = ["nginx", "-p", &*shown.to_string(), "-c", &file.to_string_lossy(), "-e", "stderr"];
    let process = place.spawn(argv)?;
    wait_listening(place, port).context("nginx (package nginx-light)")?;
    Ok(process)
}

/// An `HAProxy`, and the socket at which it is asked.
#[derive(Debug)]
pub struct HaProxy {
    /// Its log is its standard output.
    pub process: Process,
    socket: PathBuf,
}

/// Starts an `HAProxy` that passes what it is asked at loopback on to servers by turns, and tries
/// each once. `options` are those of each server.
pub fn haproxy(
    place: &Place,
    port: u16,
    servers: &[(&str, SocketAddr)],
    options: &str,
) -> Result<HaProxy> {
    let dir = own_dir(place, &format!("haproxy-{port}"))?;
    let (file, socket) = (dir.join("haproxy.cfg"), dir.join("socket"));
    let server = |(name, at): &(&str, SocketAddr)| format!("server {name} {at} {options}\n");
    let servers = servers.iter().map(server).collect::<Vec<_>>().concat();
    let config = format!(
        "global\nstats socket {}\nlog stdout format raw local0\n\
         defaults\nmode http\nlog global\noption httplog\nretries 0\ntimeout connect 10s\n\
         timeout client 10s\ntimeout server 10s\n\
         frontend in\nbind 127.0.0.1:{port}\ndefault_backend all\n\
         backend all\nbalance roundrobin\n{servers}",
        socket.display(),
    );
    fs::write(&file, config)?;
    let process = place.spawn(["haproxy", "-db", "-f", &*file.to_string_lossy()])?;
    wait_listening(place, port).context("haproxy")?;
    Ok(HaProxy { process, socket })
}

impl HaProxy {
    /// The fields of a server's line in what it calls `show stat`.
    pub fn stat(&self, server: &str) -> Result<Vec<String>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.write_all(b"show stat\n")?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        let line = said.lines().find(|line| line.starts_with(&format!("all,{server},")));
        Ok(line.with_context(|| said.clone())?.split(',').map(str::to_owned).collect())
    }
}

impl Nginx {
    /// One line per request: the client's address and port, the request, the status.
    pub fn log(&self) -> Result<Vec<String>> {
        Ok(fs::read_to_string(&self.access_log)?.lines().map(str::to_owned).collect())
    }
}

/// Starts redis, in memory only.
pub fn redis(place: &Place, port: u16) -> Result<Process> {
    let dir = own_dir(place, "redis")?.to_string_lossy().into_owned();
    let port_text = port.to_string();
    let address = ["--bind", "0.0.0.0", "::", "--port", &port_text, "--protected-mode", "no"];
    let memory = ["--save", "", "--appendonly", "no", "--dir", &dir];
    let process = place.spawn(["redis-server"].into_iter().chain(address).chain(memory))?;
    wait_listening(place, port).context("redis (package redis-server)")?;
    Ok(process)
}

/// Starts nghttpd: HTTP/2 without TLS, serving what is in the directory that is returned.
pub fn nghttpd(place: &Place, port: u16) -> Result<(Process, PathBuf)> {
    let root = own_dir(place, "nghttpd")?;
    let arguments = ["nghttpd", "--no-tls", "-d", &*root.to_string_lossy(), &port.to_string()]
        .map(str::to_owned);
    let process = place.spawn(arguments)?;
    wait_listening(place, port).context("nghttpd (package nghttp2-server)")?;
    Ok((process, root))
}

fn wait_listening(place: &Place, port: u16) -> Result<()> {
    let what = format!("a listener on port {port} in {}", place.name);
    wait_until(SOON, &what, || {
        crate::netns::listeners(&place.netns)
            .is_ok_and(|all| all.iter().any(|address| address.port() == port))
    })
}

fn own_dir(place: &Place, program: &str) -> Result<PathBuf> {
    let dir =
        place.logs.parent().unwrap_or(Path::new("/")).join(format!("{}-{program}", place.name));
    fs::create_dir_all(&dir)?;
    Ok(dir)
}
