//! `ringmq topic`: make, list, show, change and remove topics.

use crate::cli::{Common, Target};
use crate::confirm::asked;
use crate::failure::Failure;
use crate::format;
use crate::link;
use crate::screen::{Ink, Screen, thousands};
use crate::topic_settings::{self, SettingsArgs};
use comfy_table::Cell;
use ringmq_client::limits::RETRY_FOR;
use ringmq_client::{Client, ClientError, ErrorCode, PartitionInfo, TopicDescription, TopicSettings};
use ringmq_server::units::Size;
use serde_json::json;
use std::io::{self, IsTerminal};

const EXAMPLES: &str = "\
Examples:
  ringmq topic create orders --partitions 8
  ringmq topic ls --json
  ringmq topic show orders
  ringmq topic stats orders
  ringmq topic alter orders --rate-bytes 10M
  ringmq topic rm orders --dry-run";

/// Make, list, show, change and remove topics.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TopicArgs {
    #[command(subcommand)]
    verb: TopicVerb,
}

#[derive(Debug, clap::Subcommand)]
enum TopicVerb {
    /// List the topics.
    #[command(after_help = "Examples:\n  ringmq topic ls\n  ringmq topic ls --long --json | jq -r .topic")]
    Ls {
        /// With records, bytes and age; asks for each topic.
        #[arg(short, long)]
        long: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Make a topic. The number of partitions is for ever.
    #[command(
        after_help = "Examples:\n  ringmq topic create orders --partitions 8\n  ringmq topic create reminders --kind delay --delay-max 90d\n  ringmq topic create status --kind fifo --ttl 1d\n  ringmq topic create logs --if-not-exists"
    )]
    Create {
        /// Its name: 1 to 127 of A-Z a-z 0-9 _ - . %
        name: String,
        /// Order holds within a partition; partitions work in parallel.
        #[arg(short, long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=65_536))]
        partitions: u32,
        /// It is fine if it exists, whatever its partitions.
        #[arg(long)]
        if_not_exists: bool,
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        target: Target,
    },
    /// Change settings of a topic, while it is used. What is not said stays.
    #[command(
        after_help = "Examples:\n  ringmq topic alter orders --rate-records 5000\n  ringmq topic alter logs --retain-time 7d --dry-run"
    )]
    Alter {
        /// Its name.
        name: String,
        #[command(flatten)]
        settings: SettingsArgs,
        /// Only show what would change.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Show settings and statistics of a topic.
    #[command(
        after_help = "Examples:\n  ringmq topic stats orders\n  ringmq topic stats orders --json | jq .records_per_s"
    )]
    Stats {
        /// Its name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Show a topic and its partitions.
    #[command(
        after_help = "Examples:\n  ringmq topic show orders\n  ringmq topic show orders --json | jq .records"
    )]
    Show {
        /// Its name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Remove a topic and its records, for ever.
    #[command(
        after_help = "Examples:\n  ringmq topic rm orders --dry-run\n  ringmq topic rm orders --yes\n\nAt a terminal it asks first, unless --yes is said."
    )]
    Rm {
        /// Its name.
        name: String,
        /// Only say what would be removed.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        target: Target,
    },
}

/// Does what was asked for.
pub(crate) fn run(args: &TopicArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    match &args.verb {
        TopicVerb::Ls { long, target } => link::block_on(list(*long, target, screen)),
        TopicVerb::Create { name, partitions, if_not_exists, settings, target } => {
            link::block_on(create(name, *partitions, *if_not_exists, settings, target, screen))
        }
        TopicVerb::Alter { name, settings, dry_run, target } => {
            link::block_on(topic_settings::alter(name, settings, *dry_run, target, screen))
        }
        TopicVerb::Stats { name, target } => link::block_on(topic_settings::stats(name, target, screen)),
        TopicVerb::Show { name, target } => link::block_on(show(name, target, screen)),
        TopicVerb::Rm { name, dry_run, yes, target } => {
            link::block_on(remove(name, *dry_run, *yes, target, screen))
        }
    }
}

async fn describe(client: &Client, name: &str, target: &Target) -> Result<TopicDescription, Failure> {
    client.describe_topic(name).await.map_err(|error| link::client_failure(&error, target, Some(name)))
}

fn records(partitions: &[PartitionInfo]) -> u64 {
    partitions.iter().map(|partition| partition.visible_end.saturating_sub(partition.log_start)).sum()
}

/// None if the server does not know it of some partition.
fn bytes(partitions: &[PartitionInfo]) -> Option<u64> {
    partitions.iter().map(|partition| partition.bytes).sum()
}

fn size_or_dash(bytes: Option<u64>) -> String {
    bytes.map_or("-".to_owned(), |bytes| Size(bytes).to_string())
}

