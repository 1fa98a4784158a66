//! What is known of a path while time passes and answers come.

use super::*;

fn node(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

fn seen() -> SourceChange {
    SourceChange {
        pod: "shop/web".to_owned(),
        node: node("node2"),
        target: [10, 0, 2, 1].into(),
        sent: ([10, 0, 1, 1], 61_000).into(),
        arrived: ([192, 168, 0, 1], 2048).into(),
    }
}

fn no_answer() -> Unanswered {
    Unanswered {
        pod: "shop/web".to_owned(),
        node: node("node2"),
        target: [10, 0, 2, 1].into(),
        detail: "no answer".to_owned(),
        is_dropped: true,
        is_reached: false,
        is_confirmed: false,
    }
}

fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

const TRUSTING: bool = true;
const DOUBTING: bool = false;

struct World {
    paths: Paths,
    path: NodePath,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self { paths: Paths::default(), path: (node("node2"), true), now: Instant::now() }
    }

    fn next(&self, pair: Pair, trusting: bool) -> String {
        match self.paths.next(&pair, &self.path, trusting, self.now) {
            Next::Intact => "intact".to_owned(),
            Next::Changed(_) => "changed".to_owned(),
            Next::Unanswered(it) => it.detail,
            Next::AskAgain(it) => format!("{}, ask", it.detail),
            Next::Ask => "ask".to_owned(),
        }
    }

    fn note(&self, pair: Pair, answer: &Answer) -> bool {
        self.paths.note(pair, self.path.clone(), answer, self.now)
    }
}

#[test]
fn a_node_is_proven_by_one_pair_for_all_and_for_a_minute() {
    let mut world = World::new();
    let (one, other) = ((ip(1), ip(2)), (ip(3), ip(4)));
    assert_eq!(world.next(one, DOUBTING), "ask");
    world.note(one, &Answer::Intact);
    assert_eq!(world.next(other, DOUBTING), "intact");
    let over_ipv6 = world.paths.next(&other, &(node("node2"), false), DOUBTING, world.now);
    assert!(matches!(over_ipv6, Next::Ask), "{over_ipv6:?}");
    world.now += PROVEN_FOR;
    assert_eq!(world.next(one, DOUBTING), "ask");
    assert_eq!(world.next(one, TRUSTING), "intact");
}

#[test]
fn a_change_is_believed_of_the_pair_that_saw_it_and_asked_about_again() {
    let mut world = World::new();
    let (one, other) = ((ip(1), ip(2)), (ip(3), ip(4)));
    assert!(world.note(one, &Answer::Changed(seen())), "it is news");
    assert!(!world.note(one, &Answer::Changed(seen())), "and not again");
    for trusting in [DOUBTING, TRUSTING] {
        assert_eq!(world.next(one, trusting), "changed");
    }
    assert_eq!(world.next(other, DOUBTING), "ask", "it proves nothing about others");
    world.note(other, &Answer::Intact);
    assert_eq!(world.next(one, DOUBTING), "changed", "nor do others about it");
    assert!(world.paths.problems(world.now)[0].contains("192.168.0.1:2048"));
    world.now += CHANGED_FOR;
    assert_eq!(world.next(one, TRUSTING), "ask");
    world.note(one, &Answer::Intact);
    assert_eq!(world.next(one, DOUBTING), "intact");
    assert!(world.paths.problems(world.now).is_empty());
}

#[test]
fn a_change_makes_others_ask_again_once() {
    let world = World::new();
    let (one, second, other) = ((ip(1), ip(2)), (ip(1), ip(3)), (ip(5), ip(2)));
    world.note(other, &Answer::Intact);
    world.note(one, &Answer::Changed(seen()));
    assert_eq!(world.next(other, DOUBTING), "ask");
    world.note(other, &Answer::Intact);
    world.note(second, &Answer::Changed(seen()));
    assert_eq!(world.next(other, DOUBTING), "intact", "of the same pod it is no news");
}

