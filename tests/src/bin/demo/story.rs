//! The story, chapter by chapter. Each line is told only after this very run has observed it.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use tests::{capture::Recording, flow::spiffe_id, tell::Teller};

use crate::shop::{CART_SERVICE, HTTP, REDIS, SECRET, Shop, curl};

/// How many requests `legacy` makes.
const LEGACY_REQUESTS: u64 = 10;

pub(crate) fn tell(shop: &Shop<'_>, tell: &mut Teller) -> Result<()> {
    cast(shop, tell);
    plaintext(shop, tell)?;
    label(shop, tell)?;
    encrypted(shop, tell)?;
    callers(shop, tell)?;
    untouched(shop, tell)?;
    strict(shop, tell)
}

fn cast(shop: &Shop<'_>, tell: &mut Teller) {
    tell.chapter("Two nodes, five pods, two agents; no pod is in the mesh yet");
    let [one, two] = &shop.nodes;
    for (node, pods) in
        [(one, vec![&shop.web, &shop.db, &shop.legacy]), (two, vec![&shop.cart, &shop.stranger])]
    {
        let pods: Vec<String> =
            pods.iter().map(|p| format!("{}/{} {}", p.namespace, p.name, p.v4)).collect();
        tell.quote(&format!("{} ({}): {}", node.name, node.address(), pods.join(", ")));
    }
}

/// The request of the story, and what went over the link meanwhile.
fn request(shop: &Shop<'_>, tell: &Teller) -> Result<Recording> {
    let to = shop.cart.at(HTTP);
    let capture = shop.nodes[0].capture()?;
    tell.command(&format!("curl -H '{SECRET}' http://{to}/        # in pod shop/web"));
    let page = curl(&shop.web, &to.to_string())?;
    let recording = capture.stop()?;
    ensure!(page == format!("cart: two pears, {}\n", shop.web.v4), "cart answered {page:?}");
    Ok(recording)
}

fn plaintext(shop: &Shop<'_>, tell: &mut Teller) -> Result<()> {
    tell.chapter("Before: everybody on the link between the nodes can read along");
    let recording = request(shop, tell)?;
    let conn = recording.one_to(shop.cart.at(HTTP))?;
    let text = String::from_utf8_lossy(&conn.to_server);
    ensure!(text.contains(SECRET), "the secret is not in {text:?}");
    tell.saw(&format!("tcpdump on node1's uplink, {} -> {}:", conn.client, conn.server));
    let interesting = |line: &&str| line.starts_with("GET") || line.contains(SECRET);
    tell.quote(&text.lines().filter(interesting).collect::<Vec<_>>().join("\n"));
    Ok(())
}

fn label(shop: &Shop<'_>, tell: &mut Teller) -> Result<()> {
    tell.chapter("One label; no restart, nothing changed in the pods");
    let pid = shop.redis.pid();
    tell.command("kubectl label namespace shop nodemesh.dev/mesh=enabled   # here: the same object, as a file");
    let start = Instant::now();
    shop.net.objects().label_namespace("shop", Some("enabled"))?;
    shop.agents[0].wait_enrolled(&[&shop.web, &shop.db])?;
    shop.agents[1].wait_enrolled(&[&shop.cart])?;
    shop.agents[0].wait_peers(1)?;
    shop.agents[1].wait_peers(2)?;
    let took = start.elapsed().as_millis();
    tell.saw(&format!("web, cart and db are enrolled, and both agents know it, {took} ms later"));
    let answer = shop.redis(&shop.db, &["INFO", "server"])?.success()?;
    ensure!(answer.contains(&format!("process_id:{pid}\r")), "redis was restarted: {answer}");
    tell.saw(&format!("db's redis is still process {pid}"));
    Ok(())
}

fn encrypted(shop: &Shop<'_>, tell: &mut Teller) -> Result<()> {
    tell.chapter("After: the same request, now mutual TLS 1.3 on the link");
    let recording = request(shop, tell)?;
    ensure!(
        !recording.contains(SECRET),
        "the secret is still on the link: {:?}",
        recording.quote(SECRET)
    );
    let conn = recording.one_to(shop.cart.at(HTTP))?;
    let version = conn.tls().with_context(|| format!("not TLS: {conn}"))?;
    ensure!(version.is_1_3(), "{version:?}");
    ensure!(conn.client.ip() == shop.web.v4, "{conn}");
    tell.saw(&format!(
        "tcpdump again, {} -> {}: TLS 1.3 and nothing else:",
        conn.client, conn.server
    ));
    let (there, back) = (hex(&conn.to_server), hex(&conn.to_client));
    tell.quote(&format!("ClientHello {there} …  ServerHello {back} …"));
    tell.saw("same addresses, same port 8080; the card number is nowhere in the capture");
    let log = shop.nginx.log()?;
    let line = log.last().context("nginx logged nothing")?;
    ensure!(line.starts_with(&format!("{}:", shop.web.v4)), "nginx logged {line}");
    tell.saw("cart's nginx still sees web's own address in its access log:");
    tell.quote(line);
    let page = curl(&shop.web, CART_SERVICE)?;
    ensure!(page.contains(&shop.web.v4.to_string()), "through the service: {page:?}");
    shop.agents[0].wait_flow("of the service", |flow| {
        flow.service.as_deref() == Some("shop/cart") && flow.is_mtls()
    })?;
    tell.saw(&format!("the service address {CART_SERVICE} leads to cart too, over mutual TLS"));
    Ok(())
}

