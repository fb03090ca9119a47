//! Publishes each line of standard input: `cargo run --example publish -- 127.0.0.1:7700 TOPIC < file`.

use ringmq_client::{Client, ClientConfig, ProducerConfig, RecordBuf};
use std::error::Error;
use std::io::BufRead;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:7700".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "hello".to_owned());

    let client = Client::connect(ClientConfig::new(server)).await?;
    let producer =
        client.producer(&topic, ProducerConfig { auto_create: true, ..Default::default() }).await?;
    for line in std::io::stdin().lock().lines() {
        // Waits for room only; `flush` below waits for the disk and tells the first failure.
        let _acknowledged = producer.send(RecordBuf::new(line?), None).await?;
    }
    producer.flush().await?;
    Ok(())
}
