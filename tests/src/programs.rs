//! Real programs, configured to run in a pod and nowhere else: nothing below `/etc` or `/var` is
//! read or written.

use std::{
    fs,
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
    let shown = dir.display();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {shown}/{kind};\n"))
        .concat();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {shown}/pid;\nerror_log stderr;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n\
         log_format client '$remote_addr:$remote_port \"$request\" $status';\n\
         access_log {} client;\n{temp}\
         server {{\n\
         listen {port} reuseport;\nlisten [::]:{port};\n\
         root {};\ndefault_type text/plain;\n\
         location = / {{ return 200 \"{greeting}, $remote_addr\\n\"; }}\n\
         }}\n}}\n",
        access_log.display(),
        root.display(),
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config)?;
    let shown = shown.to_string();
    let process =
        place.spawn(["nginx", "-p", &shown, "-c", &file.to_string_lossy(), "-e", "stderr"])?;
    let nginx = Nginx { _process: process, access_log, root };
    wait_listening(place, port).context("nginx (package nginx-light)")?;
    Ok(nginx)
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
