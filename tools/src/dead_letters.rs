//! `ringmq dlq`: dead letters, and putting them back.
//!
//! A replay may be interrupted at any point and begun again: the server remembers, in the write that puts a letter
//! back, that it did, and answers *earlier* from then on.

use crate::cli::{Common, Target};
use crate::confirm::confirmed;
use crate::failure::{EXIT_FAILED, Failure};
use crate::format::{self, Shown, harmless};
use crate::link;
use crate::screen::{self, Ink, Screen, thousands};
use ringmq_client::limits::RETRY_FOR;
use ringmq_client::{
    Client, ConsumedRecord, Consumer, ConsumerConfig, DeadLetterOrigin, ErrorCode, ReplayOutcome, TopicInfo,
};
use ringmq_format::record::RecordEntry;
use ringmq_server::filter::Filter;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What is in front of a group's name in the topic of its dead letters.
const PREFIX: &str = "%DLQ%";
/// Letters put back with one request; with a rate fewer.
const BATCH: usize = 256;
/// Records taken from the consumer at once.
const READ: usize = 4_096;

const EXAMPLES: &str = "\
Examples:
  ringmq dlq ls
  ringmq dlq show mail -n 20
  ringmq dlq replay mail --where \"region = 'eu'\" --dry-run
  ringmq dlq replay mail --rate 100 --yes";

/// Dead letters: list, show, replay.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DlqArgs {
    #[command(subcommand)]
    verb: DlqVerb,
}

#[derive(Debug, clap::Subcommand)]
enum DlqVerb {
    /// List the groups that have dead letters.
    #[command(after_help = "Examples:\n  ringmq dlq ls\n  ringmq dlq ls --json | jq 'select(.records > 0)'")]
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// Show the dead letters of a group.
    #[command(
        after_help = "Examples:\n  ringmq dlq show mail\n  ringmq dlq show mail --where 'urgent || late' -n 10\n  ringmq dlq show mail --json | jq .value"
    )]
    Show {
        /// The group.
        group: String,
        /// Only what matches: tags (`a || b`) or SQL92 on properties.
        #[arg(long = "where", value_name = "EXPR", value_parser = filter)]
        filter: Option<Filter>,
        /// At most so many.
        #[arg(short = 'n', long, value_name = "COUNT")]
        count: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Put dead letters back where they came from, each at most once however often this runs.
    #[command(
        after_help = "Examples:\n  ringmq dlq replay mail --dry-run\n  ringmq dlq replay mail --rate 100 --yes\n  ringmq dlq replay mail --where \"attempt > 3 AND region = 'eu'\" --yes\n\nIt may be interrupted and run again: what is back already is not put back twice."
    )]
    Replay {
        /// The group.
        group: String,
        /// Only what matches: tags (`a || b`) or SQL92 on properties.
        #[arg(long = "where", value_name = "EXPR", value_parser = filter)]
        filter: Option<Filter>,
        /// At most so many a second.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
        /// Only say what would be put back.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        target: Target,
    },
}

/// Compiles what `--where` and `--filter` take.
pub(crate) fn filter(text: &str) -> Result<Filter, String> {
    Filter::parse(text).map_err(|error| format!("column {}: {}", error.column, error.message))
}

/// Does what was asked for.
pub(crate) fn run(args: &DlqArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    match &args.verb {
        DlqVerb::Ls { target } => link::block_on(list(target, screen)),
        DlqVerb::Show { group, filter, count, target } => {
            link::block_on(show(group, filter.as_ref(), count.unwrap_or(u64::MAX), target, screen))
        }
        DlqVerb::Replay { group, filter, rate, dry_run, yes, target } => {
            let replay = Replay {
                group,
                topic: format!("{PREFIX}{group}"),
                filter: filter.as_ref(),
                rate: *rate,
                dry_run: *dry_run,
                target,
                tally: Tally::default(),
            };
            link::block_on(replay.run(*yes, common, screen))
        }
    }
}

