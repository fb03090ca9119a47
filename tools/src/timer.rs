//! `ringmq timer`: messages that wait for their time.

use crate::cli::{Common, Target};
use crate::confirm::confirmed;
use crate::failure::{EXIT_FAILED, Failure};
use crate::format::{self, Shown, harmless};
use crate::link;
use crate::screen::{Ink, Screen, duration, thousands};
use crate::start::{self, TIMES};
use comfy_table::Cell;
use ringmq_client::limits::RETRY_FOR;
use ringmq_client::{Client, ClientError, ErrorCode, PendingHandle, TimerInfo};
use ringmq_server::units::{Size, Span};
use serde_json::json;
use std::time::Duration;

/// Asked for at once.
const PAGE: u32 = 256;
/// Listed unless more is asked for.
const LIMIT: u64 = 100;

const EXAMPLES: &str = "\
Examples:
  ringmq timer ls
  ringmq timer peek 3@40960
  ringmq timer cancel 3@40960
  ringmq timer reschedule 3@40960 --delay 10m
  ringmq timer purge reminders --dry-run

A message is named PARTITION@LSN, as `timer ls` and `pub --delay` show it.";

/// Delayed messages: list, peek, cancel, reschedule, purge.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TimerArgs {
    #[command(subcommand)]
    verb: TimerVerb,
}

#[derive(Debug, clap::Subcommand)]
enum TimerVerb {
    /// List what waits, the next one first.
    #[command(
        after_help = "Examples:\n  ringmq timer ls\n  ringmq timer ls --topic reminders -n 1000\n  ringmq timer ls --all --json | jq -r .handle"
    )]
    Ls {
        /// Only of this topic.
        #[arg(long, value_name = "TOPIC", default_value = "", hide_default_value = true)]
        topic: String,
        /// At most so many.
        #[arg(short = 'n', long, value_name = "COUNT", default_value_t = LIMIT)]
        count: u64,
        /// All of them.
        #[arg(long, conflicts_with = "count")]
        all: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Read a message that is not visible yet: a delayed one, or a half of a transaction.
    #[command(
        after_help = "Examples:\n  ringmq timer peek 3@40960\n  ringmq timer peek 3@40960 --json | jq .value"
    )]
    Peek {
        /// Its name.
        #[arg(value_name = "PARTITION@LSN")]
        handle: PendingHandle,
        #[command(flatten)]
        target: Target,
    },
    /// Cancel messages: they never become visible.
    #[command(
        after_help = "Examples:\n  ringmq timer cancel 3@40960\n  ringmq timer cancel 3@40960 4@8192 --json\n\nEach answer is exact: done, already delivered, or unknown. Exit code 1 if any was not done."
    )]
    Cancel {
        /// Their names.
        #[arg(value_name = "PARTITION@LSN", required = true)]
        handles: Vec<PendingHandle>,
        /// Only say whether they still wait.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Give a message another time.
    #[command(after_help = reschedule_examples())]
    Reschedule {
        /// Its name.
        #[arg(value_name = "PARTITION@LSN")]
        handle: PendingHandle,
        #[command(flatten)]
        due: DueArgs,
        #[command(flatten)]
        target: Target,
    },
    /// Cancel all messages of a topic that wait.
    #[command(
        after_help = "Examples:\n  ringmq timer purge reminders --dry-run\n  ringmq timer purge reminders --yes"
    )]
    Purge {
        /// The topic.
        topic: String,
        /// Only say how many.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        target: Target,
    },
}

fn reschedule_examples() -> String {
    format!(
        "\
Examples:
  ringmq timer reschedule 3@40960 --delay 10m
  ringmq timer reschedule 3@40960 --at 2026-12-24T18:00:00Z

{}",
        TIMES.replace("--from", "--at")
    )
}

/// When a message becomes visible.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct DueArgs {
    /// So long from now.
    #[arg(long, value_name = "TIME")]
    delay: Option<Span>,
    /// At this time.
    #[arg(long, value_name = "TIME", value_parser = at)]
    at: Option<i64>,
}

/// A time that `--at` takes, Unix milliseconds.
pub(crate) fn at(text: &str) -> Result<i64, String> {
    match text.parse::<start::From>() {
        Ok(start::From::Time(time)) => Ok(time),
        _ => Err(format!("'{text}' is not a time (2026-11-22T06:29:44Z, 2026-11-22, @1795328984)")),
    }
}

