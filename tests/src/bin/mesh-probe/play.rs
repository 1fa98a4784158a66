//! Plays one side of a [`Script`], as [`Order`] and [`Ending`] describe it.

use std::{
    sync::mpsc::{self, Receiver},
    thread,
};

use anyhow::Result;
use tests::probe::{Conn, End, Ending, Order, Script};

use crate::wire::{Heard, Speech, Spoken, Wire};

/// The byte with which a side says that it has read all.
const ACK: u64 = 1;

/// Which side we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// Plays to the end, and reports.
pub(crate) fn play(wire: &Wire, role: Role, seed: u64) -> Result<Conn> {
    let script = Script::new(seed);
    let (bytes, theirs, first) = match role {
        Role::Client => (script.to_server, script.to_client, Order::ClientFirst),
        Role::Server => (script.to_client, script.to_server, Order::ServerFirst),
    };
    let my_turn_first = script.order == Order::Together || script.order == first;
    let i_reset = match script.ending {
        Ending::Fins => None,
        Ending::ClientResets => Some(role == Role::Client),
        Ending::ServerResets => Some(role == Role::Server),
    };
    // What the two sides send must differ, else an echo would pass.
    let speech = Speech { text: "", bytes, seed: seed ^ role as u64, fin: i_reset.is_none() };
    let (all_read, is_all_read) = mpsc::channel();
    let (spoken, mut heard) = thread::scope(|scope| {
        let writer = scope.spawn(move || say(wire, &speech, my_turn_first, i_reset, &is_all_read));
        let mut heard = Heard::default();
        wire.hear(&mut heard, i_reset.map(|_| theirs));
        // The writer may have failed: then reading tells why.
        let _told = all_read.send(());
        match i_reset {
            Some(true) => wire.hear(&mut heard, Some(theirs + ACK)),
            Some(false) => wire.hear(&mut heard, None),
            None => (),
        }
        (writer.join().unwrap_or_default(), heard)
    });
    if i_reset == Some(true) && heard.end.is_none() {
        wire.reset_on_close()?;
        heard.end = Some(End::SentReset);
    }
    // Noise is of no interest to people.
    heard.first.clear();
    let report = wire.report(None, &spoken, heard);
    Ok(Conn { seed, ..report })
}

/// Speaks when it is our turn; if the other side is to reset, says then that all is read.
fn say(
    wire: &Wire,
    speech: &Speech<'_>,
    at_once: bool,
    i_reset: Option<bool>,
    all_read: &Receiver<()>,
) -> Spoken {
    // An error of `recv` means that reading has failed; the report of reading says why.
    if !at_once {
        let _failed = all_read.recv();
    }
    let mut spoken = wire.speak(speech);
    if i_reset == Some(false) {
        if at_once {
            let _failed = all_read.recv();
        }
        let ack = wire.speak(&Speech { text: "A", ..Speech::default() });
        spoken.digest.update(b"A");
        spoken.error = spoken.error.or(ack.error);
    }
    spoken
}