async fn list(target: &Target, screen: Screen) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let topics = client.list_topics().await.map_err(|error| link::client_failure(&error, target, None))?;
    let mut rows = Vec::new();
    for topic in &topics {
        let Some(group) = topic.name.strip_prefix(PREFIX) else { continue };
        let described = client.describe_topic(&topic.name).await;
        let described = described.map_err(|error| link::client_failure(&error, target, Some(&topic.name)))?;
        let partitions = described.partitions.iter();
        let records: u64 = partitions.map(|it| it.visible_end.saturating_sub(it.log_start)).sum();
        if screen.json {
            screen.object(&json!({"group": group, "topic": &*topic.name, "records": records}))?;
            continue;
        }
        let ink = if records > 0 { Ink::Yellow } else { Ink::Dim };
        rows.push(vec![screen.cell(Ink::Bold, group), screen.cell(ink, thousands(records))]);
    }
    if screen.json || rows.is_empty() {
        if screen.terminal && !screen.json {
            screen.line("no group has dead letters")?;
        }
        return Ok(());
    }
    Ok(screen.table(&["group", "dead letters"], rows)?)
}

/// The dead letters of a group up to where they end now.
struct Letters {
    consumer: Consumer,
    ends: BTreeMap<u32, u64>,
    topic: String,
}

impl Letters {
    async fn open(client: &Client, group: &str, target: &Target) -> Result<Self, Failure> {
        let topic = format!("{PREFIX}{group}");
        let failure = |error: &dyn std::fmt::Display| {
            Failure::failed(format!("dead letters of group '{group}' on {}: {error}", target.server))
        };
        let consumer = client.consumer(&topic, ConsumerConfig::default()).await;
        let mut consumer = consumer.map_err(|error| match &error {
            ringmq_client::ClientError::Refused(refused)
                if refused.code() == Some(ErrorCode::UnknownTopic) =>
            {
                Failure::failed(format!(
                    "group '{}' on {} has no dead letters",
                    harmless(group.as_bytes()),
                    target.server
                ))
                .cure("`ringmq dlq ls` lists the groups that have; only queue mode makes any")
            }
            _ => link::client_failure(&error, target, Some(&topic)),
        })?;
        let ends = consumer.ends().await.map_err(|error| failure(&error))?;
        Ok(Self { consumer, ends, topic })
    }

    async fn next(&mut self) -> Result<Vec<ConsumedRecord>, Failure> {
        if self.consumer.reached(&self.ends) {
            return Ok(Vec::new());
        }
        let batch = self.consumer.next_batch(READ).await;
        let mut batch = batch.map_err(|error| Failure::failed(format!("topic '{}': {error}", self.topic)))?;
        batch.retain(|record| self.ends.get(&record.partition).is_none_or(|end| record.offset < *end));
        Ok(batch)
    }

    fn over(&self) -> bool {
        self.consumer.reached(&self.ends)
    }

    /// Where these came from, by partition and offset; what was only published there is not among them.
    async fn origins(
        &self,
        client: &Client,
        topics: &[TopicInfo],
        records: &[ConsumedRecord],
        target: &Target,
    ) -> Result<BTreeMap<(u32, u64), Origin>, Failure> {
        let mut places: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for record in records {
            places.entry(record.partition).or_default().push(record.offset);
        }
        let mut found = BTreeMap::new();
        for (partition, offsets) in places {
            let origins = client.dead_letter_origins(&self.topic, partition, &offsets).await;
            let origins = origins.map_err(|error| link::client_failure(&error, target, Some(&self.topic)))?;
            for (offset, origin) in offsets.into_iter().zip(origins) {
                if let Some(origin) = origin {
                    found.insert((partition, offset), Origin::new(origin, topics));
                }
            }
        }
        Ok(found)
    }
}

/// Where a dead letter came from. The topic may be gone.
struct Origin {
    topic: Option<(String, u32)>,
    offset: u64,
    attempts: u32,
}

