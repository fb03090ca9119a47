//! Prints a topic from its start and follows it: `cargo run --example consume -- 127.0.0.1:7700 TOPIC`.

use ringmq_client::{Client, ClientConfig, ConsumerConfig, Start};
use std::error::Error;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:7700".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "hello".to_owned());

    let client = Client::connect(ClientConfig::new(server)).await?;
    let config = ConsumerConfig { start: Start::Earliest, auto_create: true, ..Default::default() };
    let mut consumer = client.consumer(&topic, config).await?;
    loop {
        let record = consumer.next().await?;
        println!(
            "{}[{}]@{}  {}",
            topic,
            record.partition,
            record.offset,
            String::from_utf8_lossy(&record.body)
        );
    }
}
