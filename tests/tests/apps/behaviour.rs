//! Failures, as the network would report them: `connect()` to a destination that has not answered
//! yet waits until the agent has reached it, and fails with the error that it would have without
//! the mesh.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use tests::{
    PORT, Pair, Pod, PodSpec, SHOP,
    agent::{Dirs, SOON},
    eventually,
    exec::Place,
    probe::{self, Conn, DialSpec, End, Talk},
    scenario,
};

fn dial(from: &Place, to: SocketAddr) -> Result<Conn> {
    let spec = DialSpec { timeout_s: 20, ..DialSpec::say(to, "x") };
    probe::dial(from, &spec)
}

/// Dials again and again: each time `connect()` fails in the same way.
fn fails(from: &Pod, to: SocketAddr, end: End) -> Result<()> {
    for _ in 0..3 {
        let seen = dial(from, to)?;
        ensure!(!seen.connected && seen.end == end, "{to}, not {end:?}: {seen:?}");
    }
    Ok(())
}

/// The router of the server's node does this with packets to the server.
fn route(pair: &Pair<'_>, what: &str) -> Result<()> {
    let Pod { v4, v6, .. } = &pair.server;
    for command in [format!("ip route {what} {v4}/32"), format!("ip -6 route {what} {v6}/128")] {
        pair.nodes[1].run(["sh", "-c", &command])?.success()?;
    }
    Ok(())
}

#[test]
fn connect_to_a_closed_port_is_refused_until_something_listens_there() {
    scenario("behaviour-refused", |net| {
        let pair = Pair::meshed(net)?;
        for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
            fails(&pair.client, to, End::Refused)?;
        }
        let why = pair.agents[0].wait_flow("of a dial", |flow| {
            flow.outcome == "application_refused" && flow.server.port == PORT
        })?;
        ensure!(why.is_mtls(), "{why:?}");
        // A destination that is there is reached at once, by the next dial.
        let service = pair.serve(Talk::Exchange)?;
        let waited = || -> Result<u64> {
            let seen = dial(&pair.client, pair.server.at(PORT))?;
            ensure!(seen.end == End::Fin && seen.first == "x", "{seen:?}");
            Ok(pair.agents[0].status()?.pod_verdict(&pair.client, "outbound_waits"))
        };
        // More, where the machine is so slow that a packet comes again.
        let first = waited()?;
        ensure!(first >= 7, "six dials that failed and one that did not waited {first} times");
        let second = waited()?;
        ensure!(second == first, "the second dial waited, too: {first}, {second}");
        // Where it has answered a moment ago, the first dial may succeed and be reset. The next
        // ones fail as without the mesh.
        drop(service);
        let seen = dial(&pair.client, pair.server.at(PORT))?;
        ensure!(matches!(seen.end, End::Reset | End::Refused), "{seen:?}");
        fails(&pair.client, pair.server.at(PORT), End::Refused)
    });
}

#[test]
fn connect_without_a_way_to_the_host_fails_as_the_router_says() {
    scenario("behaviour-unreachable", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        route(&pair, "add unreachable")?;
        for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
            fails(&pair.client, to, End::Unreachable)?;
        }
        route(&pair, "del unreachable")?;
        eventually(SOON, || {
            let seen = dial(&pair.client, pair.server.at(PORT))?;
            ensure!(seen.end == End::Fin && seen.first == "x", "{seen:?}");
            Ok(())
        })
    });
}

#[test]
fn connect_to_a_host_that_does_not_answer_waits_and_succeeds_when_it_is_back() {
    scenario("behaviour-timeout", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        route(&pair, "add blackhole")?;
        let spec = DialSpec { timeout_s: 2, ..DialSpec::say(pair.server.at(PORT), "x") };
        let seen = probe::dial(&pair.client, &spec)?;
        ensure!(!seen.connected && seen.end == End::Timeout, "{seen:?}");
        let spec = DialSpec { timeout_s: 60, ..DialSpec::say(pair.server.at(PORT), "x") };
        thread::scope(|scope| {
            let dial = scope.spawn(|| probe::dial(&pair.client, &spec));
            thread::sleep(Duration::from_secs(2));
            route(&pair, "del blackhole")?;
            let seen = dial.join().map_err(|_panic| anyhow!("the dial's thread"))??;
            ensure!(seen.end == End::Fin && seen.first == "x", "{seen:?}");
            Ok(())
        })
    });
}

