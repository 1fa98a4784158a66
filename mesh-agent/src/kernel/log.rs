//! The lines that the programs write (aya-log), in the log of the agent: at most one of a kind a
//! second.

use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

use super::programs::KernelError;
use crate::sys;

/// The reading end of the programs' lines.
pub struct ProgramLog(EbpfLogger<Lines>);

impl ProgramLog {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let logger = EbpfLogger::init_with_logger(ebpf, Lines);
        logger.map(Self).map_err(|_no_ring| KernelError::Missing("AYA_LOGS".to_owned()))
    }

    /// Passes lines on until dropped.
    ///
    /// # Errors
    /// The ring could not be polled.
    ///
    /// # Cancel safety
    /// Nothing is lost: a line is taken from the ring only to be logged.
    pub async fn run(self) -> io::Result<()> {
        let mut logger = sys::bpf::watch_log(self.0)?;
        loop {
            let mut ready = logger.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}

/// Makes a warning of each line: the programs report only failures.
struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        tracing::warn!(program = record.target(), "{}", record.args());
    }

    fn flush(&self) {}
}
