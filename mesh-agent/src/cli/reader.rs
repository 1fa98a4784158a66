//! Whether anybody reads what a command prints that goes on until it is interrupted.
//!
//! `kubectl exec` that is killed leaves the process in the container, and its standard output looks read: the runtime holds the
//! pipe. What goes is standard input, if there was one (`kubectl exec -i`). Without it nothing tells, so that such a command
//! ends by itself after a while.

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

/// How long standard output may take nothing: then nobody reads it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one call of poll lasts at most.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// Any of these on a descriptor whose other side is to be watched.
const GONE: PollFlags = PollFlags::POLLHUP.union(PollFlags::POLLERR).union(PollFlags::POLLNVAL);

/// Who reads.
pub(super) struct Reader {
    /// Whether somebody holds the other side of standard input, and is gone when that is.
    has_input: bool,
    until: Option<Instant>,
    alone_since: RefCell<Option<Instant>>,
}

/// Why waiting has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// There is something to read.
    Ready,
    /// Nobody reads any more.
    Alone,
    /// It has gone on for long enough.
    Over,
}

impl Reader {
    /// Who reads this process's output, for `limit` at most; without one as long as somebody is there, or as long as `fallback`
    /// if nothing would tell that.
    pub(super) fn new(limit: Option<Duration>, fallback: Duration) -> io::Result<Self> {
        let stdin = io::stdin();
        // An input that has ended already, such as `< /dev/null` in a pipe, is nobody.
        let is_there = !is_gone(
            flags(&mut [PollFd::new(stdin.as_fd(), PollFlags::empty())], Duration::ZERO)?.first(),
        );
        let has_input = is_there && is_pipe(stdin.as_fd());
        let limit = limit.or((!has_input).then_some(fallback));
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        Ok(Self { has_input, until, alone_since: RefCell::default() })
    }

    /// Waits until `answers` can be read, nobody is there any more, or it is over.
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
                // What there is already is shown to an output that takes it, but not for ever.
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

/// Whether standard output takes something more.
pub(super) fn output_takes() -> io::Result<bool> {
    let stdout = io::stdout();
    let found = flags(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)], PATIENCE)?;
    Ok(found.first().is_some_and(|flags| !flags.is_empty()))
}

fn is_gone(flags: Option<&PollFlags>) -> bool {
    flags.is_some_and(|flags| flags.intersects(GONE))
}

/// A pipe's or socket's other side can go.
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
