//! `ringmq group`: consumer groups, their members and positions.

use crate::cli::{Common, Target};
use crate::confirm::confirmed;
use crate::failure::{EXIT_FAILED, Failure};
use crate::format;
use crate::link;
use crate::screen::{Ink, Screen, duration, thousands};
use crate::start::{self, TIMES};
use comfy_table::Cell;
use ringmq_client::limits::RETRY_FOR;
use ringmq_client::{
    Client, GroupDescription, GroupMode, GroupOptions, GroupStart, PositionInfo, ResetInfo, SetGroupMode,
};
use ringmq_format::TopicId;
use ringmq_server::units::{Size, Span};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  ringmq group ls
  ringmq group show mail
  ringmq group create mail --start latest --max-attempts 5
  ringmq group set mail --rate-records 500
  ringmq group reset mail --topic users --to -1h --dry-run
  ringmq group rm mail --dry-run";

/// Consumer groups: list, show, make, change, reset, remove.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GroupArgs {
    #[command(subcommand)]
    verb: GroupVerb,
}

#[derive(Debug, clap::Subcommand)]
enum GroupVerb {
    /// List the groups, with their lag.
    #[command(
        after_help = "Examples:\n  ringmq group ls\n  ringmq group ls --json | jq 'select(.lag_s > 60)'"
    )]
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// Show a group: settings, members, positions, lag in records and in seconds.
    #[command(
        after_help = "Examples:\n  ringmq group show mail\n  ringmq group show mail --json | jq .positions\n\nLag in time: now minus when the first record not consumed became visible; 0 where there is none."
    )]
    Show {
        /// Its name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Make a group before its first member comes.
    #[command(
        after_help = "Examples:\n  ringmq group create mail\n  ringmq group create sale --rate-records 2000 --concurrency 64\n  ringmq group create status --ordered --max-attempts 5 --backoff 1s,5s,30s"
    )]
    Create {
        /// Its name: 1 to 127 of A-Z a-z 0-9 _ - . %
        name: String,
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        target: Target,
    },
    /// Change settings of a group, while it runs. What is not said stays.
    #[command(
        after_help = "Examples:\n  ringmq group set sale --rate-records 500\n  ringmq group set sale --rate-records 0        no limit any more"
    )]
    Set {
        /// Its name.
        name: String,
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        target: Target,
    },
    /// Move a group's positions in a topic. Shows what that would do, then asks.
    #[command(after_help = reset_examples())]
    Reset {
        /// Its name.
        name: String,
        /// The topic.
        #[arg(long)]
        topic: String,
        /// To earliest, latest, a time or an offset.
        #[arg(long, value_name = "WHERE", allow_hyphen_values = true)]
        to: start::From,
        /// Only show what would change.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Remove a group and its positions.
    #[command(
        after_help = "Examples:\n  ringmq group rm mail --dry-run\n  ringmq group rm mail --yes\n  ringmq group rm mail --yes --force       although it has members"
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
        /// Even if it has members; they are dropped.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        target: Target,
    },
}

fn reset_examples() -> String {
    format!(
        "\
Examples:
  ringmq group reset mail --topic users --to earliest --dry-run
  ringmq group reset mail --topic users --to -15m
  ringmq group reset mail --topic users --to 4200 --yes

Members that read there begin anew at the new position. {}",
        TIMES.replace("--from", "--to")
    )
}

/// Settings of a group.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct SettingsArgs {
    /// Deliveries before a record becomes a dead letter [default: 16].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    max_attempts: Option<u16>,
    /// Pauses after failed deliveries, the last one repeats [default: 18 steps from 1s or 10s to 2h].
    #[arg(long, value_name = "TIMES", value_delimiter = ',')]
    backoff: Vec<Span>,
    /// How long a received record is nobody else's [default: 60s].
    #[arg(long, value_name = "TIME")]
    invisible: Option<Span>,
    /// One record of a key at a time, retried in place; other keys go on [default: no].
    #[arg(long, value_name = "YES", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    ordered: Option<bool>,
    /// Bytes a second over all members; 0 is no limit.
    #[arg(long, value_name = "SIZE")]
    rate_bytes: Option<Size>,
    /// Records a second over all members; 0 is no limit.
    #[arg(long, value_name = "N")]
    rate_records: Option<u32>,
    /// Records in flight per partition; 0 is no limit.
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
    /// Where it begins where it has no position [default: earliest].
    #[arg(long, value_name = "WHERE", allow_hyphen_values = true)]
    start: Option<start::From>,
}

