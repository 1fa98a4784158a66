//! docs/behaviour.md, observed: what real programs report when a connection fails, without the mesh
//! and with it. Each row of the document's tables is compared with what the programs say here;
//! `NODEMESH_WRITE_DOCS=1` writes the rows instead.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr},
    ops::Range,
    path::PathBuf,
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tests::{
    Net, Pair, PodSpec, eventually,
    exec::Place,
    objects::MODE,
    probe::{self, ServeSpec, Server, Talk},
    programs, scenario,
};

use crate::clients;

/// Programs, in the order of the rows.
const PROGRAMS: [Program; 10] = [
    Program::Curl,
    Program::Wget,
    Program::Psql,
    Program::RedisCli,
    Program::Amqp,
    Program::Java,
    Program::Jdbc,
    Program::Go,
    Program::Nginx,
    Program::HaProxy,
];

/// Ports from here on: one for each program, and new ones for each try.
const PORTS: u16 = 7000;

/// What is added to the port of a server for that of the proxy before it.
const PROXIES: u16 = 10_000;

/// How long a proxy may take to log what its client has seen.
const SOON: Duration = Duration::from_secs(10);

/// How often a pair of dials is repeated before its answer counts as another one. On a machine that
/// stands still, the second dial may come more than a second after the first.
const TRIES: u16 = 5;

/// Stands between the answers of a cell.
const OR: &str = " *or* ";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Curl,
    Wget,
    Psql,
    RedisCli,
    Amqp,
    Java,
    Jdbc,
    Go,
    Nginx,
    HaProxy,
}

/// The clients that have been compiled: a class path, and a program.
struct Compiled {
    java: String,
    go: String,
}

/// The sections of the document with a table each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    NothingListens,
    NoWay,
    NoAnswer,
    Reset,
    Strict,
    PeersAgentAway,
    OwnAgentAway,
}