impl Origin {
    fn new(origin: DeadLetterOrigin, topics: &[TopicInfo]) -> Self {
        let topic = topics.iter().find_map(|topic| {
            let index = origin.partition.0.checked_sub(topic.base_partition.0)?;
            (index < topic.partitions).then(|| (topic.name.to_string(), index))
        });
        Self { topic, offset: origin.offset, attempts: origin.attempts }
    }

    fn to_text(&self) -> String {
        let topic = self.topic.as_ref().map(|(name, index)| format!("{name}[{index}]"));
        let topic = topic.unwrap_or_else(|| "a deleted topic".to_owned());
        format!("from {topic}@{} after {} attempts", self.offset, self.attempts)
    }

    fn to_json(&self) -> Value {
        let (topic, partition) = self.topic.as_ref().map(|(name, index)| (name.as_str(), *index)).unzip();
        json!({"topic": topic, "partition": partition, "offset": self.offset, "attempts": self.attempts})
    }
}

fn matches(filter: Option<&Filter>, record: &ConsumedRecord) -> bool {
    filter.is_none_or(|filter| {
        filter.matches(&RecordEntry {
            key: record.key.as_deref(),
            tag: record.tag.as_deref(),
            properties: record.properties.encoded(),
            time_ms: record.time_ms,
            body_len: record.body.len(),
        })
    })
}

async fn show(
    group: &str,
    filter: Option<&Filter>,
    count: u64,
    target: &Target,
    screen: Screen,
) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let mut letters = Letters::open(&client, group, target).await?;
    let topics = client.list_topics().await.map_err(|error| link::client_failure(&error, target, None))?;
    let mut left = usize::try_from(count).unwrap_or(usize::MAX);
    while left > 0 && !letters.over() {
        let mut records = letters.next().await?;
        records.retain(|record| matches(filter, record));
        records.truncate(left);
        left -= records.len();
        let origins = letters.origins(&client, &topics, &records, target).await?;
        for record in &records {
            let origin = origins.get(&(record.partition, record.offset));
            let headers = record.properties.iter().collect::<Vec<_>>();
            let shown = Shown {
                topic: &letters.topic,
                partition: record.partition,
                offset: record.offset,
                time_ms: record.timestamp_ms,
                key: record.key.as_deref(),
                value: &record.body,
                headers: &headers,
            };
            if screen.json {
                let mut object = format::to_json(&shown);
                object["group"] = group.into();
                object["origin"] = origin.map_or(Value::Null, Origin::to_json);
                object["tag"] =
                    record.tag.as_deref().map_or(Value::Null, |tag| String::from_utf8_lossy(tag).into());
                screen.object(&object)?;
                continue;
            }
            let place = screen.paint(Ink::Bold, &format!("{}@{}", record.partition, record.offset));
            let time = screen.paint(Ink::Dim, &format::time(record.timestamp_ms));
            let tag = record.tag.as_deref().map(|tag| format!("#{}  ", harmless(tag))).unwrap_or_default();
            let key = record.key.as_deref().map(|key| screen.paint(Ink::Green, &harmless(key)) + "  ");
            let origin = origin.map_or_else(|| "no dead letter".to_owned(), Origin::to_text);
            let origin = screen.paint(Ink::Dim, &origin);
            screen.line(&format!(
                "{place}  {time}  {origin}  {tag}{}{}",
                key.unwrap_or_default(),
                harmless(&record.body)
            ))?;
        }
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Tally {
    matched: u64,
    replayed: u64,
    earlier: u64,
    refused: u64,
    first_refusal: Option<String>,
}

struct Replay<'a> {
    group: &'a str,
    topic: String,
    filter: Option<&'a Filter>,
    rate: Option<u32>,
    dry_run: bool,
    target: &'a Target,
    tally: Tally,
}

