//! Requests and answers, a line each: what must not be lost while pods join and leave the mesh.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::TcpStream,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tests::probe::{DialSpec, Event, Load, Took};

use crate::{
    dial::connect,
    emit,
    wire::{Wire, micros},
};

const REQUEST: &str = "req ";
const ANSWER: &str = "ok ";

/// How many failures are told in words.
const FAILURES: usize = 20;

/// How often a client under load says how far it is.
const PROGRESS: Duration = Duration::from_millis(50);

/// The server's side of a connection.
pub(crate) fn answer(wire: &Wire) -> Result<()> {
    let mut reader = BufReader::new(&wire.stream);
    loop {
        let begin = reader.fill_buf()?;
        if begin.is_empty() {
            return Ok(());
        }
        let compared = begin.len().min(REQUEST.len());
        if begin[..compared] != REQUEST.as_bytes()[..compared] {
            let what = begin[..begin.len().min(64)].escape_ascii().to_string();
            return emit(&Event::Garbage(what));
        }
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some(rest) = line.strip_prefix(REQUEST).filter(|rest| rest.ends_with('\n')) else {
            return emit(&Event::Garbage(line));
        };
        (&wire.stream).write_all(format!("{ANSWER}{rest}").as_bytes())?;
    }
}

/// Asks until standard input ends.
pub(crate) fn ask(spec: &DialSpec) -> Result<()> {
    let (stop, load) = (AtomicBool::new(false), Mutex::new(Load::default()));
    let took = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for number in 0..spec.workers {
            let (stop, load, took) = (&stop, &load, &took);
            scope.spawn(move || Worker { spec, number, load, took }.run(stop));
        }
        scope.spawn(|| {
            // Whatever ends standard input ends the load.
            let _bytes = io::copy(&mut io::stdin(), &mut io::sink());
            stop.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) {
            emit(&Event::Progress(snapshot(&load)?))?;
            thread::sleep(PROGRESS);
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let took = Took::of(took.into_inner().ok().context("a worker has panicked")?);
    emit(&Event::Load(Load { took, ..snapshot(&load)? }))
}

fn snapshot(load: &Mutex<Load>) -> Result<Load> {
    Ok(load.lock().ok().context("a worker has panicked")?.clone())
}

struct Worker<'a> {
    spec: &'a DialSpec,
    number: u64,
    load: &'a Mutex<Load>,
    /// Microseconds of each request.
    took: &'a Mutex<Vec<u64>>,
}

impl Worker<'_> {
    fn run(&self, stop: &AtomicBool) {
        let mut kept = None;
        let mut number = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let begun = Instant::now();
            let asked = self.request(&mut kept, number);
            if let Ok(mut took) = self.took.lock() {
                took.push(micros(begun.elapsed()));
            }
            if asked.is_err() {
                kept = None;
            }
            if let Ok(mut load) = self.load.lock() {
                match asked {
                    Ok(()) => load.ok += 1,
                    Err(e) => {
                        load.failed += 1;
                        if load.failures.len() < FAILURES {
                            load.failures
                                .push(format!("worker {} request {number}: {e:#}", self.number));
                        }
                    }
                }
            }
            thread::sleep(Duration::from_millis(self.spec.pause_ms));
        }
    }

    fn request(&self, kept: &mut Option<BufReader<TcpStream>>, number: u64) -> Result<()> {
        let mut reader = match kept.take() {
            Some(reader) => reader,
            None => self.connect()?,
        };
        let text = format!("{} {number} {}\n", self.number, self.spec.marker);
        reader.get_mut().write_all(format!("{REQUEST}{text}").as_bytes()).context("asking")?;
        let mut line = String::new();
        reader.read_line(&mut line).context("reading the answer")?;
        let right = line.strip_prefix(ANSWER) == Some(&text);
        right.then_some(()).with_context(|| format!("answered {line:?}"))?;
        if self.spec.keep_alive {
            *kept = Some(reader);
            return Ok(());
        }
        reader.get_mut().shutdown(std::net::Shutdown::Write).context("ending")?;
        let rest = reader.read_line(&mut line).context("reading the end")?;
        (rest == 0).then_some(()).with_context(|| format!("after the answer: {line:?}"))
    }

    fn connect(&self) -> Result<BufReader<TcpStream>> {
        let stream = connect(self.spec).context("connecting")?;
        let timeout = Some(Duration::from_secs(self.spec.timeout_s));
        stream.set_read_timeout(timeout)?;
        stream.set_write_timeout(timeout)?;
        if let Ok(mut load) = self.load.lock() {
            load.connections += 1;
        }
        Ok(BufReader::new(stream))
    }
}
