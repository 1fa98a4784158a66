//! `mesh-agent flows`.

use std::net::SocketAddr;

use clap::Args;
use jiff::tz::TimeZone;

use super::{Asked, Output, print_line, table};
use crate::{
    admin::{Request, Response, ask},
    flows::{Direction, FlowRecord, Party, Security},
    identity::SpiffeId,
};

/// Show the connections that the agent carried or the kernel refused, oldest first.
#[derive(Debug, Args)]
pub(super) struct Flows {
    #[command(flatten)]
    asked: Asked,
    /// Go on with each connection as it ends
    #[arg(short, long)]
    follow: bool,
    /// How to print
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: Output,
}

impl Flows {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let request = Request::Flows { follow: self.follow };
        let mut records = Vec::new();
        let mut printed = Ok(());
        ask(&self.asked.runtime_dir, &request, |response| {
            printed = match response {
                Response::Flow(record) if self.output == Output::Json => json(&record),
                Response::Flow(record) if self.follow => line(&record),
                Response::Flow(record) => {
                    records.push(*record);
                    Ok(())
                }
                Response::Lost(lost) => {
                    eprintln!("{lost} records were lost: this reader was too slow");
                    Ok(())
                }
                _ => Ok(()),
            };
            printed.is_ok()
        })?;
        printed?;
        if self.output == Output::Table && !self.follow {
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
    if !matches!(record.outcome.as_str(), "closed" | "open") {
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
        Security::Mtls(_) => "mtls".to_owned(),
        Security::Plaintext { why } => format!("plaintext ({why})"),
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

/// Who proved to be whom, as `namespace/service-account`; the whole SPIFFE ids are in `-o json`.
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