impl SettingsArgs {
    pub(crate) fn options(&self) -> GroupOptions {
        let backoff = self.backoff.iter().map(|span| Duration::from_millis(span.0)).collect::<Vec<_>>();
        GroupOptions {
            max_attempts: self.max_attempts,
            backoff: (!backoff.is_empty()).then_some(backoff),
            invisible: self.invisible.map(|span| Duration::from_millis(span.0)),
            ordered: self.ordered,
            rate_bytes: self.rate_bytes.map(|size| size.0),
            rate_records: self.rate_records,
            concurrency: self.concurrency,
            start: self.start.map(group_start),
        }
    }
}

/// Where a group begins, as the protocol says it.
pub(crate) fn group_start(from: start::From) -> GroupStart {
    match from {
        start::From::Earliest => GroupStart::Earliest,
        start::From::Latest => GroupStart::Latest,
        start::From::Offset(offset) => GroupStart::Offset(offset),
        start::From::Time(time) => GroupStart::Time(time),
    }
}

/// Does what was asked for.
pub(crate) fn run(args: &GroupArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    match &args.verb {
        GroupVerb::Ls { target } => link::block_on(list(target, screen)),
        GroupVerb::Show { name, target } => link::block_on(show(name, target, screen)),
        GroupVerb::Create { name, settings, target } => {
            link::block_on(set(name, SetGroupMode::Create, settings, target, screen))
        }
        GroupVerb::Set { name, settings, target } => {
            if settings.options() == GroupOptions::default() {
                return Err(Failure::wrong_use("nothing to change was said")
                    .cure("`ringmq group set --help` lists the settings"));
            }
            link::block_on(set(name, SetGroupMode::Alter, settings, target, screen))
        }
        GroupVerb::Reset { name, topic, to, dry_run, yes, target } => {
            let reset = Reset { name, topic, to: group_start(*to), dry_run: *dry_run, yes: *yes };
            link::block_on(reset.run(target, screen))
        }
        GroupVerb::Rm { name, dry_run, yes, force, target } => {
            link::block_on(remove(name, *dry_run, *yes, *force, target, screen))
        }
    }
}

/// How groups consume, in a word.
pub(crate) fn mode(mode: Option<GroupMode>) -> &'static str {
    match mode {
        Some(GroupMode::Stream) => "stream",
        Some(GroupMode::Queue) => "queue",
        Some(GroupMode::Broadcast) => "broadcast",
        None => "-",
    }
}

fn count(number: Option<u64>) -> String {
    number.map_or("-".to_owned(), thousands)
}

fn lag(lag: Option<Duration>) -> String {
    match lag {
        None => "-".to_owned(),
        Some(Duration::ZERO) => "0 s".to_owned(),
        Some(lag) => duration(lag),
    }
}

fn seconds(lag: Option<Duration>) -> Value {
    lag.map_or(Value::Null, |lag| lag.as_secs_f64().into())
}

