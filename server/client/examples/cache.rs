//! A cache that starts with the latest value of each key and then follows: `cargo run --example cache --
//! 127.0.0.1:7700 TOPIC`.

use ringmq_client::{Client, ClientConfig, ConsumerConfig};
use std::error::Error;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:7700".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "prices".to_owned());
    let client = Client::connect(ClientConfig::new(server)).await?;
    let mut snapshot = client.latest_then_follow(&topic, ConsumerConfig::default()).await?;
    match snapshot.complete_since_ms {
        None => println!("{} keys, all that were ever written", snapshot.latest.len()),
        Some(since) => println!("{} keys, all that were written since {since} ms", snapshot.latest.len()),
    }
    loop {
        let record = snapshot.follow.next().await?;
        let key = record.key.as_deref().map(String::from_utf8_lossy);
        println!("{key:?} = {:?}", String::from_utf8_lossy(&record.body));
    }
}
