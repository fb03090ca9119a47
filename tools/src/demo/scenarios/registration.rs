//! Asynchronous decoupling: a registration answers at once; mail and SMS come from groups of their own.

use super::{
    Report, Stage, Trouble, columns, count, in_time, number, passes, producer, publish, row, said, span,
    until,
};
use ringmq_client::{
    Client, GroupConfig, GroupOptions, QueueConfig, RecordBuf, ReplayOutcome, SettleOutcome,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Deliveries before a dead letter.
const ATTEMPTS: u16 = 3;
/// The registration whose mail never works.
const POISON: u64 = 7;

/// What the members of a group did.
#[derive(Debug, Default)]
struct Ledger {
    received: u64,
    again: u64,
    acked: BTreeMap<u64, u32>,
    /// Came although its acknowledgement was durable.
    after_ack: u64,
    dead: BTreeSet<u64>,
    wrong_tag: u64,
    trouble: Option<Trouble>,
}

type Shared = Arc<Mutex<Ledger>>;

fn on<T>(ledger: &Shared, work: impl FnOnce(&mut Ledger) -> T) -> T {
    work(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A member that sends mails, or messages: every tenth fails the first time, and one always.
async fn worker(
    client: Client,
    group: String,
    topic: String,
    poisoned: bool,
    ledger: Shared,
) -> Result<JoinHandle<()>, Trouble> {
    let options = GroupOptions {
        max_attempts: Some(ATTEMPTS),
        backoff: Some(vec![Duration::from_millis(50)]),
        invisible: Some(Duration::from_secs(5)),
        ..GroupOptions::default()
    };
    let config = GroupConfig::new(group).filtered(topic, "registered").options(options);
    let few = QueueConfig { prefetch: 64, ..QueueConfig::default() };
    let mut consumer = client.queue_consumer(config, few).await.map_err(said("join"))?;
    Ok(tokio::spawn(async move {
        loop {
            let record = match consumer.next().await {
                Ok(record) => record,
                Err(error) if passes(&error) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                Err(error) => {
                    on(&ledger, |ledger| ledger.trouble = Some(error.to_string()));
                    return;
                }
            };
            let Some(id) = number(&record.body) else { continue };
            on(&ledger, |ledger| {
                ledger.received += 1;
                ledger.again += u64::from(record.attempt > 1);
                ledger.after_ack += u64::from(ledger.acked.contains_key(&id));
                ledger.wrong_tag += u64::from(record.tag.as_deref() != Some(b"registered"));
            });
            let fails = poisoned && (id == POISON || (id % 10 == 0 && record.attempt == 1));
            let settled = if fails { consumer.retry(&record) } else { consumer.ack(&record) };
            let ledger = ledger.clone();
            tokio::spawn(async move {
                match settled.await {
                    Ok(SettleOutcome::DeadLetter) => drop(on(&ledger, |ledger| ledger.dead.insert(id))),
                    Ok(SettleOutcome::Done) if !fails => {
                        on(&ledger, |ledger| *ledger.acked.entry(id).or_default() += 1);
                    }
                    _ => {}
                }
            });
        }
    }))
}

/// Registrations that are dead letters.
async fn dead_letters(client: &Client, letters: &str) -> Result<BTreeSet<u64>, Trouble> {
    let described = client.describe_topic(letters).await.map_err(said("dead letters"))?;
    let mut dead = BTreeSet::new();
    for (partition, info) in (0..).zip(&described.partitions) {
        let mut offset = info.log_start;
        while offset < info.visible_end {
            let fetched = client.fetch(&described.topic, partition, offset, 1 << 20, Duration::ZERO).await;
            let fetched = fetched.map_err(said("dead letters"))?;
            dead.extend(fetched.records.iter().filter_map(|record| number(&record.body)));
            offset = fetched.next_offset.max(offset + 1);
        }
    }
    Ok(dead)
}

/// Plays it.
pub(crate) async fn play(stage: &Stage) -> Result<Report, Trouble> {
    let users = u64::from(stage.size(2_000, 200));
    let client = stage.client().await?;
    let topic = stage.topic(&client, "users", 4).await?;
    let (mail, sms) = (Shared::default(), Shared::default());
    let (mail_group, sms_group) = (stage.name("mail"), stage.name("sms"));
    let mut workers = Vec::new();
    for _ in 0..2 {
        let client = stage.client().await?;
        workers.push(worker(client, mail_group.clone(), topic.clone(), true, mail.clone()).await?);
    }
    workers.push(worker(stage.client().await?, sms_group.clone(), topic.clone(), false, sms.clone()).await?);

    let producer = producer(&client, &topic).await?;
    let records = (0..users).flat_map(|id| {
        let record =
            |tag: &'static str| RecordBuf::new(format!("{id} has {tag}")).key(format!("user-{id}")).tag(tag);
        std::iter::once(record("registered")).chain((id % 4 == 0).then(|| record("logged-in")))
    });
    let (sent, took) = publish(&producer, records).await?;

    let letters = format!("%DLQ%{mail_group}");
    until("mail and sms", async || {
        if stage.kills {
            // The answer that says so may have been lost.
            let dead = dead_letters(&client, &letters).await?;
            on(&mail, |it| it.dead.extend(dead));
        }
        for ledger in [&mail, &sms] {
            if let Some(trouble) = on(ledger, |ledger| ledger.trouble.clone()) {
                return Err(trouble);
            }
        }
        Ok(on(&mail, |it| it.acked.len() + it.dead.len()) as u64 >= users
            && on(&sms, |it| it.acked.len()) as u64 >= users)
    })
    .await?;
    workers.iter().for_each(JoinHandle::abort);

    // The mail server is mended: the dead letter goes back, once however often that is asked.
    let mut outcomes = [(0, 0); 2];
    in_time("replay", async {
        let described = client.describe_topic(&letters).await.map_err(said("dead letters"))?;
        for outcomes in &mut outcomes {
            for (partition, info) in described.partitions.iter().enumerate() {
                let offsets = (info.log_start..info.visible_end).collect::<Vec<_>>();
                let partition = u32::try_from(partition).unwrap_or(0);
                let replayed = client.replay_dead_letters(&letters, partition, &offsets, false).await;
                for outcome in replayed.map_err(said("replay"))? {
                    match outcome {
                        ReplayOutcome::Replayed(_) => outcomes.0 += 1,
                        ReplayOutcome::Earlier(_) => outcomes.1 += 1,
                        ReplayOutcome::Refused(refused) => return Err(refused.to_string()),
                    }
                }
            }
        }
        Ok(())
    })
    .await?;

    let mut report = Report {
        title: "registration",
        story: format!("{} users register; mail and SMS are sent by groups of their own", count(users)),
        picture: Vec::new(),
        claims: Vec::new(),
    };
    let mut rows = vec![row([&"group", &"members", &"received", &"acked", &"again", &"dead letters"])];
    for (name, members, ledger) in [("mail", 2, &mail), ("sms", 1, &sms)] {
        rows.push(on(ledger, |it| {
            row([
                &name,
                &members,
                &count(it.received),
                &count(it.acked.len() as u64),
                &it.again,
                &it.dead.len(),
            ])
        }));
    }
    report.picture = columns(&rows);
    let complete = |ledger: &Shared| on(ledger, |it| (it.acked.len() + it.dead.len()) as u64 == users);
    report.claim(
        "nobody waits for mail or SMS",
        sent >= users,
        format!("{} records on disk in {}", count(sent), span(took)),
    );
    report.claim(
        "each group gets each registration",
        complete(&mail) && complete(&sms),
        format!("{0} of {0} in both groups", count(users)),
    );
    let after_ack = on(&mail, |it| it.after_ack) + on(&sms, |it| it.after_ack);
    report.claim("what is acknowledged never comes again", after_ack == 0, format!("{after_ack} came again"));
    let wrong = on(&mail, |it| it.wrong_tag) + on(&sms, |it| it.wrong_tag);
    report.claim(
        "the server filters",
        wrong == 0,
        format!("{} logins, {wrong} of them delivered", count(sent - users)),
    );
    let dead = on(&mail, |it| it.dead.clone());
    report.claim(
        "what fails comes again, then is a dead letter",
        dead == BTreeSet::from([POISON]) && on(&mail, |it| it.again) >= users / 10,
        format!("{} again, {} dead letter after {ATTEMPTS} attempts", on(&mail, |it| it.again), dead.len()),
    );
    report.claim(
        "a dead letter goes back once",
        outcomes[0].0 + outcomes[0].1 == 1 && outcomes[1] == (0, 1),
        format!("asked twice: put back {} time, then known as done", outcomes[0].0 + outcomes[1].0),
    );
    Ok(report)
}
