//! One watch per kind, each a stream of [`Change`]s that recovers by itself.

use std::future::ready;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, SelectAll, select_all};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt as _, utils::Backoff};
use kube::{Api, Client, Resource as _};
use mesh_world::NodeName;

use super::super::kinds::{KINDS, Kind, WatchScope};
use super::api_object::ApiObject;
use super::content::{Change, Name};
use super::told::of_watch;

/// Pauses between attempts to reach an API server that is away: short at first, then this long at
/// most. All agents come at once when it is back, so each pause is between half and all of its
/// length.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
/// Longer than the longest pause and an attempt together.
const FORGIVEN_AFTER: Duration = Duration::from_secs(15);

/// How long one watch lasts, in seconds. A dead connection is noticed after that time, with kube's
/// 5 s more.
const WATCH_S: u32 = 120;
/// How many objects of a list come at a time. A whole page is in memory, and an object as it comes
/// takes several times what is kept of it.
const PAGE: u32 = 100;
/// How long the API server may be silent in the middle of an answer: longer than a watch.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(150);

/// The code of a watch that cannot go on from where it was (Kubernetes documentation, "API
/// concepts": 410 Gone).
const GONE: u16 = 410;

/// All watches of the source for the agent of `node`.
pub(super) fn all(client: &Client, node: &NodeName) -> SelectAll<BoxStream<'static, Change>> {
    select_all(KINDS.iter().map(|kind| follow(kind, client, node)))
}

fn follow(kind: &'static Kind, client: &Client, node: &NodeName) -> BoxStream<'static, Change> {
    let which = match kind.watched {
        WatchScope::All => settled(),
        WatchScope::OfOwnNode => settled().fields(&format!("spec.nodeName={node}")),
    };
    let name = |object: &ApiObject| name(kind.name, object);
    let is = move |object: ApiObject| {
        Change::Is(name(&object), (kind.read)(object.into_value(), &|origin| origin))
    };
    events((kind.all)(client), which)
        .map(move |event| match event {
            Ok(Event::Init) => Change::ListBegins(kind.name),
            Ok(Event::InitApply(object) | Event::Apply(object)) => is(object),
            Ok(Event::Delete(object)) => Change::Gone(name(&object)),
            Ok(Event::InitDone) => Change::ListEnds(kind.name),
            Err(error) => Change::Failed { kind: kind.name, error: of_watch(&error) },
        })
        .boxed()
}

/// What a watch yields.
pub(crate) type Events = BoxStream<'static, watcher::Result<Event<ApiObject>>>;

/// How a kind is watched. A watch that an API server leaves hanging is given up after [`WATCH_S`].
pub(crate) fn settled() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_S).page_size(PAGE)
}

/// A watch that restarts after failures, with pauses. That the API server has forgotten the changes
/// in between (410) is no failure, since a list follows; unless it does so again at once.
pub(crate) fn events(api: Api<ApiObject>, which: watcher::Config) -> Events {
    let what = api.resource_url().to_owned();
    let mut last: Option<Instant> = None;
    let is_told = move |event: &watcher::Result<Event<ApiObject>>| {
        let forgotten = event.as_ref().err().and_then(forgotten);
        let forgotten = forgotten.filter(|_| {
            last.replace(Instant::now()).is_none_or(|last| last.elapsed() > FORGIVEN_AFTER)
        });
        if let Some(answer) = forgotten {
            tracing::info!(
                watched = what,
                answer,
                "the API server has forgotten what has changed since it was watched last (410); listing everything anew"
            );
        }
        ready(forgotten.is_none())
    };
    watcher(api, which).backoff(Pauses::default()).filter(is_told).boxed()
}

/// What the API server says of a version that is too old for it.
fn forgotten(error: &watcher::Error) -> Option<&str> {
    match error {
        watcher::Error::WatchError(status) if status.code == GONE => Some(&status.message),
        _ => None,
    }
}

fn name(kind: &'static str, object: &ApiObject) -> Name {
    let meta = object.meta();
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
    (kind, meta.namespace.as_deref().map(Into::into), text(&meta.name))
}

/// Doubles the pause each time, until there has been no failure for [`FORGIVEN_AFTER`]. The
/// beginning of a list, at which kube's own reset happens, proves nothing.
#[derive(Default)]
struct Pauses {
    attempts: u32,
    last: Option<Instant>,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.last.replace(Instant::now()).is_some_and(|last| last.elapsed() > FORGIVEN_AFTER) {
            self.attempts = 0;
        }
        let pause = SHORTEST_PAUSE.saturating_mul(1 << self.attempts.min(10)).min(LONGEST_PAUSE);
        self.attempts = self.attempts.saturating_add(1);
        Some(spread(pause))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {}
}

/// Between half and all of a pause, so that not all agents come at once.
pub(super) fn spread(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
