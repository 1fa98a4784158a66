//! Programs that go on to another address if `connect()` fails: they do so through the mesh as
//! without it, each time.

use std::{fs, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Net, PORT, Pair, Pod, PodSpec, SHOP,
    probe::{self, ServeSpec, Talk},
    programs, scenario,
};

use crate::clients;

/// How often each of them tries. Between two tries a second passes, in which nothing of the failure
/// before may be forgotten or remembered so that the next one differs.
const TRIES: usize = 4;
const BETWEEN: Duration = Duration::from_secs(1);

/// A pair, and a pod beside the server in which nothing listens.
fn with_dead(net: &Net) -> Result<(Pair<'_>, Pod)> {
    let pair = Pair::new(net)?;
    let dead = net.pod(&pair.nodes[1], PodSpec::new(SHOP, "dead"))?;
    net.objects().label_namespace(SHOP, Some("enabled"))?;
    pair.agents[0].wait_enrolled(&[&pair.client])?;
    pair.agents[1].wait_enrolled(&[&pair.server, &dead])?;
    pair.agents[0].wait_peers(2)?;
    pair.agents[1].wait_peers(1)?;
    Ok((pair, dead))
}

fn each_time(mut try_once: impl FnMut() -> Result<()>) -> Result<()> {
    for number in 0..TRIES {
        if number > 0 {
            thread::sleep(BETWEEN);
        }
        try_once().with_context(|| format!("try {number}"))?;
    }
    Ok(())
}

#[test]
fn psql_goes_on_to_the_next_host() {
    scenario("failover-psql", |net| {
        let (pair, dead) = with_dead(net)?;
        // It ends the connection in the middle of its first answer, which psql tells with the
        // server's address.
        let spec = ServeSpec { banner: "R".to_owned(), ..ServeSpec::new(PORT, Talk::Reset) };
        let _alive = probe::serve(&pair.server, &spec)?;
        let hosts = format!(
            "host={},{} port={PORT},{PORT} user=u dbname=d sslmode=disable gssencmode=disable",
            dead.v4, pair.server.v4
        );
        each_time(|| {
            let output = pair.client.run(["psql", &hosts])?;
            let lines: Vec<&str> = output.stderr.lines().collect();
            let about = |address: String, what| {
                lines.iter().any(|line| line.contains(&address) && line.contains(what))
            };
            ensure!(about(dead.v4.to_string(), "Connection refused"), "{output}");
            ensure!(about(pair.server.v4.to_string(), "closed the connection"), "{output}");
            Ok(())
        })
    });
}

#[test]
fn curl_goes_on_to_the_other_family() {
    scenario("failover-curl", |net| {
        let pair = Pair::meshed(net)?;
        let banner =
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello".to_owned();
        let listen = SocketAddr::from(([0, 0, 0, 0], PORT));
        let spec = ServeSpec { listen, banner, ..ServeSpec::new(PORT, Talk::Exchange) };
        let _alive = probe::serve(&pair.server, &spec)?;
        let name = format!("web:{PORT}:[{}],{}", pair.server.v6, pair.server.v4);
        let url = format!("http://web:{PORT}/");
        each_time(|| {
            let curl = ["curl", "-sS", "--max-time", "10", "--resolve", &name, &url];
            ensure!(pair.client.run(curl)?.success()? == "hello", "another answer");
            Ok(())
        })
    });
}

/// A name with an address of each family, of which the first is asked first ("Happy Eyeballs"). Go
/// reads it where everything does, so that it gets an `/etc/hosts` of its own.
#[test]
fn go_goes_on_to_the_other_family() {
    scenario("failover-go", |net| {
        let client = clients::go(&net.tag().dir())?;
        let pair = Pair::meshed(net)?;
        let listen = SocketAddr::from(([0, 0, 0, 0], PORT));
        let banner = "hello".to_owned();
        let spec = ServeSpec { listen, banner, ..ServeSpec::new(PORT, Talk::Exchange) };
        let _alive = probe::serve(&pair.server, &spec)?;
        let hosts = net.tag().dir().join("hosts");
        fs::write(&hosts, format!("{} web\n{} web\n", pair.server.v6, pair.server.v4))?;
        let script = "mount --bind \"$1\" /etc/hosts && exec \"$2\" web \"$3\"";
        let (hosts, port) = (hosts.to_string_lossy(), PORT.to_string());
        each_time(|| {
            let argv = ["unshare", "--mount", "sh", "-c", script, "sh", &hosts, &client, &port];
            let said = pair.client.run(argv)?.success()?;
            ensure!(said.lines().count() == 2, "{said}");
            ensure!(said.lines().all(|line| line.contains("bytes")), "{said}");
            Ok(())
        })
    });
}