/// When `--delay` or `--at` says, Unix milliseconds.
pub(crate) fn due(delay: Option<Span>, at: Option<i64>) -> Option<i64> {
    let now = jiff::Timestamp::now().as_millisecond();
    at.or_else(|| delay.map(|delay| now.saturating_add(i64::try_from(delay.0).unwrap_or(i64::MAX))))
}

/// Does what was asked for.
pub(crate) fn run(args: &TimerArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    match &args.verb {
        TimerVerb::Ls { topic, count, all, target } => {
            link::block_on(list(topic, if *all { u64::MAX } else { *count }, target, screen))
        }
        TimerVerb::Peek { handle, target } => link::block_on(peek(*handle, target, screen)),
        TimerVerb::Cancel { handles, dry_run, target } => {
            link::block_on(cancel(handles, *dry_run, target, screen))
        }
        TimerVerb::Reschedule { handle, due: how, target } => {
            let due_ms = due(how.delay, how.at).unwrap_or(1);
            link::block_on(reschedule(*handle, due_ms, target, screen))
        }
        TimerVerb::Purge { topic, dry_run, yes, target } => {
            link::block_on(purge(topic, *dry_run, *yes, target, screen))
        }
    }
}

/// `in 4.00 s`, or that it is being delivered.
fn left(due_ms: i64) -> String {
    let ms = due_ms.saturating_sub(jiff::Timestamp::now().as_millisecond());
    u64::try_from(ms).map_or("due".to_owned(), |ms| format!("in {}", duration(Duration::from_millis(ms))))
}

async fn list(topic: &str, limit: u64, target: &Target, screen: Screen) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let about = (!topic.is_empty()).then_some(topic);
    let mut rows = Vec::new();
    let (mut after, mut shown, mut pending): (Option<TimerInfo>, u64, _) = (None, 0, None);
    while shown < limit {
        let wanted = u32::try_from(limit - shown).unwrap_or(PAGE).min(PAGE);
        let page = client.list_timers(topic, after.as_ref(), wanted).await;
        let page = page.map_err(|error| link::client_failure(&error, target, about))?;
        pending = pending.or(page.pending);
        for timer in &page.timers {
            shown += 1;
            if screen.json {
                screen.object(&json!({
                    "handle": timer.handle.to_string(),
                    "topic": timer.topic,
                    "partition": timer.partition,
                    "due": format::time(timer.due_ms),
                    "records": timer.records,
                    "bytes": timer.bytes,
                }))?;
                continue;
            }
            rows.push(vec![
                screen.cell(Ink::Bold, timer.handle),
                Cell::new(format!("{}[{}]", timer.topic, timer.partition)),
                Cell::new(format::time(timer.due_ms)),
                Cell::new(left(timer.due_ms)),
                Cell::new(timer.records),
                Cell::new(Size(timer.bytes.into())),
            ]);
        }
        after = page.timers.last().cloned();
        if !page.more || after.is_none() {
            break;
        }
    }
    if screen.json {
        return Ok(());
    }
    if rows.is_empty() {
        if screen.terminal {
            screen.line("nothing waits for its time")?;
        }
        return Ok(());
    }
    screen.table(&["message", "for", "due", "", "records", "bytes"], rows)?;
    if screen.terminal
        && let Some(pending) = pending.filter(|pending| *pending > shown)
    {
        let line = format!("{} of {}; --all shows the others", thousands(shown), thousands(pending));
        screen.line(&screen.paint(Ink::Dim, &line))?;
    }
    Ok(())
}

async fn peek(handle: PendingHandle, target: &Target, screen: Screen) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let peeked = client.peek_message(handle).await;
    let peeked = peeked.map_err(|error| match outcome(&error) {
        Some(word) => Failure::failed(format!("message {handle}: {word}")),
        None => link::failure_about(&error, target, "message", &handle.to_string()),
    })?;
    let due = match (peeked.transaction, peeked.due_ms) {
        (Some(txn), 0) => format!("visible when transaction {txn} is committed"),
        (Some(txn), due) => format!("visible at {} if transaction {txn} is committed", format::time(due)),
        (None, due) => format!("visible at {}, {}", format::time(due), left(due)),
    };
    if !screen.json {
        let place = format!("{}[{}]", peeked.topic, peeked.partition);
        screen.line(&format!("{}  for {place}  {due}", screen.paint(Ink::Bold, &handle.to_string())))?;
    }
    for record in &peeked.records {
        let headers = record.properties.iter().collect::<Vec<_>>();
        let shown = Shown {
            topic: &peeked.topic,
            partition: peeked.partition,
            offset: record.offset,
            time_ms: record.time_ms,
            key: record.key.as_deref(),
            value: &record.body,
            headers: &headers,
        };
        if screen.json {
            let mut object = format::to_json(&shown);
            object["handle"] = handle.to_string().into();
            object["due"] = (peeked.due_ms != 0).then(|| format::time(peeked.due_ms)).into();
            object["transaction"] = peeked.transaction.map(|txn| txn.to_string()).into();
            screen.object(&object)?;
        } else {
            let key = record
                .key
                .as_deref()
                .map_or_else(String::new, |key| screen.paint(Ink::Green, &harmless(key)) + "  ");
            screen.line(&format!("  {key}{}", harmless(&record.body)))?;
        }
    }
    Ok(())
}

