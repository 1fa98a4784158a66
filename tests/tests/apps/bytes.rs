//! Every byte arrives, in order, and every connection ends as it would have ended without the mesh.

use std::{collections::BTreeMap, env, net::SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use tests::{
    Neighbours, PORT, Pair, Pod,
    agent::{Agent, SOON},
    flow::Flow,
    probe::{self, Conn, DialSpec, End, ServeSpec, Talk},
    scenario,
};

/// How many stories are compared. The seed says which: a failure names it.
const STORIES: u64 = 200;

/// Bytes each way: 1 GiB. `NODEMESH_BULK_MIB` says otherwise, for instance for a slow machine.
fn bulk() -> Result<u64> {
    let mib = env::var("NODEMESH_BULK_MIB").unwrap_or_else(|_| "1024".to_owned());
    Ok(mib.parse::<u64>().context("NODEMESH_BULK_MIB")? << 20)
}

#[test]
fn a_gibibyte_each_way_at_once() {
    scenario("bytes-bulk", |net| {
        let bytes = bulk()?;
        let pair = Pair::meshed(net)?;
        let spec = ServeSpec { send_bytes: bytes, seed: 2, ..ServeSpec::new(PORT, Talk::Bulk) };
        let mut service = probe::serve(&pair.server, &spec)?;
        let spec = DialSpec::new(pair.server.at(PORT), Talk::Bulk);
        let there = probe::dial(
            &pair.client,
            &DialSpec { send_bytes: bytes, seed: 1, timeout_s: 110, ..spec },
        )?;
        let here = service.wait_conn("the connection", |_| true)?;
        crossed(&there, &here)?;
        ensure!((there.received, here.received) == (bytes, bytes), "{there:?} {here:?}");
        ensure!((there.end, here.end) == (End::Fin, End::Fin), "{there:?} {here:?}");
        let flow = pair.agents[0].wait_flow("of it", Flow::is_mtls)?;
        ensure!((flow.bytes.sent, flow.bytes.received) == (bytes, bytes), "{flow:?}");
        Ok(())
    });
}

#[test]
fn stories_end_as_they_do_without_the_mesh() {
    scenario("bytes-stories", |net| {
        let pair = Pair::new(net)?;
        let stories = || stories(&pair.client, &pair.server, pair.server.at(PORT));
        let before = stories()?;
        pair.join()?;
        let after = stories()?;
        same(&before, &after, &[&pair.agents[0], &pair.agents[1]])?;
        let mtls = pair.agents[0].flows()?.iter().filter(|flow| flow.is_mtls()).count();
        ensure!(mtls as u64 == STORIES, "only {mtls} went through the mesh");
        Ok(())
    });
}

/// On one node, in each of the ways that its connections may go.
#[test]
fn stories_on_one_node_end_as_they_do_without_the_mesh() {
    scenario("bytes-stories-node", |net| {
        let one = Neighbours::new(net, &[])?;
        let stories = |to| stories(&one.client, &one.server, to);
        let families = [one.server.at(PORT), one.server.at6(PORT)];
        let before = families.into_iter().map(stories).collect::<Result<Vec<_>>>()?;
        one.join()?;
        for (way, kind) in [("tls", "mtls"), ("local", "local")] {
            one.go(Some(way))?;
            one.wait_for(kind)?;
            for (to, before) in families.into_iter().zip(&before) {
                let known = one.agent.flows()?;
                same(before, &stories(to)?, &[&one.agent])?;
                let new = one.agent.flows_after(&known)?.into_iter();
                let went = new.filter(|flow| flow.security.kind == kind).count() as u64;
                ensure!(went == 2 * STORIES, "{way}, {to}: {went} of {} records", 2 * STORIES);
            }
        }
        Ok(())
    });
}

/// Each story has the same outcome.
fn same(
    before: &BTreeMap<u64, Outcome>,
    after: &BTreeMap<u64, Outcome>,
    agents: &[&Agent],
) -> Result<()> {
    ensure!(before.len() as u64 == STORIES && after.len() as u64 == STORIES);
    for (seed, before) in before {
        let after = after.get(seed).with_context(|| format!("seed {seed} is missing"))?;
        if before != after {
            let story = probe::Script::new(*seed);
            let flows: Vec<_> = agents.iter().map(|agent| told(agent, &story)).collect();
            bail!("seed {seed}, {story:?}:\nbefore {before:?}\nafter {after:?}\n{flows:#?}");
        }
    }
    Ok(())
}

/// What an agent has recorded of connections with so many bytes.
fn told(agent: &Agent, story: &probe::Script) -> Vec<Flow> {
    let flows = agent.flows().unwrap_or_default().into_iter();
    flows.filter(|flow| flow.bytes.received / 2 == story.to_client / 2).collect()
}

/// What must be the same: bytes, hash and end, on either side.
type Outcome = [(u64, String, End); 2];

fn stories(client: &Pod, server: &Pod, to: SocketAddr) -> Result<BTreeMap<u64, Outcome>> {
    let spec = ServeSpec::both_families(PORT, Talk::Script);
    let mut service = probe::serve(server, &spec)?;
    let spec = DialSpec {
        connections: STORIES,
        workers: 8,
        timeout_s: 20,
        ..DialSpec::new(to, Talk::Script)
    };
    let there = probe::dial_all(client, &spec)?;
    let here = service.wait_conns(there.len())?;
    service.stop()?;
    let outcome = |conn: &Conn| (conn.received, conn.received_hash.clone(), conn.end);
    there
        .iter()
        .map(|there| {
            let here = here.iter().find(|here| here.seed == there.seed).context("no other side")?;
            crossed(there, here)?;
            Ok((there.seed, [outcome(there), outcome(here)]))
        })
        .collect()
}

/// The other side has received what one side has sent.
fn crossed(there: &Conn, here: &Conn) -> Result<()> {
    let same = |a: &Conn, b: &Conn| (a.sent, &a.sent_hash) == (b.received, &b.received_hash);
    ensure!(same(there, here) && same(here, there), "{there:#?}\n{here:#?}");
    Ok(())
}

/// `TCP_URG`: without `SO_OOBINLINE` the byte would be lost to an agent that does not ask for it.
#[test]
fn urgent_data_is_in_the_stream() {
    const SERVER: &str = "import socket,sys\n\
        l=socket.create_server(('',int(sys.argv[1])))\n\
        l.setsockopt(socket.SOL_SOCKET,socket.SO_OOBINLINE,1)\n\
        print('ready',flush=True)\n\
        a=l.accept()[0]\n\
        print(b''.join(iter(lambda:a.recv(99),b'')).decode(),flush=True)\n";
    const CLIENT: &str = "import socket,sys,time\n\
        s=socket.create_connection((sys.argv[1],int(sys.argv[2])))\n\
        s.sendall(b'abc');time.sleep(0.1)\n\
        s.send(b'!',socket.MSG_OOB);time.sleep(0.1)\n\
        s.sendall(b'def');s.close()\n";
    scenario("bytes-urgent", |net| {
        let pair = Pair::new(net)?;
        let port = PORT.to_string();
        let seen = || -> Result<String> {
            let mut server = pair.server.spawn(["python3", "-c", SERVER, &port])?;
            server.wait_for_line("ready", SOON)?;
            let to = pair.server.v4.to_string();
            pair.client.run(["python3", "-c", CLIENT, &to, &port])?.success()?;
            let output = server.wait(SOON)?;
            Ok(output.stdout.lines().last().unwrap_or_default().to_owned())
        };
        let before = seen()?;
        ensure!(before == "abc!def", "without the mesh: {before}");
        pair.join()?;
        let after = seen()?;
        ensure!(after == before, "through the mesh: {after}");
        Ok(())
    });
}
