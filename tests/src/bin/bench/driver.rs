//! The programs inside the pods, as this program drives them: one line in, one line out.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tests::exec::Place;

use crate::{
    server::{Listen, READY},
    slice::{Answer, Order, Request, Slice},
};

/// How much longer than ordered a slice may take before it counts as hung.
const SLACK: Duration = Duration::from_secs(10);

/// This program once more, inside a pod; ended when dropped.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    name: String,
}

impl Program {
    /// A server on these ports, listening.
    pub(crate) fn server(place: &Place, listen: &[Listen]) -> Result<Self> {
        let words = listen.iter().map(|how| how.to_string().into());
        let program = Self::start(place, "load-server", words)?;
        let said = program.line(SLACK)?;
        ensure!(said == READY, "{} said {said:?}", program.name);
        Ok(program)
    }

    /// A client that waits for orders.
    pub(crate) fn client(place: &Place) -> Result<Self> {
        Self::start(place, "load-client", [].into_iter())
    }

    fn start(place: &Place, role: &str, args: impl Iterator<Item = OsString>) -> Result<Self> {
        let name = format!("{} in {}", role, place.name);
        let errors = place.logs.join(format!("{}-{role}.err", place.name));
        let words = [env::current_exe()?.into_os_string(), role.into()].into_iter().chain(args);
        let mut child = place
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&errors)?)
            .spawn()
            .context("starting mesh-probe (cargo build --release)")?;
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).context("no pipes")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.all(|line| sender.send(line).is_ok())
        });
        Ok(Self { child, stdin, lines, name })
    }

    /// Has a client do a slice.
    pub(crate) fn slice(&mut self, to: SocketAddr, order: Order) -> Result<Slice> {
        let mut line = serde_json::to_string(&Request { to, order })?;
        line.push('\n');
        let sent = self.stdin.write_all(line.as_bytes());
        sent.with_context(|| format!("{} takes no orders", self.name))?;
        let answer = self.line(order.time() + SLACK)?;
        match serde_json::from_str(&answer)? {
            Answer::Done(slice) => Ok(slice),
            Answer::Failed(error) => bail!("{}: {error}", self.name),
        }
    }

    fn line(&self, limit: Duration) -> Result<String> {
        self.lines.recv_timeout(limit).map_err(|e| match e {
            RecvTimeoutError::Timeout => anyhow!("{} has said nothing for {limit:?}", self.name),
            RecvTimeoutError::Disconnected => anyhow!("{} has ended", self.name),
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails only if it has ended already, and that is what is wanted.
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}
