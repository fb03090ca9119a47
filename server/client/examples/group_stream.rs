//! A member of a group that reads its partitions in order: `cargo run --example group_stream -- 127.0.0.1:7700 GROUP
//! TOPIC [FILTER]`. Start several: each gets its share, and another one's when that ends.

use ringmq_client::{Client, ClientConfig, GroupConfig, StreamConfig};
use std::error::Error;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:7700".to_owned());
    let group = arguments.next().unwrap_or_else(|| "readers".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "hello".to_owned());
    let filter = arguments.next().unwrap_or_else(|| "*".to_owned());
    let client = Client::connect(ClientConfig::new(server)).await?;
    let group = GroupConfig::new(group).filtered(topic, filter);
    let mut consumer = client.group_consumer(group, StreamConfig::default()).await?;
    loop {
        let record = tokio::select! {
            record = consumer.next() => record?,
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
    Ok(consumer.close(false).await?)
}