async fn list(long: bool, target: &Target, screen: Screen) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let topics = client.list_topics().await.map_err(|error| link::client_failure(&error, target, None))?;
    let mut rows = Vec::new();
    for topic in &topics {
        let mut object = json!({"topic": &*topic.name, "partitions": topic.partitions, "id": topic.id.0});
        let mut row =
            vec![screen.cell(Ink::Bold, &topic.name), Cell::new(thousands(u64::from(topic.partitions)))];
        if long {
            match client.describe_topic(&topic.name).await {
                Ok(topic) => {
                    let (records, bytes) = (records(&topic.partitions), bytes(&topic.partitions));
                    object["records"] = records.into();
                    object["bytes"] = bytes.into();
                    object["created"] = format::time(topic.created_ms).into();
                    row.extend([
                        Cell::new(thousands(records)),
                        Cell::new(size_or_dash(bytes)),
                        Cell::new(format::time(topic.created_ms)),
                    ]);
                }
                // Removed between the two questions.
                Err(ClientError::Refused(refused)) if refused.code() == Some(ErrorCode::UnknownTopic) => {
                    continue;
                }
                Err(error) => return Err(link::client_failure(&error, target, Some(&topic.name))),
            }
        }
        if screen.json {
            screen.object(&object)?;
        } else {
            rows.push(row);
        }
    }
    if screen.json {
        return Ok(());
    }
    if rows.is_empty() {
        if screen.terminal {
            screen.line("no topics yet; make one with `ringmq topic create NAME`")?;
        }
        return Ok(());
    }
    let header: &[&str] =
        if long { &["topic", "partitions", "records", "bytes", "created"] } else { &["topic", "partitions"] };
    Ok(screen.table(header, rows)?)
}

async fn create(
    name: &str,
    partitions: u32,
    if_not_exists: bool,
    settings: &SettingsArgs,
    target: &Target,
    screen: Screen,
) -> Result<(), Failure> {
    let settings = settings.settings()?;
    let client = link::connect(target, RETRY_FOR).await?;
    let made = client.create_topic(name, partitions, if_not_exists).await;
    let topic = made.map_err(|error| {
        let exists =
            matches!(&error, ClientError::Refused(refused) if refused.code() == Some(ErrorCode::TopicExists));
        let failure = link::client_failure(&error, target, Some(name));
        if exists { failure.cure("--if-not-exists takes it as it is") } else { failure }
    })?;
    // The settings come second, so that a topic that exists with others is refused first.
    if settings != TopicSettings::default() {
        let set = client.alter_topic(name, false, settings).await;
        set.map_err(|error| link::client_failure(&error, target, Some(name)))?;
    }
    if screen.json {
        screen.object(&json!({"topic": name, "partitions": topic.partitions, "id": topic.id.0}))?;
    } else {
        let noun = if topic.partitions == 1 { "partition" } else { "partitions" };
        screen.line(&format!(
            "{}  {} {noun}",
            screen.paint(Ink::Bold, name),
            thousands(topic.partitions.into())
        ))?;
    }
    Ok(())
}

async fn show(name: &str, target: &Target, screen: Screen) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let topic = describe(&client, name, target).await?;
    let (count, size) = (records(&topic.partitions), bytes(&topic.partitions));
    let created = format::time(topic.created_ms);
    if screen.json {
        let partitions = topic.partitions.iter().enumerate().map(|(partition, info)| {
            json!({
                "partition": partition,
                "first": info.log_start,
                "end": info.visible_end,
                "bytes": info.bytes,
            })
        });
        screen.object(&json!({
            "topic": name,
            "id": topic.topic.id.0,
            "created": created,
            "records": count,
            "bytes": size,
            "partitions": partitions.collect::<Vec<_>>(),
        }))?;
        return Ok(());
    }
    let count = thousands(count);
    screen.line(&format!(
        "{}  {count} records  {}  created {created}",
        screen.paint(Ink::Bold, name),
        size_or_dash(size)
    ))?;
    let rows = topic.partitions.iter().enumerate().map(|(partition, info)| {
        vec![
            Cell::new(partition),
            Cell::new(info.log_start),
            Cell::new(info.visible_end),
            Cell::new(thousands(info.visible_end.saturating_sub(info.log_start))),
            Cell::new(size_or_dash(info.bytes)),
        ]
    });
    Ok(screen.table(&["partition", "first", "end", "records", "bytes"], rows.collect())?)
}

async fn remove(
    name: &str,
    dry_run: bool,
    yes: bool,
    target: &Target,
    screen: Screen,
) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let topic = describe(&client, name, target).await?;
    let records = records(&topic.partitions);
    let question = || format!("remove topic {name} with {} records, for ever?", thousands(records));
    if !dry_run && !yes && io::stdin().is_terminal() && !asked(&question())? {
        return Err(Failure::failed("nothing was removed"));
    }
    if !dry_run {
        let removed = client.delete_topic(name).await;
        removed.map_err(|error| link::client_failure(&error, target, Some(name)))?;
    }
    if screen.json {
        screen.object(&json!({"topic": name, "records": records, "removed": !dry_run}))?;
    } else {
        let verb = if dry_run { "would remove" } else { "removed" };
        screen.line(&format!(
            "{verb} {} with {} records",
            screen.paint(Ink::Bold, name),
            thousands(records)
        ))?;
    }
    Ok(())
}
