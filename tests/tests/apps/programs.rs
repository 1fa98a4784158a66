//! Real programs through the mesh, each with a protocol of its own.

use std::fs;

use anyhow::ensure;
use tests::{
    PORT, Pair,
    flow::Flow,
    probe::{self, DialSpec, End, Noise, ServeSpec, Talk},
    programs, scenario,
};

#[test]
fn curl_and_nginx_keep_a_connection_alive() {
    scenario("programs-http", |net| {
        let pair = Pair::meshed(net)?;
        let nginx = programs::nginx(&pair.server, PORT, "hello")?;
        for (to, from) in
            [pair.server.at(PORT), pair.server.at6(PORT)].into_iter().zip(pair.client.addresses())
        {
            let url = format!("http://{to}/");
            let output = pair.client.run(["curl", "-sSv", "--max-time", "10", &url, &url, &url])?;
            ensure!(output.stderr.matches("Re-using existing connection").count() == 2, "{output}");
            let page = format!("hello, {from}\n");
            ensure!(output.stdout == page.repeat(3), "{output}");
        }
        let log = nginx.log()?;
        ensure!(log.len() == 6 && log[0].starts_with("10.244.1.10:"), "{log:?}");
        pair.agents[1].wait_flow("over mTLS", |flow| flow.is_mtls() && flow.outcome != "open")?;
        Ok(())
    });
}

#[test]
fn a_large_file_arrives_whole() {
    scenario("programs-file", |net| {
        let pair = Pair::meshed(net)?;
        let nginx = programs::nginx(&pair.server, PORT, "hello")?;
        let mut bytes = vec![0; 64 << 20];
        Noise::new(64).fill(&mut bytes);
        fs::write(nginx.root.join("file"), &bytes)?;
        let (url, copy) =
            (format!("http://{}/file", pair.server.at(PORT)), nginx.root.join("copy"));
        let copy_path = copy.to_string_lossy().into_owned();
        pair.client.run(["curl", "-sS", "--max-time", "15", "-o", &copy_path, &url])?.success()?;
        ensure!(fs::read(copy)? == bytes, "the copy differs");
        Ok(())
    });
}

#[test]
fn http2_with_many_streams() {
    scenario("programs-h2", |net| {
        let pair = Pair::meshed(net)?;
        let (_nghttpd, root) = programs::nghttpd(&pair.server, PORT)?;
        fs::write(root.join("page"), "spoken in HTTP/2\n")?;
        let url = format!("http://{}/page", pair.server.at(PORT));
        let page = pair.client.run(["nghttp", &url])?.success()?;
        ensure!(page == "spoken in HTTP/2\n", "{page}");
        let load =
            pair.client.run(["h2load", "-n", "400", "-c", "4", "-m", "20", &url])?.success()?;
        ensure!(load.contains("400 succeeded, 0 failed, 0 errored, 0 timeout"), "{load}");
        pair.agents[1].wait_flow("over mTLS", Flow::is_mtls)?;
        Ok(())
    });
}

#[test]
fn a_database_with_its_own_client() {
    scenario("programs-redis", |net| {
        let pair = Pair::meshed(net)?;
        let _redis = programs::redis(&pair.server, 6379)?;
        let host = pair.server.v4.to_string();
        let cli = |words: &[&str]| {
            pair.client.run(["redis-cli", "-h", &host].iter().chain(words))?.success()
        };
        ensure!(cli(&["SET", "fruit", "pear"])?.trim() == "OK");
        ensure!(cli(&["GET", "fruit"])?.trim() == "pear");
        let clients = cli(&["CLIENT", "LIST"])?;
        ensure!(clients.contains(&format!(" addr={}:", pair.client.v4)), "{clients}");
        let benchmark = [
            "redis-benchmark",
            "-h",
            &host,
            "-n",
            "2000",
            "-c",
            "10",
            "-P",
            "4",
            "-q",
            "-t",
            "set,get",
        ];
        let output = pair.client.run(benchmark)?;
        ensure!(output.status.success() && !output.stderr.contains("rror"), "{output}");
        pair.agents[1].wait_flow("over mTLS", Flow::is_mtls)?;
        Ok(())
    });
}

#[test]
fn a_server_that_speaks_first() {
    scenario("programs-banner", |net| {
        let pair = Pair::meshed(net)?;
        let banner = "220 ready\r\n".to_owned();
        let spec = ServeSpec { banner, ..ServeSpec::both_families(PORT, Talk::Exchange) };
        let _service = probe::serve(&pair.server, &spec)?;
        // The client says nothing, and does not end its direction: it waits for the server, as
        // SMTP's does.
        let silent = DialSpec {
            read_bytes: Some(11),
            ..DialSpec::new(pair.server.at(PORT), Talk::Exchange)
        };
        let seen = probe::dial(&pair.client, &silent)?;
        ensure!((&*seen.first, seen.end) == ("220 ready\\r\\n", End::Closed), "{seen:?}");
        // No agent waits for a first word: half a second is long on any machine.
        ensure!(seen.first_byte_us.is_some_and(|us| us < 500_000), "{seen:?}");
        let talk = probe::dial(&pair.client, &DialSpec::say(pair.server.at6(PORT), "EHLO"))?;
        ensure!((&*talk.first, talk.end) == ("220 ready\\r\\nEHLO", End::Fin), "{talk:?}");
        Ok(())
    });
}
