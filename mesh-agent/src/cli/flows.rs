//! `mesh-agent flows`.

use std::{net::SocketAddr, time::Duration};

use anyhow::bail;
use clap::Args;
use jiff::tz::TimeZone;
use mesh_api::{Direction, FlowRecord, Party, Reason, Request, Response, Security, WirePort};
use mesh_wire::identity::SpiffeId;

use super::{
    Asked, Output, print_line,
    reader::{Reader, Waited, output_takes},
    table,
};
use crate::admin::Answers;

/// How long flows are followed if nothing would show that the reader has gone.
const FOLLOWED_UNSEEN: Duration = Duration::from_hours(1);

/// Show the connections that the agent carried or the kernel refused, oldest first.
#[derive(Debug, Args)]
pub(super) struct Flows {
    #[command(flatten)]
    asked: Asked,
    /// Then print each further connection as it ends
    #[arg(short, long)]
    follow: bool,
    /// End after so many seconds. The default is to go on while the output is read, or for an hour
    /// where that cannot be known (`kubectl exec` without -i)
    #[arg(long, requires = "follow", value_name = "SECONDS")]
    for_seconds: Option<u64>,
    /// How to print
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: Output,
}

impl Flows {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let request = Request::Flows { follow: self.follow };
        // First: if the reader left before this, nothing would show that any more.
        let limit = self.for_seconds.map(Duration::from_secs);
        let reader = Reader::new(limit, FOLLOWED_UNSEEN)?;
        let answers = Answers::to(&request, &self.asked.runtime_dir)?;
        if self.follow { self.follow(answers, &reader) } else { self.list(answers) }
    }

    fn list(self, mut answers: Answers) -> anyhow::Result<()> {
        let mut records = Vec::new();
        while let Some(answer) = answers.receive()? {
            match answer {
                Response::Flow(record) if self.output == Output::Json => json(&record)?,
                Response::Flow(record) => records.push(*record),
                _ => {}
            }
        }
        if self.output == Output::Table {
            if records.is_empty() {
                eprintln!("No connection has reached the agent yet.");
                return Ok(());
            }
            let heading = [
                "TIME",
                "DIRECTION",
                "FROM",
                "TO",
                "SERVICE",
                "IDENTITIES",
                "SECURITY",
                "OUTCOME",
                "SENT",
                "RECEIVED",
                "DURATION",
            ];
            print_line(&table::table(heading, records.iter().map(row)))?;
        }
        Ok(())
    }

    /// Prints until the agent ends, no process reads the output, or the time limit is over.
    fn follow(self, mut answers: Answers, reader: &Reader) -> anyhow::Result<()> {
        loop {
            if !answers.has_one() {
                match reader.wait_for(&answers)? {
                    Waited::Ready => {}
                    Waited::Alone => return Ok(()),
                    Waited::Over => {
                        eprintln!("{}", self.why_over());
                        return Ok(());
                    }
                }
            }
            let Some(answer) = answers.receive()? else { return Ok(()) };
            if !output_takes()? {
                bail!("nothing has read standard output for a while");
            }
            match answer {
                Response::Flow(record) if self.output == Output::Json => json(&record)?,
                Response::Flow(record) => line(&record)?,
                Response::Lost(lost) => {
                    eprintln!("{lost} records were lost: this reader was too slow");
                }
                _ => {}
            }
        }
    }

    fn why_over(&self) -> String {
        match self.for_seconds {
            Some(seconds) => format!("Followed for {seconds} s."),
            None => "Followed for an hour, because this command cannot know whether its output is still read. With `kubectl exec -i` it can; --for-seconds sets another limit.".to_owned(),
        }
    }
}

fn json(record: &FlowRecord) -> anyhow::Result<()> {
    print_line(&serde_json::to_string(record)?)
}

fn line(record: &FlowRecord) -> anyhow::Result<()> {
    let [time, direction, from, to, service, identities, security, outcome, sent, received, took] =
        row(record);
    let service = if service == "-" { String::new() } else { format!(" (service {service})") };
    let identities = if identities == "-" { String::new() } else { format!(" {identities}") };
    print_line(&format!(
        "{time} {direction:8} {from} → {to}{service}  {security}{identities}  {outcome}  {sent} / {received}  {took}"
    ))?;
    if ![Reason::Closed.code(), FlowRecord::OPEN].contains(&&*record.outcome) {
        print_line(&format!("    {}", record.reason))?;
    }
    Ok(())
}

fn row(record: &FlowRecord) -> [String; 11] {
    let direction = match record.direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    };
    let security = match &record.security {
        Security::Mtls(facts) => match facts.wire_port {
            WirePort::Application => "mtls".to_owned(),
            WirePort::Agents => "mtls (agents_port)".to_owned(),
        },
        Security::Plaintext { why } => format!("plaintext ({why})"),
        Security::Local => "same node, local".to_owned(),
        Security::None => "-".to_owned(),
    };
    [
        record.opened.to_zoned(TimeZone::system()).strftime("%H:%M:%S%.3f").to_string(),
        direction.to_owned(),
        party(&record.client),
        party(&record.server),
        record.service.clone().unwrap_or_else(|| "-".to_owned()),
        identities(&record.client, &record.server),
        security,
        outcome(record),
        table::bytes(record.bytes.sent),
        table::bytes(record.bytes.received),
        record.duration_us.map_or_else(|| "-".to_owned(), table::duration),
    ]
}

fn outcome(record: &FlowRecord) -> String {
    match record.alike {
        0 => record.outcome.clone(),
        alike => format!("{} (+{alike})", record.outcome),
    }
}

fn party(party: &Party) -> String {
    match (&party.pod, party.address) {
        (Some(pod), _) => format!("{pod}:{}", party.port),
        (None, address) => SocketAddr::new(address, party.port).to_string(),
    }
}

/// The proved identities of client and server, as `namespace/service-account`. The whole SPIFFE ids
/// are in `-o json`.
fn identities(client: &Party, server: &Party) -> String {
    let short = |party: &Party| {
        let id: SpiffeId = party.identity.as_deref()?.parse().ok()?;
        Some(format!("{}/{}", id.namespace(), id.service_account()))
    };
    match (short(client), short(server)) {
        (Some(client), Some(server)) => format!("{client} → {server}"),
        _ => "-".to_owned(),
    }
}