impl Section {
    fn heading(self) -> &'static str {
        match self {
            Self::NothingListens => "## Nothing listens",
            Self::NoWay => "## No way to the host",
            Self::NoAnswer => "## No answer from the host",
            Self::Reset => "## Reset in mid-stream",
            Self::Strict => "## A stranger at a strict pod",
            Self::PeersAgentAway => "## The agent of the destination's node is away",
            Self::OwnAgentAway => "## The agent of the client's node is away",
        }
    }
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Curl => "curl",
            Self::Wget => "wget",
            Self::Psql => "psql",
            Self::RedisCli => "redis-cli",
            Self::Amqp => "py-amqp",
            Self::Java => "Java",
            Self::Jdbc => "JDBC",
            Self::Go => "Go",
            Self::Nginx => "nginx",
            Self::HaProxy => "HAProxy",
        }
    }

    /// Runs it as often as there are cells, one right after the other, and returns what it said.
    fn run(
        self,
        from: &Place,
        to: SocketAddr,
        cells: usize,
        compiled: &Compiled,
    ) -> Result<Vec<String>> {
        let (host, port) = (to.ip().to_string(), to.port().to_string());
        let (host, port, address) = (&*host, &*port, &*to.to_string());
        let url = format!("http://{address}/");
        let database = format!("host={host} port={port} user=u dbname=d sslmode=disable");
        let amqp = "import amqp, sys; amqp.Connection(sys.argv[1]).connect()";
        let java = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", &compiled.java];
        let argv: Vec<&str> = match self {
            Self::Curl => vec!["curl", "-sS", "-o", "/dev/null", &url],
            Self::Wget => vec!["wget", "-O", "/dev/null", "--tries=1", &url],
            Self::Psql => vec!["psql", "-X", "-w", "-c", "select 1", &database],
            Self::RedisCli => vec!["redis-cli", "-h", host, "-p", port, "ping"],
            // Not another Python that comes first on PATH: this one has the package.
            Self::Amqp => vec!["/usr/bin/python3", "-c", amqp, address],
            Self::Java => [&java[..], &["Client", host, port]].concat(),
            Self::Jdbc => [&java[..], &["Jdbc", address]].concat(),
            Self::Go => vec![&compiled.go, host, port],
            Self::Nginx | Self::HaProxy => return self.run_proxy(from, to, cells),
        };
        let plain = |text: &str| plain(text, to);
        if let Self::Java | Self::Jdbc | Self::Go = self {
            // One process dials twice: a virtual machine takes its time to start.
            let output = from.run(argv)?;
            let said: Vec<String> = output.stdout.lines().take(cells).map(plain).collect();
            ensure!(said.len() == cells, "{output}");
            return Ok(said);
        }
        let once = |_| -> Result<String> {
            let output = from.run(&argv)?;
            let code = output.status.code().with_context(|| output.to_string())?;
            let line = self.point(&output.stderr);
            let line = line.with_context(|| output.to_string())?;
            Ok(format!("{code}: {}", plain(line)))
        };
        (0..cells).map(once).collect()
    }

    /// Lets a proxy dial. Returns the status that its client gets, and what its log says.
    fn run_proxy(self, from: &Place, to: SocketAddr, cells: usize) -> Result<Vec<String>> {
        let port = to.port() + PROXIES;
        let proxy = match self {
            Self::Nginx => programs::nginx_proxy(from, port, &[to])?,
            _ => programs::haproxy(from, port, &[("server", to)], "")?.process,
        };
        let url = format!("http://127.0.0.1:{port}/");
        let curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", &url];
        let once = |number: usize| {
            let status = from.run(curl)?.stdout;
            eventually(SOON, || {
                let (log, complaints) = (proxy.stdout(), proxy.stderr());
                let logged = if self == Self::Nginx { &complaints } else { &log };
                let mut told = logged.lines().filter_map(|line| self.logged(line));
                let told = told.nth(number).with_context(|| format!("not in its log: {logged}"))?;
                Ok(format!("{status}: {}", plain(told, to)))
            })
        };
        (0..cells).map(once).collect()
    }

    /// What a line of a proxy's log says of a connection to its server.
    fn logged(self, line: &str) -> Option<&str> {
        if self == Self::Nginx {
            // `… *1 connect() failed (…) while connecting to upstream, client: …`
            let (begin, _) = line.split_once(", client: ")?;
            Some(begin.split_once(" *")?.1.split_once(' ')?.1)
        } else {
            // `… 0/0/-1/-1/0 503 217 - - SC-- 1/1/0/0/0 …`
            line.split_once(" - - ")?.1.split(' ').next()
        }
    }

    /// The part of its complaint that says what is wrong.
    fn point(self, complaint: &str) -> Option<&str> {
        const WGETS: [&str; 4] = ["failed: ", "Failed writing", "Read error", "No data received"];
        match self {
            // Wget puts the time and the speed before these words.
            Self::Wget => WGETS.iter().find_map(|begin| {
                complaint.find(begin).and_then(|at| complaint[at..].lines().next())
            }),
            // Later lines are about possible causes.
            Self::Psql => complaint.lines().next(),
            _ => complaint.lines().rfind(|line| !line.is_empty()),
        }
    }

    /// What an application says before it resets.
    fn half_an_answer(self) -> &'static str {
        match self {
            Self::Curl | Self::Wget | Self::Nginx | Self::HaProxy => {
                "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"
            }
            Self::Psql | Self::Jdbc => "R",
            Self::RedisCli => "+PO",
            Self::Amqp => "\u{1}\u{1}",
            Self::Java | Self::Go => "half",
        }
    }
}

/// Without the address, the milliseconds that curl counts, and what would end a cell.
fn plain(text: &str, to: SocketAddr) -> String {
    let text = text.replace(&to.ip().to_string(), "HOST");
    let text = text.replace(&to.port().to_string(), "PORT");
    let words: Vec<&str> = text.split(' ').collect();
    let number = |at: usize| {
        let counted = words.get(at + 1).is_some_and(|next| next.starts_with("ms"));
        if counted { "N" } else { words[at] }
    };
    (0..words.len()).map(number).collect::<Vec<_>>().join(" ").replace('|', "/")
}

