//! An order with a half message: `cargo run --example transactions -- 127.0.0.1:7700`. Run it with `die` behind the
//! address to leave the transaction open, then again without: the second run is asked what became of it.

use ringmq_client::{CheckedTransaction, Client, ClientConfig, RecordBuf, Resolution, TransactionConfig};
use std::error::Error;

/// The program's own books: here, the key of the message tells.
async fn checker(asked: CheckedTransaction) -> Resolution {
    let key = asked.records.first().and_then(|record| record.key.as_deref().map(String::from_utf8_lossy));
    println!("asked for the {}. time what became of {} ({key:?})", asked.attempt, asked.id);
    Resolution::Commit
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:7700".to_owned());
    let client = Client::connect(ClientConfig::new(server)).await?;
    client.create_topic("paid", 1, true).await?;
    let producer = client.transactional_producer("orders", TransactionConfig::default(), checker).await?;
    if arguments.next().as_deref() == Some("die") {
        let transaction = producer.begin();
        transaction.send("paid", RecordBuf::new("order 7").key("7"), None).await?.await?;
        println!("left open: {:?}", transaction.leave());
        return Ok(());
    }
    producer
        .in_transaction(async |transaction| {
            transaction.send("paid", RecordBuf::new("order 8").key("8"), None).await?;
            // The local part of the work belongs here; an error rolls the message back.
            Ok::<_, Box<dyn Error>>(())
        })
        .await?;
    println!("order 8 is paid; waiting for questions, end with Ctrl-C");
    tokio::signal::ctrl_c().await?;
    Ok(())
}
