//! One of many machines that all get everything: `cargo run --example broadcast -- 127.0.0.1:7700 TOPIC [NAME]`. With a
//! name it goes on where it was.

use ringmq_client::{BroadcastStart, Client, ClientConfig, GroupConfig, StreamConfig};
use std::error::Error;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:7700".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "hello".to_owned());
    let instance = arguments.next();
    let client = Client::connect(ClientConfig::new(server)).await?;
    let group = GroupConfig::new("everybody").topic(topic);
    let start = BroadcastStart::Resume;
    let mut subscriber = client.broadcast(group, instance.as_deref(), start, StreamConfig::default()).await?;
    loop {
        let record = tokio::select! {
            record = subscriber.next() => record?,
            _ = tokio::signal::ctrl_c() => break,
        };
        println!(
            "{}[{}]@{}  {}",
            record.topic,
            record.partition,
            record.offset,
            String::from_utf8_lossy(&record.body)
        );
    }
    Ok(subscriber.close(false).await?)
}