/// Whether each cell has what was said. A cell has both answers where it depends on which side is
/// faster. A program may also have other words for a reset that it notices while it writes.
fn is_told(told: &[String], said: &[String]) -> bool {
    told.iter().zip(said).all(|(told, said)| {
        told.split(OR).any(|told| told == said || (is_reset(told) && is_reset(said)))
    })
}

/// Whether a program says that a connection, which stood, was reset.
fn is_reset(said: &str) -> bool {
    const WORDS: [&str; 4] = [
        "Connection reset",
        "Broken pipe",
        "server closed the connection unexpectedly", // psql
        "could not send startup packet",             // psql
    ];
    WORDS.iter().any(|words| said.contains(words)) && !said.contains("at byte")
}

/// The document, and what was observed so far.
struct Doc {
    file: PathBuf,
    text: String,
    write: bool,
    wrong: Vec<String>,
    compiled: Compiled,
    observed: u16,
}

impl Doc {
    fn open(net: &Net) -> Result<Self> {
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let file = here.join("../docs/behaviour.md");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let dir = net.tag().dir();
        let compiled = Compiled { java: clients::java(&dir)?, go: clients::go(&dir)? };
        let write = env::var_os("NODEMESH_WRITE_DOCS").is_some();
        Ok(Self { file, text, write, wrong: Vec::new(), compiled, observed: 0 })
    }

    /// The cells of a program's row in a section.
    fn row(&self, section: Section, program: Program) -> Result<Vec<String>> {
        let line = self.line(section, program)?;
        Ok(line.trim_matches('|').split('|').skip(1).map(|cell| cell.trim().to_owned()).collect())
    }

    fn line(&self, section: Section, program: Program) -> Result<&str> {
        let heading = section.heading();
        let (_, rest) = self.text.split_once(&format!("{heading}\n")).context(heading)?;
        let begin = format!("| {} |", program.name());
        let own = rest.lines().take_while(|line| !line.starts_with("## "));
        let row = own.into_iter().find(|line| line.starts_with(&begin));
        row.with_context(|| format!("no row of {} under {heading}", program.name()))
    }

    /// Lets all programs dial, and compares what they say with these cells of the section's rows.
    fn observe(
        &mut self,
        section: Section,
        cells: Range<usize>,
        from: &Place,
        host: Ipv4Addr,
        prepare: impl Fn(Program, u16) -> Result<Option<Server>> + Sync,
    ) -> Result<()> {
        self.observed += 1;
        let base = PORTS + self.observed * 100;
        let (doc, prepare, cells) = (&*self, &prepare, &cells);
        let observed: Vec<Result<Option<Vec<String>>>> = thread::scope(|scope| {
            let programs = PROGRAMS.into_iter().zip(0..).map(|(program, number)| {
                scope.spawn(move || -> Result<Option<Vec<String>>> {
                    let row = doc.row(section, program)?;
                    let told = row.get(cells.clone()).context("too few cells")?;
                    let mut said = None;
                    for again in 0..TRIES {
                        let port = base + number * 10 + again;
                        let _server = prepare(program, port)?;
                        let to = SocketAddr::from((host, port));
                        let new = program.run(from, to, cells.len(), &doc.compiled)?;
                        if is_told(told, &new) {
                            return Ok(None);
                        }
                        said.get_or_insert(new);
                    }
                    Ok(said)
                })
            });
            let programs: Vec<_> = programs.collect();
            let joined = |program: ScopedJoinHandle<'_, _>| {
                program.join().unwrap_or_else(|_| bail!("it panicked"))
            };
            programs.into_iter().map(joined).collect()
        });
        for (program, said) in PROGRAMS.into_iter().zip(observed) {
            let said = said.with_context(|| format!("{program:?}, {section:?}"))?;
            let Some(said) = said else { continue };
            let old = self.line(section, program)?.to_owned();
            let mut row = self.row(section, program)?;
            let told = &mut row[cells.clone()];
            let wrong = format!(
                "{} · {}: {told:?}, but it said {said:?}",
                section.heading(),
                program.name()
            );
            self.wrong.push(wrong);
            told.clone_from_slice(&said);
            let new = format!("| {} | {} |", program.name(), row.join(" | "));
            let (before, rest) = self.text.split_once(section.heading()).context("no heading")?;
            self.text = format!("{before}{}{}", section.heading(), rest.replacen(&old, &new, 1));
        }
        Ok(())
    }

    fn close(self) -> Result<()> {
        if self.write {
            fs::write(&self.file, &self.text)?;
            return Ok(());
        }
        ensure!(
            self.wrong.is_empty(),
            "docs/behaviour.md is not what happens (NODEMESH_WRITE_DOCS=1 writes it):\n{}",
            self.wrong.join("\n")
        );
        Ok(())
    }
}

