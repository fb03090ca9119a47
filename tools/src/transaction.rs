//! `ringmq txn`: transactions that are open or parked, and their ends by hand.

use crate::cli::{Common, Target};
use crate::confirm::confirmed;
use crate::failure::Failure;
use crate::format;
use crate::link;
use crate::screen::{Ink, Screen, duration, thousands};
use comfy_table::Cell;
use ringmq_client::limits::RETRY_FOR;
use ringmq_client::{HalfInfo, TransactionEnd, TransactionId, TransactionInfo, TransactionState};
use ringmq_server::units::Size;
use serde_json::{Value, json};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  ringmq txn ls
  ringmq txn ls --state parked --group payments
  ringmq txn show 5f0c…            its half messages; `ringmq timer peek` reads one
  ringmq txn commit 5f0c… --yes
  ringmq txn recheck 5f0c…";

/// Transactions: list, show, resolve by hand.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TxnArgs {
    #[command(subcommand)]
    verb: TxnVerb,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum State {
    Open,
    Parked,
    Decided,
}

#[derive(Debug, clap::Args)]
struct End {
    /// Its id: 32 hexadecimal digits, as `txn ls` shows it.
    id: TransactionId,
    /// Only show what it would end.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Subcommand)]
enum TxnVerb {
    /// List the transactions that are not resolved.
    #[command(
        after_help = "Examples:\n  ringmq txn ls\n  ringmq txn ls --state parked\n  ringmq txn ls --json | jq -r .id"
    )]
    Ls {
        /// Only in this state.
        #[arg(long, value_name = "STATE")]
        state: Option<State>,
        /// Only of this producer group.
        #[arg(long, value_name = "GROUP", default_value = "", hide_default_value = true)]
        group: String,
        #[command(flatten)]
        target: Target,
    },
    /// Show a transaction, resolved or not, and its half messages.
    #[command(after_help = "Examples:\n  ringmq txn show 5f0c…\n  ringmq txn show 5f0c… --json | jq .halves")]
    Show {
        /// Its id: 32 hexadecimal digits, as `txn ls` shows it.
        id: TransactionId,
        #[command(flatten)]
        target: Target,
    },
    /// Make all messages of a transaction visible.
    #[command(
        after_help = "Examples:\n  ringmq txn commit 5f0c… --dry-run\n  ringmq txn commit 5f0c… --yes\n\nFor who knows that the producer's own work was done. The same again is fine; the opposite is refused."
    )]
    Commit(End),
    /// End a transaction so that none of its messages ever becomes visible.
    #[command(
        after_help = "Examples:\n  ringmq txn rollback 5f0c… --dry-run\n  ringmq txn rollback 5f0c… --yes\n\nFor who knows that the producer's own work was not done. The same again is fine; the opposite is refused."
    )]
    Rollback(End),
    /// Ask the producers of a parked transaction again, with all their attempts.
    #[command(after_help = "Examples:\n  ringmq txn recheck 5f0c…")]
    Recheck {
        /// Its id: 32 hexadecimal digits, as `txn ls` shows it.
        id: TransactionId,
        #[command(flatten)]
        target: Target,
    },
}

/// Does what was asked for.
pub(crate) fn run(args: &TxnArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    match &args.verb {
        TxnVerb::Ls { state, group, target } => link::block_on(list(*state, group, target, screen)),
        TxnVerb::Show { id, target } => link::block_on(show(*id, target, screen)),
        TxnVerb::Commit(how) => link::block_on(end(how, TransactionEnd::Commit, screen)),
        TxnVerb::Rollback(how) => link::block_on(end(how, TransactionEnd::Abort, screen)),
        TxnVerb::Recheck { id, target } => link::block_on(recheck(*id, target, screen)),
    }
}

fn state_text(state: TransactionState) -> &'static str {
    match state {
        TransactionState::Open => "open",
        TransactionState::Parked => "parked",
        TransactionState::Decided => "decided",
        TransactionState::Committed => "committed",
        TransactionState::Aborted => "rolled back",
    }
}

fn state_ink(state: TransactionState) -> Ink {
    match state {
        TransactionState::Open | TransactionState::Decided => Ink::Bold,
        TransactionState::Parked => Ink::Yellow,
        TransactionState::Committed => Ink::Green,
        TransactionState::Aborted => Ink::Dim,
    }
}

fn to_json(info: &TransactionInfo) -> Value {
    json!({
        "id": info.id.to_string(),
        "group": info.group,
        "state": state_text(info.state),
        "since": format::time(info.since_ms),
        "next_check": (info.next_check_ms != 0).then(|| format::time(info.next_check_ms)),
        "attempts": info.attempts,
        "halves": info.halves,
        "bytes": info.bytes,
        "shards": info.participants.count_ones(),
    })
}