async fn list(target: &Target, screen: Screen) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let groups = client.list_groups().await.map_err(|error| link::client_failure(&error, target, None))?;
    if screen.json {
        for group in &groups {
            screen.object(&json!({
                "group": &*group.name,
                "id": group.id,
                "mode": group.mode.map(|it| mode(Some(it))),
                "members": group.members,
                "topics": group.topics,
                "created": format::time(group.created_ms),
                "lag_records": group.lag_records,
                "lag_s": seconds(group.lag),
            }))?;
        }
        return Ok(());
    }
    if groups.is_empty() {
        if screen.terminal {
            screen.line("no groups yet; `ringmq sub TOPIC --group NAME` makes one")?;
        }
        return Ok(());
    }
    let rows = groups.iter().map(|group| {
        vec![
            screen.cell(Ink::Bold, &group.name),
            Cell::new(mode(group.mode)),
            Cell::new(group.members),
            Cell::new(group.topics),
            Cell::new(count(group.lag_records)),
            Cell::new(lag(group.lag)),
        ]
    });
    Ok(screen.table(&["group", "mode", "members", "topics", "lag", "lag in time"], rows.collect())?)
}

/// Names of topics by their numbers.
async fn names(client: &Client, target: &Target) -> Result<BTreeMap<TopicId, String>, Failure> {
    let topics = client.list_topics().await.map_err(|error| link::client_failure(&error, target, None))?;
    Ok(topics.iter().map(|topic| (topic.id, topic.name.to_string())).collect())
}

fn settings_json(options: &GroupOptions) -> Value {
    json!({
        "max_attempts": options.max_attempts,
        "backoff_s": options.backoff.as_ref().map(|steps| steps.iter().map(Duration::as_secs_f64).collect::<Vec<_>>()),
        "invisible_s": options.invisible.map(|it| it.as_secs_f64()),
        "ordered": options.ordered,
        "rate_bytes": options.rate_bytes,
        "rate_records": options.rate_records,
        "concurrency": options.concurrency,
        "start": options.start.map(start_text),
    })
}

fn start_text(start: GroupStart) -> String {
    match start {
        GroupStart::Earliest => "earliest".to_owned(),
        GroupStart::Latest => "latest".to_owned(),
        GroupStart::Time(time) => format::time(time),
        GroupStart::Offset(offset) => offset.to_string(),
    }
}

fn span(duration: Duration) -> String {
    Span(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)).to_string()
}

/// The settings, as one reads them: what is not limited is not said.
fn settings_text(options: &GroupOptions) -> String {
    let mut said = Vec::new();
    said.extend(options.max_attempts.map(|max| format!("{max} attempts")));
    if let Some((first, last)) =
        options.backoff.as_ref().and_then(|steps| Some((steps.first()?, steps.last()?)))
    {
        said.push(match first == last {
            true => format!("pause {}", span(*first)),
            false => format!("pauses {} to {}", span(*first), span(*last)),
        });
    }
    said.extend(options.invisible.map(|it| format!("invisible {}", span(it))));
    said.extend(options.ordered.filter(|it| *it).map(|_| "ordered by key".to_owned()));
    let limit = |number: Option<u64>| number.filter(|number| *number > 0);
    said.extend(limit(options.rate_records.map(u64::from)).map(|it| format!("{} records/s", thousands(it))));
    said.extend(limit(options.rate_bytes).map(|it| format!("{}/s", Size(it))));
    said.extend(limit(options.concurrency.map(u64::from)).map(|it| format!("{it} in flight a partition")));
    said.extend(options.start.map(|it| format!("starts {}", start_text(it))));
    said.join(" · ")
}

async fn describe(client: &Client, name: &str, target: &Target) -> Result<GroupDescription, Failure> {
    client.describe_group(name).await.map_err(|error| link::failure_about(&error, target, "group", name))
}