#[test]
fn a_service_is_refused_only_if_all_its_endpoints_are() {
    scenario("behaviour-service", |net| {
        let pair = Pair::new(net)?;
        let spare = net.pod(&pair.nodes[1], PodSpec::new(SHOP, "spare"))?;
        let vip = |host: u8| SocketAddr::from(([10, 96, 0, host], 80));
        net.objects().service(SHOP, "one", &[vip(1)], PORT, &[&pair.server])?;
        net.objects().service(SHOP, "two", &[vip(2)], PORT, &[&pair.server, &spare])?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        pair.agents[0].wait_enrolled(&[&pair.client])?;
        pair.agents[1].wait_enrolled(&[&pair.server, &spare])?;
        pair.agents[0].wait_peers(2)?;
        pair.agents[1].wait_peers(1)?;
        fails(&pair.client, vip(1), End::Refused)?;
        fails(&pair.client, vip(2), End::Refused)?;
        // Half of the endpoints refuse: the first dial is brought to the other.
        let _service = probe::serve(&spare, &probe::ServeSpec::new(PORT, Talk::Exchange))?;
        let seen = dial(&pair.client, vip(2))?;
        ensure!(seen.end == End::Fin && seen.first == "x", "{seen:?}");
        // A dial that fails now may be reset, but not because another one has failed.
        let spec = DialSpec { connections: 40, ..DialSpec::say(vip(2), "x") };
        let seen = probe::dial_all(&pair.client, &spec)?;
        let count = |end| seen.iter().filter(|conn| conn.end == end).count();
        let (reached, reset) = (count(End::Fin), count(End::Reset));
        ensure!(reached + reset == seen.len() && reached > 0, "{seen:?}");
        Ok(())
    });
}

#[test]
fn other_refusals_are_told_as_the_network_would() {
    scenario("behaviour-errno", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        // From an address that is not the pod's: a second one, unknown to Kubernetes.
        let add = "ip addr add 10.244.1.99/32 dev lo";
        pair.client.run(["sh", "-c", add])?.success()?;
        let bind = Some(([10, 244, 1, 99], 0).into());
        let spec = DialSpec { bind, ..DialSpec::say(pair.server.at(PORT), "x") };
        let seen = probe::dial(&pair.client, &spec)?;
        ensure!(!seen.connected && seen.end == End::NoAddress, "{seen:?}");
        pair.agents[0].wait_flow("foreign", |flow| flow.outcome == "refused_foreign_source")?;
        // One of the ports that only redirected connections carry.
        let seen = dial(&pair.client, pair.client.at(60_990))?;
        ensure!(!seen.connected && seen.end == End::Refused, "{seen:?}");
        pair.agents[0].wait_flow("magic", |flow| flow.outcome == "refused_magic_port")?;
        Ok(())
    });
}

#[test]
fn while_an_agent_is_away_connect_is_refused_and_no_longer() {
    scenario("behaviour-agent", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        pair.agents[1].kill9()?;
        fails(&pair.client, pair.server.at(PORT), End::Refused)?;
        pair.agents[1].start_again()?;
        pair.agents[1].wait_enrolled(&[&pair.server])?;
        eventually(SOON, || {
            let seen = dial(&pair.client, pair.server.at(PORT))?;
            ensure!(seen.end == End::Fin && seen.first == "x", "{seen:?}");
            Ok(())
        })?;
        // Our own agent is away: nothing listens where the dial is redirected to.
        pair.agents[0].kill9()?;
        fails(&pair.client, pair.server.at(PORT), End::Refused)?;
        pair.agents[0].start_again().context("the client's agent")
    });
}

