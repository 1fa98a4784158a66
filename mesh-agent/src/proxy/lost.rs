//! Pods that destroy the agent's listeners in their namespaces, for `status` and the log. A process
//! needs only `CAP_NET_ADMIN` over a namespace to do so (`SOCK_DESTROY`, `sock_diag(7)`).

use std::{collections::BTreeMap, io, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long `status` names the pod after the last loss, or after the last failed attempt to repair
/// it.
const TOLD: Duration = Duration::from_secs(5);

/// Time between two log lines about one pod.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// What has been lost lately.
#[derive(Default)]
pub(super) struct Lost(Mutex<BTreeMap<String, Loss>>);

struct Loss {
    times: u64,
    /// Time of the last loss, or of the last attempt to repair it.
    last: Instant,
    logged: Instant,
    /// Why the last listener could not be recreated.
    failure: Option<String>,
}

impl Loss {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.last) > TOLD
    }
}

impl Lost {
    /// Notes that a listener of a pod was destroyed.
    pub(super) fn note(&self, pod: &str, now: Instant) {
        self.change(pod, now, |loss| loss.times += 1);
    }

    /// Notes that a listener could not be recreated.
    pub(super) fn failed(&self, pod: &str, error: &io::Error, now: Instant) {
        self.change(pod, now, |loss| loss.failure = Some(error.to_string()));
    }

    /// Notes that a listener was recreated.
    pub(super) fn made_anew(&self, pod: &str) {
        if let Some(loss) = self.0.lock().get_mut(pod) {
            loss.failure = None;
        }
    }

    /// One sentence for each pod.
    pub(super) fn problems(&self, now: Instant) -> Vec<String> {
        let mut pods = self.0.lock();
        pods.retain(|_, loss| !loss.is_over(now));
        pods.iter().map(|(pod, loss)| sentence(pod, loss)).collect()
    }

    fn change(&self, pod: &str, now: Instant, change: impl FnOnce(&mut Loss)) {
        let mut pods = self.0.lock();
        pods.retain(|name, loss| name == pod || !loss.is_over(now));
        let mut is_new = false;
        let loss = pods.entry(pod.to_owned()).or_insert_with(|| {
            is_new = true;
            Loss { times: 0, last: now, logged: now, failure: None }
        });
        change(loss);
        loss.last = now;
        if is_new || now.duration_since(loss.logged) >= LOG_EVERY {
            loss.logged = now;
            tracing::warn!("{}", sentence(pod, loss));
        }
    }
}

fn sentence(pod: &str, loss: &Loss) -> String {
    let Loss { times, failure, .. } = loss;
    let then = match failure {
        Some(failure) => format!("one cannot be made anew: {failure}"),
        None => "they are made anew, at most once a second each".to_owned(),
    };
    format!(
        "something in pod {pod} destroys the agent's listeners in its network namespace, {times} so far ({then}): its own connections are refused meanwhile, as those to it over the mesh. Find what runs there with CAP_NET_ADMIN"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loss_is_told_for_a_while_and_one_that_cannot_be_mended_as_long_as_it_is_tried() {
        let (lost, begin) = (Lost::default(), Instant::now());
        lost.note("shop/web", begin);
        lost.note("shop/web", begin);
        lost.note("shop/cart", begin);
        let taken = io::Error::from(io::ErrorKind::AddrInUse);
        lost.failed("shop/cart", &taken, begin);
        let told = lost.problems(begin);
        assert!(told[0].contains("shop/cart") && told[0].contains("in use"), "{told:?}");
        assert!(told[1].contains("shop/web") && told[1].contains(", 2 so far"), "{told:?}");
        let later = begin + TOLD * 2;
        lost.failed("shop/cart", &taken, later);
        assert_eq!(lost.problems(later).len(), 1);
        lost.made_anew("shop/cart");
        assert!(!lost.problems(later)[0].contains("in use"));
        assert!(lost.problems(later + TOLD * 2).is_empty());
    }
}