fn callers(shop: &Shop<'_>, tell: &mut Teller) -> Result<()> {
    tell.chapter("Who talked to whom");
    tell.command("redis-cli -h db SET pears 2                              # in pod shop/cart");
    let answer = shop.redis(&shop.cart, &["SET", "pears", "2"])?.success()?;
    ensure!(answer.trim() == "OK", "redis answered {answer:?}");
    tell.command("mesh-agent flows");
    for (agent, client, server, port) in [
        (&shop.agents[0], &shop.web, &shop.cart, HTTP),
        (&shop.agents[1], &shop.cart, &shop.db, REDIS),
    ] {
        let flow = agent.wait_flow("over mTLS", |flow| {
            flow.direction == "outbound" && flow.between(client, server, port) && flow.is_mtls()
        })?;
        let ids = [client, server].map(|pod| spiffe_id(&pod.namespace, &pod.name));
        let (from, to) = (flow.client.identity.as_ref(), flow.server.identity.as_ref());
        ensure!((from, to) == (Some(&ids[0]), Some(&ids[1])), "{flow:?}");
        tell.saw(&format!("{} -> {}, port {port}", ids[0], ids[1]));
        let tls = [&flow.security.version, &flow.security.key_exchange]
            .map(|t| t.clone().unwrap_or_default());
        let bytes = format!("{} bytes there, {} back", flow.bytes.sent, flow.bytes.received);
        tell.quote(&format!("{}, {bytes}", tls.join(" ")));
    }
    Ok(())
}

fn untouched(shop: &Shop<'_>, tell: &mut Teller) -> Result<()> {
    tell.chapter("legacy is not in the mesh: the agents never see its traffic");
    let before = [shop.agents[0].status()?, shop.agents[1].status()?];
    for _ in 0..LEGACY_REQUESTS {
        curl(&shop.legacy, &shop.cart.at(HTTP).to_string())?;
    }
    let after = [shop.agents[0].status()?, shop.agents[1].status()?];
    tell.command(&format!(
        "curl http://{}/   # in pod old/legacy, {LEGACY_REQUESTS} times",
        shop.cart.at(HTTP)
    ));
    for (before, after) in before.iter().zip(&after) {
        let (before, after) = (&before.counters, &after.counters);
        ensure!(before == after, "the counters moved from {before:?} to {after:?}");
    }
    tell.saw("answered; both agents' counts of connections and bytes have not moved");
    let counts = [(0, "not_enrolled"), (1, "inbound_plaintext")];
    let counts =
        counts.map(|(node, code)| (code, after[node].verdict(code) - before[node].verdict(code)));
    ensure!(counts.iter().all(|(_, count)| *count == LEGACY_REQUESTS), "{counts:?}");
    let [(out, _), (inn, _)] = counts;
    tell.saw(&format!("the kernel saw each and let it pass: +{LEGACY_REQUESTS} {out} on node1, +{LEGACY_REQUESTS} {inn} on node2"));
    Ok(())
}

fn strict(shop: &Shop<'_>, tell: &mut Teller) -> Result<()> {
    tell.chapter("db turns strict: a stranger is refused, and told apart");
    tell.command(
        "redis-cli -h db GET pears                                # in pod elsewhere/stranger",
    );
    let pears = shop.redis(&shop.stranger, &["GET", "pears"])?.success()?;
    ensure!(pears.trim() == "2", "redis answered {pears:?}");
    tell.saw("while db is permissive, the stranger reads it: 2");
    tell.command("kubectl annotate pod db nodemesh.dev/mode=strict");
    shop.net.objects().annotate_pod(&shop.db, tests::objects::MODE, Some("strict"))?;
    let refusal = tests::eventually(tests::agent::SOON, || {
        let output = shop.redis(&shop.stranger, &["GET", "pears"])?;
        ensure!(!output.status.success(), "the stranger is still let in: {output}");
        Ok(output.stderr + &output.stdout)
    })?;
    tell.saw("now the stranger gets:");
    tell.quote(refusal.lines().next().unwrap_or_default());
    let flow = shop.agents[0].wait_flow("refused", |flow| {
        flow.between(&shop.stranger, &shop.db, REDIS) && flow.verdict == "refused_strict"
    })?;
    tell.saw(&format!("and node1 has recorded why ({}):", flow.verdict));
    tell.quote(&flow.reason);
    let pears = shop.redis(&shop.cart, &["GET", "pears"])?.success()?;
    ensure!(pears.trim() == "2", "redis answered {pears:?}");
    tell.saw("cart, which can prove its identity, reads it as before: 2");
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
