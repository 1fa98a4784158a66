use super::*;
#[tokio::test]
async fn sizes() {
    let mesh = Mesh::new().await;
    let (client, _server) = mesh.connection().await;
    println!(
        "Session {} Channel {} Traffic? Relay {} Up {} Down {} End {} Carried {}",
        size_of::<Session>(),
        size_of::<Channel>(),
        size_of::<Relay<'static>>(),
        size_of::<Up>(),
        size_of::<Down>(),
        size_of::<End>(),
        size_of::<Carried>()
    );
    let (_a, agent_a) = tcp_pair().await;
    let c = Counters::default();
    let f = carry(client, AppStream::new(agent_a).unwrap(), &c, CarryOptions::default());
    println!("carry {}", size_of_val(&f));
    let (a, _b) = tcp_pair().await;
    let tls = mesh.client();
    let f = Session::connect(a, &tls, soon());
    println!("connect {}", size_of_val(&f));
    let (a, b) = tcp_pair().await;
    let f = relay_plain(AppStream::new(a).unwrap(), AppStream::new(b).unwrap(), &c, None);
    println!("plain {}", size_of_val(&f));
}