/// A shell command at a place.
fn sh(place: &Place, command: &str) -> Result<()> {
    place.run(["sh", "-c", command])?.success().map(drop)
}

/// The failures that are to be the same without the mesh and with it.
fn failures_of_the_network(doc: &mut Doc, pair: &Pair<'_>, cells: &Range<usize>) -> Result<()> {
    let host = pair.server.v4;
    let (client, server, router): (&Place, &Place, &Place) =
        (&pair.client, &pair.server, &pair.nodes[1]);
    doc.observe(Section::NothingListens, cells.clone(), client, host, |_, _| Ok(None))?;
    // In the pod's own table, since a router says "unreachable" five times and then once a second.
    for (section, at, what) in
        [(Section::NoWay, client, "unreachable"), (Section::NoAnswer, router, "blackhole")]
    {
        sh(at, &format!("ip route add {what} {host}/32"))?;
        doc.observe(section, cells.clone(), client, host, |_, _| Ok(None))?;
        sh(at, &format!("ip route del {what} {host}/32"))?;
    }
    doc.observe(Section::Reset, cells.clone(), client, host, |program, port| {
        let banner = program.half_an_answer().to_owned();
        let spec = ServeSpec { banner, ..ServeSpec::new(port, Talk::Reset) };
        probe::serve(server, &spec).map(Some)
    })
}

#[test]
fn the_document_says_what_programs_report() {
    /// Cells of a row: one dial without the mesh, and two with it.
    const WITHOUT: Range<usize> = 0..1;
    const WITH: Range<usize> = 1..3;
    scenario("behaviour-doc", |net| {
        let mut doc = Doc::open(net)?;
        let pair = Pair::new(net)?;
        let stranger = net.pod(&pair.nodes[0], PodSpec::new("other", "stranger"))?;
        // One SYN is repeated, so that a dial gives up after 3 s and not after two minutes.
        sh(&pair.client, "echo 1 > /proc/sys/net/ipv4/tcp_syn_retries")?;
        failures_of_the_network(&mut doc, &pair, &WITHOUT)?;
        net.objects().annotate_pod(&pair.server, MODE, Some("strict"))?;
        pair.join()?;
        failures_of_the_network(&mut doc, &pair, &WITH)?;
        let (host, server): (_, &Place) = (pair.server.v4, &pair.server);
        doc.observe(Section::Strict, 0..2, &stranger, host, |_, port| {
            probe::serve(server, &ServeSpec::new(port, Talk::Exchange)).map(Some)
        })?;
        pair.agents[1].kill9()?;
        doc.observe(Section::PeersAgentAway, 0..2, &pair.client, host, |_, _| Ok(None))?;
        pair.agents[1].start_again()?;
        pair.agents[0].kill9()?;
        doc.observe(Section::OwnAgentAway, 0..2, &pair.client, host, |_, _| Ok(None))?;
        doc.close()
    });
}