#[test]
fn a_failure_that_a_changed_source_explains_makes_the_agent_ask_again() {
    let world = World::new();
    let (one, other) = ((ip(1), ip(2)), (ip(3), ip(4)));
    world.note(one, &Answer::Intact);
    world.paths.suspect(one, world.now);
    assert_eq!(world.next(one, TRUSTING), "ask");
    assert_eq!(world.next(other, DOUBTING), "intact", "it costs other pairs no question");
    world.note(other, &Answer::Intact);
    assert_eq!(world.next(one, DOUBTING), "ask", "another pair's proof does not clear it");
}

#[test]
fn no_answer_stands_for_a_while() {
    let mut world = World::new();
    let one = (ip(1), ip(2));
    let unanswered = || Answer::Unanswered(no_answer());
    world.note(one, &unanswered());
    assert_eq!(world.next(one, DOUBTING), "no answer");
    assert!(world.paths.blocked(world.now).is_empty(), "it may be away");
    assert_eq!(world.next((ip(1), ip(3)), DOUBTING), "ask");
    assert!(world.paths.note_reached(&one), "it is asked again");
    assert!(world.paths.blocked(world.now).is_empty(), "it may have been away");
    world.note(one, &unanswered());
    assert!(!world.paths.note_reached(&one), "once");
    let problems = world.paths.blocked(world.now);
    assert!(problems.len() == 1 && problems[0].contains("60998: no answer"), "{problems:?}");
    assert_eq!(world.next(one, TRUSTING), "intact", "a strict pod takes nothing but TLS");
    world.now += UNANSWERED_FOR;
    assert_eq!(world.next(one, DOUBTING), "no answer, ask", "and no connection waits for it");
    assert_eq!(world.next(one, DOUBTING), "no answer", "one asks");
    world.note(one, &unanswered());
    assert_eq!(world.paths.blocked(world.now), problems);
    world.note(one, &Answer::Intact);
    assert!(world.paths.blocked(world.now).is_empty());
}

#[test]
fn where_questions_are_dropped_no_further_pair_waits_for_an_answer() {
    let mut world = World::new();
    let one = (ip(1), ip(2));
    for _ in 0..2 {
        world.note(one, &Answer::Unanswered(no_answer()));
        world.paths.note_reached(&one);
    }
    // More than are remembered.
    let dial_all = |world: &World| {
        let mut asked = 0;
        for last in (0..=255).chain(0..=255) {
            let more = (ip(1), [10, 1, 1, last].into());
            match &*world.next(more, DOUBTING) {
                "no answer" => {}
                "no answer, ask" => asked += 1,
                other => panic!("{other}"),
            }
            asked += usize::from(world.paths.note_reached(&more));
        }
        asked
    };
    assert_eq!(dial_all(&world), 0, "one was asked just now");
    assert_eq!(world.next((ip(3), ip(2)), DOUBTING), "ask", "another pod's path is another one");
    world.now += UNANSWERED_FOR;
    let asked = dial_all(&world);
    assert!((1..=PAIRS_OF_POD).contains(&asked), "{asked} asked: once a minute each, at most");
}

#[test]
fn what_nobody_uses_is_forgotten() {
    let mut world = World::new();
    world.note((ip(3), ip(4)), &Answer::Intact);
    world.note((ip(5), ip(6)), &Answer::Changed(seen()));
    world.now += SHOWN_FOR;
    assert!(world.paths.problems(world.now).is_empty());
    world.note((ip(1), ip(2)), &Answer::Changed(seen()));
    let known = world.paths.lock();
    assert_eq!((known.pods.len(), known.proven.len()), (1, 0));
}

#[test]
fn a_pod_that_dials_everywhere_has_its_share_and_forgets_its_own() {
    let mut world = World::new();
    world.note((ip(1), ip(2)), &Answer::Changed(seen()));
    for last in 0..=255 {
        for first in 0..5 {
            world.now += Duration::from_millis(1);
            world.paths.suspect((ip(9), [10, 1, first, last].into()), world.now);
        }
    }
    assert_eq!(world.paths.lock().pods[&ip(9)].len(), PAIRS_OF_POD);
    let newest = (ip(9), [10, 1, 4, 255].into());
    assert_eq!(world.next(newest, TRUSTING), "ask");
    assert_eq!(world.next((ip(1), ip(2)), TRUSTING), "changed", "another pod's is still known");
}
