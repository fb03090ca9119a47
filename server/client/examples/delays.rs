//! A reminder that is cancelled, and one that comes: `cargo run --example delays -- 127.0.0.1:7700`.

use ringmq_client::{Client, ClientConfig, ConsumerConfig, ProducerConfig, RecordBuf};
use std::error::Error;
use std::time::Duration;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7700".to_owned());
    let client = Client::connect(ClientConfig::new(server)).await?;
    client.create_topic("reminders", 1, true).await?;
    let producer = client.producer("reminders", ProducerConfig::default()).await?;
    let soon = Duration::from_secs(2);
    let first = producer.send_after(RecordBuf::new("stand up"), None, soon).await?.await?;
    let second = producer.send_after(RecordBuf::new("sit down"), None, soon).await?.await?;
    println!("{} and {} wait", first.handle, second.handle);
    client.cancel_timer(second.handle).await?;
    let mut consumer = client.consumer("reminders", ConsumerConfig::default()).await?;
    println!("{:?}", String::from_utf8_lossy(&consumer.next().await?.body));
    Ok(())
}
