//! A worker: `cargo run --example group_queue -- 127.0.0.1:7700 GROUP TOPIC`. Start as many as there is work for; a
//! record whose body begins with `bad` fails and becomes a dead letter in the end.

use ringmq_client::{Client, ClientConfig, GroupConfig, QueueConfig};
use std::error::Error;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:7700".to_owned());
    let group = arguments.next().unwrap_or_else(|| "workers".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "hello".to_owned());
    let client = Client::connect(ClientConfig::new(server)).await?;
    let mut consumer =
        client.queue_consumer(GroupConfig::new(group).topic(topic), QueueConfig::default()).await?;
    loop {
        let record = tokio::select! {
            record = consumer.next() => record?,
            _ = tokio::signal::ctrl_c() => break,
        };
        if record.body.starts_with(b"bad") {
            println!(
                "{} failed for the {}. time: {:?}",
                record.offset,
                record.attempt,
                consumer.retry(&record).await?
            );
        } else {
            consumer.ack(&record).await?;
            println!("{} is done", record.offset);
        }
    }
    consumer.close().await;
    Ok(())
}