/// What became of a message of which nothing is left to do.
fn outcome(error: &ClientError) -> Option<&'static str> {
    match error {
        ClientError::Refused(refused) => match refused.code() {
            Some(ErrorCode::TimerDelivered) => Some("already delivered"),
            Some(ErrorCode::UnknownTimer) => Some("unknown"),
            _ => None,
        },
        _ => None,
    }
}

async fn cancel(
    handles: &[PendingHandle],
    dry_run: bool,
    target: &Target,
    screen: Screen,
) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let mut all = true;
    for handle in handles {
        let result = match dry_run {
            true => client.peek_message(*handle).await.map(drop),
            false => client.cancel_timer(*handle).await,
        };
        let word = match &result {
            Ok(()) if dry_run => "waits",
            Ok(()) => "done",
            Err(error) => outcome(error)
                .ok_or_else(|| link::failure_about(error, target, "message", &handle.to_string()))?,
        };
        all &= result.is_ok();
        say(*handle, word, screen)?;
    }
    if all { Ok(()) } else { Err(Failure::said(EXIT_FAILED)) }
}

fn say(handle: PendingHandle, word: &str, screen: Screen) -> Result<(), Failure> {
    if screen.json {
        return Ok(screen.object(&json!({"handle": handle.to_string(), "outcome": word}))?);
    }
    let ink = if matches!(word, "done" | "waits") { Ink::Green } else { Ink::Yellow };
    Ok(screen.line(&format!(
        "{}  {}",
        screen.paint(Ink::Bold, &handle.to_string()),
        screen.paint(ink, word)
    ))?)
}

async fn reschedule(
    handle: PendingHandle,
    due_ms: i64,
    target: &Target,
    screen: Screen,
) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    match client.reschedule_timer(handle, due_ms).await {
        Ok(()) if screen.json => Ok(screen.object(
            &json!({"handle": handle.to_string(), "outcome": "done", "due": format::time(due_ms)}),
        )?),
        Ok(()) => Ok(screen.line(&format!(
            "{}  {}, visible at {}",
            screen.paint(Ink::Bold, &handle.to_string()),
            screen.paint(Ink::Green, "done"),
            format::time(due_ms)
        ))?),
        Err(error) => {
            let word = outcome(&error)
                .ok_or_else(|| link::failure_about(&error, target, "message", &handle.to_string()))?;
            say(handle, word, screen)?;
            Err(Failure::said(EXIT_FAILED))
        }
    }
}

/// How many wait in a topic.
async fn waiting(client: &Client, topic: &str, target: &Target) -> Result<u64, Failure> {
    let stats = client.topic_stats(topic).await;
    let stats = stats.map_err(|error| link::client_failure(&error, target, Some(topic)))?;
    Ok(stats.pending_delays.unwrap_or(0))
}

async fn purge(
    topic: &str,
    dry_run: bool,
    yes: bool,
    target: &Target,
    screen: Screen,
) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let mut count = waiting(&client, topic, target).await?;
    if !dry_run {
        confirmed(yes, &format!("cancel {} messages of topic {topic}?", thousands(count)))?;
        let purged = client.purge_timers(topic).await;
        count = purged.map_err(|error| link::client_failure(&error, target, Some(topic)))?;
    }
    if screen.json {
        return Ok(screen.object(&json!({"topic": topic, "messages": count, "cancelled": !dry_run}))?);
    }
    let verb = if dry_run { "would cancel" } else { "cancelled" };
    Ok(screen.line(&format!("{verb} {} messages of {}", thousands(count), screen.paint(Ink::Bold, topic)))?)
}