/// As libpq does: a dead host is told of only if no other one is reached.
#[test]
fn jdbc_goes_on_to_the_next_host() {
    scenario("failover-jdbc", |net| {
        let classes = clients::java(&net.tag().dir())?;
        let (pair, dead) = with_dead(net)?;
        let spec = ServeSpec { banner: "R".to_owned(), ..ServeSpec::new(PORT, Talk::Reset) };
        let mut alive = probe::serve(&pair.server, &spec)?;
        let ask = |hosts: &str| {
            let argv = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", &classes];
            let said = pair.client.run(argv.into_iter().chain(["Jdbc", hosts]))?.success()?;
            ensure!(said.lines().count() == 2, "{said}");
            Ok(said)
        };
        let (one, two) = (dead.at(PORT).to_string(), pair.server.at(PORT).to_string());
        let said = ask(&one)?;
        ensure!(said.lines().all(|line| line.contains("Connection refused")), "{said}");
        // The server that is alive ends the connection in its first answer.
        let said = ask(&format!("{one},{two}"))?;
        ensure!(said.lines().all(|line| !line.contains("refused")), "{said}");
        alive.wait_conns(2).map(drop)
    });
}

/// `HAProxy` checks a server by a `connect()`. One that succeeds says that the server is up.
#[test]
fn haproxy_takes_a_dead_server_out() {
    scenario("failover-haproxy", |net| {
        let (pair, dead) = with_dead(net)?;
        let _alive = programs::nginx(&pair.server, PORT, "hello")?;
        let servers = [("dead", dead.at(PORT)), ("alive", pair.server.at(PORT))];
        let balancer =
            programs::haproxy(&pair.client, 8000, &servers, "check inter 1s fall 2 rise 1")?;
        // `status`, `chkdown`, `lastchg` and `check_status` of HAProxy's CSV format.
        let (state, times_down, since, check) = (17, 22, 23, 36);
        tests::eventually(Duration::from_secs(30), || {
            let [dead, alive] = [balancer.stat("dead")?, balancer.stat("alive")?];
            ensure!(dead[state] == "DOWN" && dead[check] == "L4CON", "{dead:?}");
            ensure!(alive[state].starts_with("UP") && alive[check] == "L4OK", "{alive:?}");
            Ok(())
        })?;
        for _ in 0..12 {
            let page = ["curl", "-sSf", "--max-time", "10", "http://127.0.0.1:8000/"];
            ensure!(pair.client.run(page)?.success()?.starts_with("hello"), "another answer");
        }
        // It stays so: no check in between has succeeded.
        tests::eventually(Duration::from_secs(30), || {
            let dead = balancer.stat("dead")?;
            ensure!(dead[state] == "DOWN" && dead[times_down] == "1", "{dead:?}");
            ensure!(dead[since].parse::<u64>()? >= 3, "{dead:?}");
            Ok(())
        })
    });
}

#[test]
fn nginx_passes_a_post_on_to_the_next_server() {
    scenario("failover-nginx", |net| {
        let (pair, dead) = with_dead(net)?;
        let _alive = programs::nginx(&pair.server, PORT, "hello")?;
        let servers = [dead.at(PORT), pair.server.at(PORT)];
        let _balancer = programs::nginx_proxy(&pair.client, 8000, &servers)?;
        let post =
            ["curl", "-sS", "--max-time", "10", "-o", "-", "-d", "x", "http://127.0.0.1:8000/"];
        each_time(|| {
            let page = pair.client.run(post)?.success()?;
            ensure!(page.starts_with("hello"), "{page}");
            Ok(())
        })
    });
}
