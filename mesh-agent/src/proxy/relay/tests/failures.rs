//! soon
use super::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn probe() {
    let mesh = Mesh::new().await;
    for _ in 0..200 {
        let (mut a, mut b, carried) = mesh_pair(&mesh).await;
        let apps = async move {
            a.write_all(&[7; 24487]).await.unwrap();
            let mut got = vec![0; 24487];
            b.write_all(&[1; 26]).await.unwrap();
            b.read_exact(&mut got).await.unwrap();
            a.shutdown().await.unwrap();
            a.set_zero_linger().unwrap();
            drop(a);
            let r = b.read(&mut got).await;
            b.shutdown().await.ok();
            r.map_err(|e| e.kind())
        };
        let (r, (a, b)) = in_time("x", async { tokio::join!(apps, carried) }).await;
        println!("{r:?} {:?} {:?}", a.end, b.end);
    }
}
