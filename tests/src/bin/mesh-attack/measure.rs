//! What another pod feels: requests one after the other, timed.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tests::attack::{MeasureSpec, Times};

/// Longer counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn run(spec: &MeasureSpec) -> Result<()> {
    let (mut kept, mut took, mut failed) = (None, Vec::new(), 0);
    for _ in 0..spec.count {
        let begun = Instant::now();
        match ask(spec, kept.take()) {
            Ok(stream) => {
                took.push(begun.elapsed());
                kept = spec.keep_alive.then_some(stream);
            }
            Err(_) => failed += 1,
        }
    }
    took.sort_unstable();
    let at = |percent: usize| {
        let index = (took.len() * percent / 100).min(took.len().saturating_sub(1));
        let time = took.get(index).copied().unwrap_or_default();
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
    };
    let times = Times { ok: took.len() as u64, failed, p50_us: at(50), p99_us: at(99) };
    println!("{}", serde_json::to_string(&times)?);
    Ok(())
}

fn ask(spec: &MeasureSpec, kept: Option<BufReader<TcpStream>>) -> Result<BufReader<TcpStream>> {
    let mut reader = if let Some(reader) = kept {
        reader
    } else {
        let stream = TcpStream::connect_timeout(&spec.to, PATIENCE).context("connecting")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        BufReader::new(stream)
    };
    reader.get_mut().write_all(b"req measured\n").context("asking")?;
    let mut line = String::new();
    reader.read_line(&mut line).context("reading")?;
    ensure!(line == "ok measured\n", "{line:?}");
    Ok(reader)
}