async fn show(name: &str, target: &Target, screen: Screen) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let described = describe(&client, name, target).await?;
    let names = names(&client, target).await?;
    let topic = |id: TopicId| names.get(&id).cloned().unwrap_or_else(|| format!("#{}", id.0));
    let GroupDescription { group, generation, options, subscriptions, members, positions } = &described;
    if screen.json {
        screen.object(&json!({
            "group": name,
            "id": group.id,
            "mode": group.mode.map(|it| mode(Some(it))),
            "created": format::time(group.created_ms),
            "generation": generation,
            "lag_records": group.lag_records,
            "lag_s": seconds(group.lag),
            "settings": settings_json(options),
            "subscriptions": subscriptions.iter().map(|(topic, filter)| json!({"topic": topic, "filter": filter})).collect::<Vec<_>>(),
            "members": members.iter().map(|member| json!({
                "member": member.member,
                "name": member.name,
                "instance": (!member.instance.is_empty()).then_some(&member.instance),
                "joined": format::time(member.joined_ms),
                "partitions": member.partitions,
                "silent_s": member.silent.as_secs_f64(),
            })).collect::<Vec<_>>(),
            "positions": positions.iter().map(|at| position_json(at, &topic(at.topic))).collect::<Vec<_>>(),
        }))?;
        return Ok(());
    }
    screen.line(&format!(
        "{}  {}  {} member{}  lag {} records, {}",
        screen.paint(Ink::Bold, name),
        mode(group.mode),
        group.members,
        if group.members == 1 { "" } else { "s" },
        count(group.lag_records),
        lag(group.lag),
    ))?;
    screen.line(&screen.paint(Ink::Dim, &settings_text(options)))?;
    for (topic, filter) in subscriptions {
        let filter = if filter.is_empty() { "*" } else { filter };
        screen.line(&format!("reads {topic} where {}", format::harmless(filter.as_bytes())))?;
    }
    if !members.is_empty() {
        let rows = members.iter().map(|member| {
            vec![
                screen.cell(Ink::Bold, format::harmless(member.name.as_bytes())),
                Cell::new(if member.instance.is_empty() { "-" } else { &member.instance }),
                Cell::new(member.partitions),
                Cell::new(duration(member.silent)),
                Cell::new(format::time(member.joined_ms)),
            ]
        });
        screen.table(&["member", "instance", "partitions", "silent", "joined"], rows.collect())?;
    }
    if positions.is_empty() {
        return Ok(());
    }
    let broadcast = group.mode == Some(GroupMode::Broadcast);
    let queue = group.mode == Some(GroupMode::Queue);
    let mut header = vec!["topic", "partition", "position", "end", "lag", "in time"];
    header.extend(queue.then_some(["in flight", "retries", "dead"]).into_iter().flatten());
    header.extend(broadcast.then_some("instance"));
    let rows = positions.iter().map(|at| {
        let mut row = vec![
            Cell::new(topic(at.topic)),
            Cell::new(at.partition),
            Cell::new(at.watermark),
            Cell::new(at.visible_end),
            Cell::new(count(at.lag_records)),
            Cell::new(lag(at.lag)),
        ];
        if queue {
            row.extend([
                Cell::new(at.in_flight),
                Cell::new(at.retries),
                screen.cell(if at.dead_letters > 0 { Ink::Yellow } else { Ink::Dim }, at.dead_letters),
            ]);
        }
        if broadcast {
            row.push(Cell::new(at.instance));
        }
        row
    });
    Ok(screen.table(&header, rows.collect())?)
}

fn position_json(at: &PositionInfo, topic: &str) -> Value {
    json!({
        "topic": topic,
        "partition": at.partition,
        "instance": (at.instance != 0).then_some(at.instance),
        "position": at.watermark,
        "end": at.visible_end,
        "lag_records": at.lag_records,
        "lag_s": seconds(at.lag),
        "acked_above": at.acked_above,
        "in_flight": at.in_flight,
        "retries": at.retries,
        "dead_letters": at.dead_letters,
        "member": at.member,
    })
}

async fn set(
    name: &str,
    how: SetGroupMode,
    settings: &SettingsArgs,
    target: &Target,
    screen: Screen,
) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let set = client.set_group(name, how, &settings.options()).await;
    set.map_err(|error| link::failure_about(&error, target, "group", name))?;
    let described = describe(&client, name, target).await?;
    if screen.json {
        screen.object(&json!({"group": name, "settings": settings_json(&described.options)}))?;
    } else {
        screen.line(&format!("{}  {}", screen.paint(Ink::Bold, name), settings_text(&described.options)))?;
    }
    Ok(())
}