/// Age, in seconds, by this machine's clock.
fn age(since_ms: i64) -> String {
    let ms = jiff::Timestamp::now().as_millisecond().saturating_sub(since_ms);
    duration(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
}

fn next_check(info: &TransactionInfo) -> String {
    let ms = info.next_check_ms.saturating_sub(jiff::Timestamp::now().as_millisecond());
    match info.next_check_ms {
        0 => "never".to_owned(),
        _ => u64::try_from(ms)
            .map_or("due".to_owned(), |ms| format!("in {}", duration(Duration::from_millis(ms)))),
    }
}

async fn list(state: Option<State>, group: &str, target: &Target, screen: Screen) -> Result<(), Failure> {
    let state = state.map(|state| match state {
        State::Open => TransactionState::Open,
        State::Parked => TransactionState::Parked,
        State::Decided => TransactionState::Decided,
    });
    let client = link::connect(target, RETRY_FOR).await?;
    let (mut after, mut rows) = (None, Vec::new());
    loop {
        let page = client.list_transactions(group, state, after, 0).await;
        let page = page.map_err(|error| link::client_failure(&error, target, None))?;
        for info in &page.transactions {
            if screen.json {
                screen.object(&to_json(info))?;
                continue;
            }
            rows.push(vec![
                screen.cell(Ink::Bold, info.id),
                screen.cell(state_ink(info.state), state_text(info.state)),
                Cell::new(&info.group),
                Cell::new(age(info.since_ms)),
                Cell::new(info.halves),
                Cell::new(info.attempts),
                Cell::new(next_check(info)),
            ]);
        }
        after = page.transactions.last().map(|last| last.id);
        if !page.more || after.is_none() {
            break;
        }
    }
    if screen.json {
        return Ok(());
    }
    if rows.is_empty() {
        if screen.terminal {
            screen.line("no transaction is open")?;
        }
        return Ok(());
    }
    Ok(screen.table(&["transaction", "state", "group", "age", "halves", "checks", "next"], rows)?)
}

async fn look(
    id: TransactionId,
    target: &Target,
) -> Result<(ringmq_client::Client, TransactionInfo, Vec<HalfInfo>), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let shown = client.show_transaction(id).await;
    let (info, halves) =
        shown.map_err(|error| link::failure_about(&error, target, "transaction", &id.to_string()))?;
    Ok((client, info, halves))
}

async fn show(id: TransactionId, target: &Target, screen: Screen) -> Result<(), Failure> {
    let (_, info, halves) = look(id, target).await?;
    if screen.json {
        let mut object = to_json(&info);
        let halves = halves.iter().map(|half| {
            json!({
                "handle": half.handle.to_string(),
                "topic": half.topic,
                "partition": half.partition,
                "records": half.records,
                "bytes": half.bytes,
                "due": (half.due_ms != 0).then(|| format::time(half.due_ms)),
            })
        });
        object["halves"] = halves.collect();
        return Ok(screen.object(&object)?);
    }
    screen.line(&format!(
        "{}  {}  group {}  {} old",
        screen.paint(Ink::Bold, &id.to_string()),
        screen.paint(state_ink(info.state), state_text(info.state)),
        info.group,
        age(info.since_ms)
    ))?;
    screen.line(&screen.paint(
        Ink::Dim,
        &format!(
            "{} half messages, {}, on {} shards · {} checks handed over · next {}",
            thousands(info.halves.into()),
            Size(info.bytes),
            info.participants.count_ones(),
            info.attempts,
            next_check(&info)
        ),
    ))?;
    if halves.is_empty() {
        return Ok(());
    }
    let rows = halves.iter().map(|half| {
        vec![
            screen.cell(Ink::Bold, half.handle),
            Cell::new(format!("{}[{}]", half.topic, half.partition)),
            Cell::new(half.records),
            Cell::new(Size(half.bytes.into())),
            Cell::new(if half.due_ms == 0 { "at commit".to_owned() } else { format::time(half.due_ms) }),
        ]
    });
    Ok(screen.table(&["half message", "for", "records", "bytes", "visible"], rows.collect())?)
}

async fn end(how: &End, resolution: TransactionEnd, screen: Screen) -> Result<(), Failure> {
    let commit = resolution == TransactionEnd::Commit;
    let verb = if commit { "commit" } else { "roll back" };
    let (client, info, _) = look(how.id, &how.target).await?;
    let what = format!(
        "{} half messages of group {}, {} old",
        thousands(info.halves.into()),
        info.group,
        age(info.since_ms)
    );
    let resolved = matches!(info.state, TransactionState::Committed | TransactionState::Aborted);
    if !how.dry_run {
        if !resolved {
            confirmed(how.yes, &format!("{verb} {what}? It cannot be undone."))?;
        }
        let ended = client.resolve_transaction(how.id, resolution).await;
        ended
            .map_err(|error| link::failure_about(&error, &how.target, "transaction", &how.id.to_string()))?;
    }
    let before = state_text(info.state);
    if screen.json {
        return Ok(screen.object(&json!({
            "id": how.id.to_string(),
            "before": before,
            "after": if how.dry_run { before } else if commit { "committed" } else { "rolled back" },
            "halves": info.halves,
            "done": !how.dry_run,
        }))?);
    }
    let done = match (how.dry_run, resolved, commit) {
        (true, ..) => format!("would {verb} {what}; it is {before}"),
        (_, true, true) => "was committed before".to_owned(),
        (_, true, false) => "was rolled back before".to_owned(),
        (_, _, true) => format!("committed, on disk: {what}"),
        (_, _, false) => format!("rolled back, on disk: {what}"),
    };
    Ok(screen.line(&format!("{}  {done}", screen.paint(Ink::Bold, &how.id.to_string())))?)
}

async fn recheck(id: TransactionId, target: &Target, screen: Screen) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let asked = client.resolve_transaction(id, TransactionEnd::Recheck).await;
    asked.map_err(|error| link::failure_about(&error, target, "transaction", &id.to_string()))?;
    if screen.json {
        return Ok(screen.object(&json!({"id": id.to_string(), "rechecked": true}))?);
    }
    Ok(screen.line(&format!(
        "{}  will be checked again, with all attempts",
        screen.paint(Ink::Bold, &id.to_string())
    ))?)
}
