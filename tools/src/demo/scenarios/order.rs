//! Distributed consistency: an order and its stock become visible together, or never; whoever dies in between is asked.

use super::{Report, Stage, Trouble, columns, count, in_time, producer, row, said, span, until};
use ringmq_client::{
    CheckedTransaction, Client, ClientError, ConsumerConfig, ErrorCode, RecordBuf, Resolution,
    TransactionConfig, TransactionEnd, TransactionError, TransactionState, TransactionalProducer,
};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Age at which the server asks. The default is 6 s.
const CHECK_AFTER: Duration = Duration::from_millis(500);

/// What the checker was asked: the order, which check it was, and when.
type Asked = Arc<Mutex<Vec<(String, u16, Instant)>>>;

/// The shop's own database says: orders that begin with `paid` were paid.
async fn shop(client: &Client, group: &str, asked: Option<Asked>) -> Result<TransactionalProducer, Trouble> {
    let config = TransactionConfig { check_after: Some(CHECK_AFTER), ..TransactionConfig::default() };
    let checker = move |checked: CheckedTransaction| {
        let body = checked.records.first().map(|record| record.body.clone()).unwrap_or_default();
        let order = String::from_utf8_lossy(&body).into_owned();
        let resolution = match order.starts_with("paid") {
            true => Resolution::Commit,
            false => Resolution::Rollback,
        };
        if let Some(asked) = &asked {
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.push((order, checked.attempt, Instant::now()));
        }
        async move { resolution }
    };
    client.transactional_producer(group, config, checker).await.map_err(said("register"))
}

/// Bodies of all that is visible now, in order.
async fn visible(client: &Client, topic: &str) -> Result<Vec<String>, Trouble> {
    in_time("read", async {
        let consumer = client.consumer(topic, ConsumerConfig::default()).await;
        let mut consumer = consumer.map_err(said("read"))?;
        let ends = consumer.ends().await.map_err(said("read"))?;
        let mut bodies = Vec::new();
        while !consumer.reached(&ends) {
            let batch = consumer.next_batch(1_024).await.map_err(said("read"))?;
            bodies.extend(batch.iter().map(|record| String::from_utf8_lossy(&record.body).into_owned()));
        }
        bodies.sort();
        Ok(bodies)
    })
    .await
}

/// Both halves of an order, on disk and invisible.
async fn halves(
    producer: &TransactionalProducer,
    topics: (&str, &str),
    order: &str,
) -> Result<ringmq_client::Transaction, Trouble> {
    let transaction = producer.begin();
    for topic in [topics.0, topics.1] {
        let record = RecordBuf::new(order.to_owned()).key(order.to_owned());
        let sent = transaction.send(topic, record, None).await.map_err(said("half message"))?;
        sent.await.map_err(said("half message"))?;
    }
    Ok(transaction)
}

