//! What a carried connection allocates: nothing for a round trip, and nothing for a record.

use mesh_agent::proxy::relay::{AppStream, ByteCounts, CarryOptions, End, carry};
use mesh_wire::testing::{Mesh, in_time, tcp_pair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{alone, counting, tell};

const ROUND_TRIPS: u64 = 1000;
const STREAM_BYTES: usize = 64 << 20;

/// Allocations of both agents' sides together, over all round trips. They may be few, not one for
/// each.
const OF_ROUND_TRIPS: u64 = 5;
/// The same of a stream of some 4,000 records, whose buffers grow once and are given back whenever
/// nothing moves.
const OF_STREAM: u64 = 20;

#[test]
fn a_connection_that_is_carried_allocates_nothing_for_what_it_carries() {
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(in_time("the connection", async {
        let (near, far) = Mesh::new().await.connection().await;
        let ((mut client, agent), (agent_there, mut server)) = (tcp_pair().await, tcp_pair().await);
        let apps = [agent, agent_there].map(|tcp| AppStream::new(tcp).unwrap());
        let [app, app_there] = apps;
        let counters = [ByteCounts::default(), ByteCounts::default()];
        let play = async move {
            let mut message = [7; 128];
            let (mut big, piece) = (vec![7; 256 * 1024], vec![5; 64 * 1024]);
            let mut before = 0;
            for trip in 0..ROUND_TRIPS + 100 {
                if trip == 100 {
                    before = counting::count();
                }
                client.write_all(&message).await.unwrap();
                server.read_exact(&mut message).await.unwrap();
                server.write_all(&message).await.unwrap();
                client.read_exact(&mut message).await.unwrap();
            }
            let of_trips = counting::count() - before;
            let mut of_stream = 0;
            for count in [STREAM_BYTES / 8, STREAM_BYTES] {
                let before = counting::count();
                let write = async {
                    for _ in 0..count / piece.len() {
                        client.write_all(&piece).await.unwrap();
                    }
                };
                let read = async {
                    let mut left = count;
                    while left > 0 {
                        left -= server.read(&mut big).await.unwrap();
                    }
                };
                tokio::join!(write, read);
                of_stream = counting::count() - before;
            }
            drop((client, server));
            [of_trips, of_stream]
        };
        let (near, far, [of_trips, of_stream]) = tokio::join!(
            Box::pin(carry(near, app, &counters[0], CarryOptions::default())),
            Box::pin(carry(far, app_there, &counters[1], CarryOptions::default())),
            Box::pin(play),
        );
        let figure =
            format!("allocations of {ROUND_TRIPS} round trips {of_trips}, of a stream {of_stream}");
        tell(&figure);
        assert!(matches!((near.end, far.end), (End::Finished { .. }, End::Finished { .. })));
        assert!(of_trips <= OF_ROUND_TRIPS, "{of_trips} for {ROUND_TRIPS} round trips");
        assert!(of_stream <= OF_STREAM, "{of_stream} for a stream");
    }));
}