/// A dial that waits counts as a connection of the agent: a pod that dials hosts which do not
/// answer leaves others their part.
#[test]
fn dials_that_wait_have_the_share_of_connections() {
    const DIALS: u64 = 400;
    scenario("behaviour-share", |net| {
        // Enough for some two hundred connections.
        let few = ["prlimit", "--nofile=1500:1500"];
        let pair = Pair::by(&few, net, [Dirs::of(net), Dirs::of(net)], &[])?;
        let modest = net.pod(&pair.nodes[0], PodSpec::new(SHOP, "modest"))?;
        let lost = net.pod(&pair.nodes[1], PodSpec::new(SHOP, "lost"))?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        pair.agents[0].wait_enrolled(&[&pair.client, &modest])?;
        pair.agents[1].wait_enrolled(&[&pair.server, &lost])?;
        pair.agents[0].wait_peers(2)?;
        pair.agents[1].wait_peers(2)?;
        let _service = pair.serve(Talk::Exchange)?;
        let gone = format!("{}/32", lost.v4);
        pair.nodes[1].run(["ip", "route", "add", "blackhole", &gone])?.success()?;
        let (say, count) = (DialSpec::say(lost.at(PORT), "x"), DIALS);
        let spec = DialSpec { connections: count, workers: count, timeout_s: 20, ..say };
        thread::scope(|scope| {
            let greedy = scope.spawn(|| probe::dial_all(&pair.client, &spec));
            let name = format!("{}/{}", pair.client.namespace, pair.client.name);
            pair.agents[0].wait_flow("of the limit", |flow| {
                flow.outcome == "limit_connections" && flow.client.pod.as_ref() == Some(&name)
            })?;
            let seen = dial(&modest, pair.server.at(PORT))?;
            ensure!(seen.end == End::Fin && seen.first == "x", "{seen:?}");
            for seen in greedy.join().map_err(|_panic| anyhow!("the greedy pod's thread"))?? {
                ensure!(!seen.connected, "{seen:?}");
            }
            Ok(())
        })
    });
}

/// Packets to the agent's ports that belong to no dial are refused by the kernel.
#[test]
fn packets_without_a_dial_do_not_wake_the_agent() {
    scenario("behaviour-flood", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let Pod { v4, .. } = &pair.client;
        let flood = format!(
            "import socket,struct\n\
             s=socket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_RAW)\n\
             a=socket.inet_aton('{v4}')\n\
             def sum16(b):\n\
             \x20t=sum(struct.unpack('!%dH'%(len(b)//2),b))\n\
             \x20t=(t&65535)+(t>>16)\n\
             \x20return ~((t&65535)+(t>>16))&65535\n\
             for port in range(20000,22000):\n\
             \x20t=struct.pack('!HHIIBBHHH',port,60990,1,0,80,2,1000,0,0)\n\
             \x20c=sum16(a+a+struct.pack('!HH',6,len(t))+t)\n\
             \x20t=t[:16]+struct.pack('!H',c)+t[18:]\n\
             \x20i=struct.pack('!BBHHHBBH4s4s',69,0,40,0,0,64,6,0,a,a)\n\
             \x20s.sendto(i+t,('{v4}',0))\n"
        );
        let before = pair.agents[0].status()?;
        pair.client.run(["python3", "-c", &flood])?.success()?;
        let after = pair.agents[0].status()?;
        let refused = after.pod_verdict(&pair.client, "refused_not_noted");
        ensure!((1000..=2000).contains(&refused), "{after:?}");
        ensure!(after.counters.accepted_outbound == before.counters.accepted_outbound);
        ensure!(after.pod_verdict(&pair.client, "outbound_waits") == 0, "{after:?}");
        let flows = pair.agents[0].flows()?;
        ensure!(flows.iter().all(|flow| flow.server.port != 60_990), "{flows:?}");
        let seen = dial(&pair.client, pair.server.at(PORT))?;
        ensure!(seen.end == End::Fin && seen.first == "x", "{seen:?}");
        Ok(())
    });
}