/// Plays it.
pub(crate) async fn play(stage: &Stage) -> Result<Report, Trouble> {
    let orders = u64::from(stage.size(100, 20));
    let client = stage.client().await?;
    let topic = stage.topic(&client, "orders", 4).await?;
    let stock = stage.topic(&client, "stock", 2).await?;
    let group = stage.name("shop");
    let topics = (&*topic, &*stock);

    // A producer that dies between the half messages and the commit: one order was paid, one was not.
    let mortal_client = stage.client().await?;
    let mortal = shop(&mortal_client, &group, None).await?;
    let left = Instant::now();
    let open = halves(&mortal, topics, "paid, then died").await?.leave();
    let gone = halves(&mortal, topics, "never paid, then died").await?.leave();
    let (Some(open), Some(gone)) = (open, gone) else { return Err("no transaction was begun".to_owned()) };
    drop(mortal);
    drop(mortal_client);

    // Nobody sees them, and nobody waits for them.
    let plain = producer(&client, &topic).await?;
    let since = Instant::now();
    let ack = plain.send(RecordBuf::new("plain"), Some(0)).await.map_err(said("publish"))?;
    ack.await.map_err(said("publish"))?;
    let seen_early = visible(&client, &topic).await?;
    let waited = since.elapsed();

    // Another process of the group answers for the dead one, and goes on.
    let asked = Asked::default();
    let shop = shop(&client, &group, Some(asked.clone())).await?;
    let since = Instant::now();
    let mut committed = 0;
    let mut rolled_back = 0;
    for order in 0..orders {
        let paid = order % 4 != 3;
        let name = format!("{} {order}", if paid { "paid" } else { "unpaid" });
        let transaction = halves(&shop, topics, &name).await?;
        // While a server is killed the checker may come first; it says the same.
        let result = match paid {
            true => transaction.commit().await.map(drop),
            false => transaction.rollback().await,
        };
        match result {
            Ok(()) | Err(TransactionError::OutcomeUnknown(_)) => {}
            Err(error) => return Err(format!("order {order}: {error}")),
        }
        committed += u64::from(paid);
        rolled_back += u64::from(!paid);
    }
    let took = since.elapsed();

    let state = async |id| {
        let shown = client.show_transaction(id).await.map_err(said("txn show"))?;
        Ok::<_, Trouble>(shown.0.state)
    };
    until("check-back", async || {
        let ends = [state(open).await?, state(gone).await?];
        Ok(ends.iter().all(|state| matches!(state, TransactionState::Committed | TransactionState::Aborted)))
    })
    .await?;
    let wanted = {
        let mut wanted: BTreeSet<String> =
            (0..orders).filter(|order| order % 4 != 3).map(|order| format!("paid {order}")).collect();
        wanted.insert("paid, then died".to_owned());
        wanted
    };
    until("all of it visible", async || {
        Ok(visible(&client, &stock).await?.len() >= wanted.len()
            && visible(&client, &topic).await?.len() > wanted.len())
    })
    .await?;
    let in_stock = visible(&client, &stock).await?;
    let mut in_orders = visible(&client, &topic).await?;
    in_orders.retain(|body| body != "plain");

    // Again is fine, the opposite is refused, and neither has an effect.
    let again = client.resolve_transaction(open, TransactionEnd::Commit).await;
    let opposite = client.resolve_transaction(open, TransactionEnd::Abort).await;
    let refused = match &opposite {
        Err(ClientError::Refused(refused)) => refused.code() == Some(ErrorCode::TransactionResolved),
        _ => false,
    };

    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut report = Report {
        title: "order",
        story: format!("{} orders, each with its stock in one transaction over two topics", count(orders)),
        picture: Vec::new(),
        claims: Vec::new(),
    };
    let check = |order: &str| asked.iter().find(|asked| asked.0 == order);
    let when = |order: &str| {
        check(order)
            .map_or("-".to_owned(), |(_, attempt, at)| format!("check {attempt}, after {}", span(*at - left)))
    };
    report.picture = columns(&[
        row([&"transactions", &"number", &"ended by", &"visible"]),
        row([&"committed", &count(committed), &"the producer", &"in both topics"]),
        row([&"rolled back", &count(rolled_back), &"the producer", &"never"]),
        row([&"paid, then died", &1, &when("paid, then died"), &"in both topics"]),
        row([&"not paid, then died", &1, &when("never paid, then died"), &"never"]),
    ]);
    let exact = |found: &[String]| found.len() == wanted.len() && found.iter().all(|it| wanted.contains(it));
    report.claim(
        "half messages are invisible, and block nobody",
        !seen_early.iter().any(|body| body != "plain") && seen_early.len() == 1,
        format!("a record behind them was published and read in {}", span(waited)),
    );
    report.claim(
        "all of an order, once, or nothing",
        exact(&in_orders) && exact(&in_stock),
        format!(
            "{} of {} in both topics; {} transactions/s",
            in_stock.len(),
            wanted.len(),
            rate(orders, took)
        ),
    );
    report.claim(
        "the dead producer's order is checked back",
        state(open).await? == TransactionState::Committed
            && (stage.kills || check("paid, then died").is_some()),
        format!("paid: {}", when("paid, then died")),
    );
    report.claim(
        "and what was not paid is rolled back",
        state(gone).await? == TransactionState::Aborted
            && !in_orders
                .iter()
                .chain(&in_stock)
                .any(|body| body.contains("npaid") || body.contains("never")),
        format!("not paid: {}", when("never paid, then died")),
    );
    report.claim(
        "an end is answered truthfully",
        again.is_ok() && refused,
        "commit again: done; rollback of it: refused",
    );
    Ok(report)
}

fn rate(number: u64, took: Duration) -> String {
    count((number as f64 / took.as_secs_f64().max(1e-9)) as u64)
}
