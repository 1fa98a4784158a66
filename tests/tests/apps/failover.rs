//! Programs that go on to another address if `connect()` fails: they do so through the mesh as
//! without it, each time.

use std::{fs, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Net, PORT, Pair, Pod, PodSpec, SHOP,
    exec::{Place, Process},
    probe::{self, ServeSpec, Talk},
    programs, scenario, wait_until,
};

/// How often each of them tries. Between two tries a second passes, in which nothing of the failure
/// before may be forgotten or remembered so that the next one differs.
const TRIES: usize = 4;
const BETWEEN: Duration = Duration::from_secs(1);

/// How long a program may take to listen.
const SOON: Duration = Duration::from_secs(10);

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

/// `HAProxy` checks a server by a `connect()`. One that succeeds says that the server is up.
#[test]
fn haproxy_takes_a_dead_server_out() {
    scenario("failover-haproxy", |net| {
        let (pair, dead) = with_dead(net)?;
        let _alive = programs::nginx(&pair.server, PORT, "hello")?;
        let dir = pair.client.logs.join("haproxy");
        fs::create_dir_all(&dir)?;
        let (file, socket) = (dir.join("haproxy.cfg"), dir.join("socket"));
        let config = format!(
            "global\nstats socket {}\ndefaults\nmode http\nretries 0\ntimeout connect 5s\n\
             timeout client 10s\ntimeout server 10s\nfrontend in\nbind 127.0.0.1:8000\n\
             default_backend both\nbackend both\nbalance roundrobin\n\
             server dead {} check inter 1s fall 2 rise 1\n\
             server alive {} check inter 1s fall 2 rise 1\n",
            socket.display(),
            dead.at(PORT),
            pair.server.at(PORT)
        );
        fs::write(&file, config)?;
        let config = file.to_string_lossy().into_owned();
        let _balancer = pair.client.spawn(["haproxy", "-db", "-f", &config])?;
        let ask = "import socket,sys\n\
            s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);s.sendall(b'show stat\\n')\n\
            print(b''.join(iter(lambda:s.recv(9999),b'')).decode())\n";
        let status = |server: &str| -> Result<Vec<String>> {
            let said = ["python3", "-c", ask, &socket.to_string_lossy()];
            let said = pair.client.run(said)?.success()?;
            let line = said.lines().find(|line| line.starts_with(&format!("both,{server},")));
            let fields = line.context("no such server")?.split(',').map(str::to_owned);
            Ok(fields.collect())
        };
        // `status`, `chkdown`, `lastchg` and `check_status` of HAProxy's CSV format.
        let (state, times_down, since, check) = (17, 22, 23, 36);
        tests::eventually(Duration::from_secs(30), || {
            let [dead, alive] = [status("dead")?, status("alive")?];
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
            let dead = status("dead")?;
            ensure!(dead[state] == "DOWN" && dead[times_down] == "1", "{dead:?}");
            ensure!(dead[since].parse::<u64>()? >= 3, "{dead:?}");
            Ok(())
        })
    });
}

/// An nginx in a pod that passes requests on to two servers.
fn balancer(place: &Place, port: u16, servers: [SocketAddr; 2]) -> Result<Process> {
    let dir = place.logs.join(format!("{}-balancer", place.name));
    fs::create_dir_all(&dir)?;
    let shown = dir.display();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {shown}/{kind};\n"))
        .concat();
    let [one, two] = servers;
    let config = format!(
        "daemon off;\nmaster_process off;\npid {shown}/pid;\nerror_log stderr;\n\
         events {{ worker_connections 64; }}\nhttp {{\naccess_log off;\n{temp}\
         upstream both {{ server {one} max_fails=0; server {two} max_fails=0; }}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://both; }} }}\n}}\n"
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config)?;
    let (shown, file) = (shown.to_string(), file.to_string_lossy().into_owned());
    let process = place.spawn(["nginx", "-p", &shown, "-c", &file, "-e", "stderr"])?;
    wait_until(SOON, "the balancer listens", || {
        tests::netns::listeners(&place.netns)
            .is_ok_and(|all| all.iter().any(|address| address.port() == port))
    })?;
    Ok(process)
}

#[test]
fn nginx_passes_a_post_on_to_the_next_server() {
    scenario("failover-nginx", |net| {
        let (pair, dead) = with_dead(net)?;
        let _alive = programs::nginx(&pair.server, PORT, "hello")?;
        let _balancer = balancer(&pair.client, 8000, [dead.at(PORT), pair.server.at(PORT)])?;
        let post =
            ["curl", "-sS", "--max-time", "10", "-o", "-", "-d", "x", "http://127.0.0.1:8000/"];
        each_time(|| {
            let page = pair.client.run(post)?.success()?;
            ensure!(page.starts_with("hello"), "{page}");
            Ok(())
        })
    });
}