impl Replay<'_> {
    async fn run(mut self, yes: bool, common: &Common, screen: Screen) -> Result<(), Failure> {
        let client = link::connect(self.target, RETRY_FOR).await?;
        let mut letters = Letters::open(&client, self.group, self.target).await?;
        if !self.dry_run {
            let all: u64 = letters.ends.values().sum();
            let which = if self.filter.is_some() { "those of up to" } else { "up to" };
            confirmed(
                yes,
                &format!("put back {which} {} dead letters of group {}?", thousands(all), self.group),
            )?;
        }
        let bar = screen::counter(if self.dry_run { "looked at" } else { "put back" }, common);
        let since = Instant::now();
        let mut interrupted = false;
        'all: while !letters.over() {
            let mut wanted: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
            for record in letters.next().await?.iter().filter(|record| matches(self.filter, record)) {
                wanted.entry(record.partition).or_default().push(record.offset);
            }
            // A tenth of a second's worth at once, so that a rate is a rate and not a burst each second.
            let batch = self.rate.map_or(BATCH, |rate| (rate as usize / 10).clamp(1, BATCH));
            for (partition, offsets) in &wanted {
                for offsets in offsets.chunks(batch) {
                    tokio::select! {
                        done = self.put_back(&client, *partition, offsets) => done?,
                        _ = tokio::signal::ctrl_c() => interrupted = true,
                    }
                    bar.set_position(self.tally.matched);
                    if !interrupted
                        && !self.dry_run
                        && let Some(rate) = self.rate
                    {
                        let until =
                            since + Duration::from_secs_f64(self.tally.matched as f64 / f64::from(rate));
                        tokio::select! {
                            () = tokio::time::sleep_until(until.into()) => {}
                            _ = tokio::signal::ctrl_c() => interrupted = true,
                        }
                    }
                    if interrupted {
                        break 'all;
                    }
                }
            }
        }
        bar.finish_and_clear();
        self.summary(interrupted, screen)
    }

    async fn put_back(&mut self, client: &Client, partition: u32, offsets: &[u64]) -> Result<(), Failure> {
        let outcomes = client.replay_dead_letters(&self.topic, partition, offsets, self.dry_run).await;
        let outcomes = outcomes
            .map_err(|error| link::failure_about(&error, self.target, "dead letters of group", self.group))?;
        self.tally.matched += offsets.len() as u64;
        for (outcome, offset) in outcomes.iter().zip(offsets) {
            match outcome {
                ReplayOutcome::Replayed(_) => self.tally.replayed += 1,
                ReplayOutcome::Earlier(_) => self.tally.earlier += 1,
                ReplayOutcome::Refused(refused) => {
                    self.tally.refused += 1;
                    self.tally
                        .first_refusal
                        .get_or_insert_with(|| format!("{partition}@{offset}: {refused}"));
                }
            }
        }
        Ok(())
    }

    fn summary(&self, interrupted: bool, screen: Screen) -> Result<(), Failure> {
        let tally = &self.tally;
        if screen.json {
            screen.object(&json!({
                "group": self.group,
                "matched": tally.matched,
                "replayed": tally.replayed,
                "earlier": tally.earlier,
                "refused": tally.refused,
                "complete": !interrupted && tally.refused == 0,
                "dry_run": self.dry_run,
            }))?;
        } else {
            let verb = if self.dry_run { "would put back" } else { "put back" };
            let mut line = format!("{verb} {}", thousands(tally.replayed));
            if tally.earlier > 0 {
                line += &format!("; {} were back already", thousands(tally.earlier));
            }
            if tally.refused > 0 {
                line += &format!("; {} refused", thousands(tally.refused));
            }
            if interrupted {
                line += "; interrupted: run it again for the others";
            }
            screen.line(&line)?;
        }
        match &tally.first_refusal {
            Some(first) => Err(Failure::failed(format!(
                "{} dead letters of group '{}' could not be put back; the first, {first}",
                thousands(tally.refused),
                self.group
            ))
            .cure("run it again when that is mended: what is back is not put back twice")),
            None if interrupted => Err(Failure::said(EXIT_FAILED)),
            None => Ok(()),
        }
    }
}
