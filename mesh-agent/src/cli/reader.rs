//! Whether the output of a command that runs until it is interrupted still has a reader.
//!
//! A killed `kubectl exec` leaves the process in the container. Its standard output still seems to
//! be read, since the runtime holds the pipe. What closes is standard input, if there was one
//! (`kubectl exec -i`). Without it nothing shows the end, so that such a command ends by itself
//! after a while.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// How long standard output may take nothing; after that the command has no reader.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one call of poll lasts at most.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// Any of these on a descriptor means that its other side is gone.
const GONE: PollFlags = PollFlags::POLLHUP.union(PollFlags::POLLERR).union(PollFlags::POLLNVAL);

/// The process that reads the output.
pub(super) struct Reader {
    /// Whether standard input has another side, whose end is the reader's.
    has_input: bool,
    until: Option<Instant>,
    alone_since: RefCell<Option<Instant>>,
}

/// Why waiting has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// There is something to read.
    Ready,
    /// No process reads any more.
    Alone,
    /// The time limit is over.
    Over,
}

impl Reader {
    /// A reader of this process's output, for `limit` at most. Without a limit it lasts as long as
    /// standard input has another side; without that, for `fallback`.
    pub(super) fn new(limit: Option<Duration>, fallback: Duration) -> io::Result<Self> {
        let stdin = io::stdin();
        // An input that has ended already, such as `< /dev/null` in a pipe, shows no reader.
        let is_there = !is_gone(
            flags(&mut [PollFd::new(stdin.as_fd(), PollFlags::empty())], Duration::ZERO)?.first(),
        );
        let has_input = is_there && is_pipe(stdin.as_fd());
        let limit = limit.or((!has_input).then_some(fallback));
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        Ok(Self { has_input, until, alone_since: RefCell::default() })
    }

    /// Waits until `answers` can be read, the reader is gone, or the time is over.
    pub(super) fn wait_for(&self, answers: &impl AsFd) -> io::Result<Waited> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        loop {
            let left = match self.until.map(|until| until.saturating_duration_since(Instant::now()))
            {
                Some(Duration::ZERO) => return Ok(Waited::Over),
                left => left.unwrap_or(LOOK_EVERY).min(LOOK_EVERY),
            };
            let mut watched = vec![
                PollFd::new(answers.as_fd(), PollFlags::POLLIN),
                PollFd::new(stdout.as_fd(), PollFlags::empty()),
            ];
            if self.has_input {
                watched.push(PollFd::new(stdin.as_fd(), PollFlags::empty()));
            }
            let found = flags(&mut watched, left)?;
            let is_ready = found.first().is_some_and(|flags| !flags.is_empty());
            let is_alone = found.iter().skip(1).any(|flags| is_gone(Some(flags)));
            if is_alone {
                let since = *self.alone_since.borrow_mut().get_or_insert_with(Instant::now);
                // Answers that are there already still go to an output that takes them, but not for
                // ever.
                if !is_ready || since.elapsed() > PATIENCE {
                    return Ok(Waited::Alone);
                }
            }
            if is_ready {
                return Ok(Waited::Ready);
            }
        }
    }
}

/// Whether standard output takes more.
pub(super) fn output_takes() -> io::Result<bool> {
    let stdout = io::stdout();
    let found = flags(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)], PATIENCE)?;
    Ok(found.first().is_some_and(|flags| !flags.is_empty()))
}

fn is_gone(flags: Option<&PollFlags>) -> bool {
    flags.is_some_and(|flags| flags.intersects(GONE))
}

/// Only a pipe's or socket's other side can go.
fn is_pipe(fd: BorrowedFd<'_>) -> bool {
    use nix::sys::stat::{SFlag, fstat};
    let kind = |mode: nix::sys::stat::mode_t| SFlag::from_bits_truncate(mode) & SFlag::S_IFMT;
    fstat(fd).is_ok_and(|stat| [SFlag::S_IFIFO, SFlag::S_IFSOCK].contains(&kind(stat.st_mode)))
}

fn flags(watched: &mut [PollFd<'_>], limit: Duration) -> io::Result<Vec<PollFlags>> {
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(watched, limit) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(watched.iter().map(|one| one.revents().unwrap_or(PollFlags::empty())).collect())
}