struct Reset<'a> {
    name: &'a str,
    topic: &'a str,
    to: GroupStart,
    dry_run: bool,
    yes: bool,
}

impl Reset<'_> {
    async fn run(&self, target: &Target, screen: Screen) -> Result<(), Failure> {
        let client = link::connect(target, RETRY_FOR).await?;
        let preview = self.ask(&client, target, true).await?;
        if self.dry_run || (!screen.json && !self.yes) {
            self.print(&preview, true, screen)?;
        }
        if self.dry_run {
            return Ok(());
        }
        confirmed(self.yes, &format!("move group {} in topic {}?", self.name, self.topic))?;
        let done = self.ask(&client, target, false).await?;
        self.print(&done, false, screen)?;
        // Each was said in its row.
        if done.iter().any(|at| at.result.is_err()) { Err(Failure::said(EXIT_FAILED)) } else { Ok(()) }
    }

    async fn ask(&self, client: &Client, target: &Target, dry_run: bool) -> Result<Vec<ResetInfo>, Failure> {
        let reset = client.reset_group(self.name, self.topic, self.to, dry_run).await;
        reset.map_err(|error| link::failure_about(&error, target, "group", self.name))
    }

    fn print(&self, entries: &[ResetInfo], dry_run: bool, screen: Screen) -> Result<(), Failure> {
        if screen.json {
            for at in entries {
                let moved = at.result.as_ref().ok();
                screen.object(&json!({
                    "group": self.name,
                    "topic": self.topic,
                    "partition": at.partition,
                    "before": moved.map(|moved| moved.0),
                    "after": moved.map(|moved| moved.1),
                    "first": at.log_start,
                    "end": at.visible_end,
                    "error": at.result.as_ref().err().map(ToString::to_string),
                    "dry_run": dry_run,
                }))?;
            }
            return Ok(());
        }
        let rows = entries.iter().map(|at| {
            let mut row = vec![Cell::new(at.partition)];
            match &at.result {
                Ok((before, after)) => row.extend([
                    Cell::new(before),
                    screen.cell(Ink::Bold, after),
                    Cell::new(change(*before, *after)),
                    Cell::new(thousands(at.visible_end.saturating_sub(*after))),
                ]),
                Err(refused) => row.extend([
                    Cell::new("-"),
                    Cell::new("-"),
                    screen.cell(Ink::Red, refused),
                    Cell::new("-"),
                ]),
            }
            row
        });
        let then = if dry_run { "would be" } else { "now" };
        screen.table(&["partition", "was", then, "change", "lag then"], rows.collect())?;
        Ok(())
    }
}

fn change(before: u64, after: u64) -> String {
    match (before, after) {
        (before, after) if after < before => format!("{} again", thousands(before - after)),
        (before, after) if after > before => format!("{} left out", thousands(after - before)),
        _ => "none".to_owned(),
    }
}

async fn remove(
    name: &str,
    dry_run: bool,
    yes: bool,
    force: bool,
    target: &Target,
    screen: Screen,
) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let described = describe(&client, name, target).await?;
    let what = format!(
        "group {name} with {} members and {} positions",
        described.group.members,
        thousands(described.positions.len() as u64)
    );
    if !dry_run {
        confirmed(yes, &format!("remove {what}, for ever?"))?;
        let removed = client.delete_group(name, force).await;
        removed.map_err(|error| {
            let failure = link::failure_about(&error, target, "group", name);
            if described.group.members > 0 && !force {
                failure.cure("stop its members first, or say --force")
            } else {
                failure
            }
        })?;
    }
    if screen.json {
        screen.object(&json!({
            "group": name,
            "members": described.group.members,
            "positions": described.positions.len(),
            "removed": !dry_run,
        }))?;
    } else {
        screen.line(&format!("{} {what}", if dry_run { "would remove" } else { "removed" }))?;
    }
    Ok(())
}
