//! `ringmq demo`: a real server and real clients, `kill -9` in the middle, and proof that nothing acknowledged is lost.
//!
//! The server is this binary in a process of its own, on a temporary directory; the clients speak TCP over loopback
//! and reconnect by themselves. Exit code 0 only if every claim held. What a failed demo leaves is kept and named.

mod evidence;
mod traffic;

use crate::child::{Launch, ServerProcess, Workspace, free_ports};
use crate::cli::{Common, Target};
use crate::failure::{EXIT_FAILED, Failure};
use crate::link;
use crate::screen::{self, Ink, Screen, duration, thousands};
use evidence::{Published, Verified};
use ringmq_server::units::Size;
use serde_json::json;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Shards of the demo's server.
const SHARDS: u16 = 2;
/// A server that is not ready by then is given up.
const READY_MAX: Duration = Duration::from_secs(15);
/// Records of a demo, and of a fast one.
const RECORDS: u32 = 10_000;
const RECORDS_FAST: u32 = 1_000;

const EXAMPLES: &str = "\
Examples:
  ringmq demo
  ringmq demo --json
  ringmq demo --keep          and look at what is on the disk

Exit codes: 0 every claim held, 1 one did not, or the demo could not run.";

/// How to show it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DemoArgs {
    /// A tenth of the records.
    #[arg(long)]
    fast: bool,
    /// Keep the data directory, and say where it is.
    #[arg(long)]
    keep: bool,
    /// Make the temporary directory in DIR [default: TMPDIR, or here if that has no O_DIRECT].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// One thing that the demo shows.
struct Claim {
    name: &'static str,
    held: bool,
    figures: String,
}

/// Runs the demo.
pub(crate) fn run(args: &DemoArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let workspace = Workspace::new("ringmq-demo-", args.dir.as_deref())?;
    let result = play(args, common, screen, &workspace).map_err(Failure::never_zero);
    let keep = args.keep || result.is_err();
    if let Some(path) = workspace.close(keep)? {
        let line = format!("the data and the server's log are in {}", path.display());
        if screen.json {
            let _ = screen.object(&json!({"kept": path.display().to_string()}));
        } else {
            let _ = screen.line(&screen.paint(Ink::Dim, &line));
        }
    }
    result
}

/// A server on `data`, listening from `port` on.
fn start(data: &Path, port: u16, log: &Path) -> Result<ServerProcess, Failure> {
    let mut args: Vec<OsString> = ["--memory", "128M", "--segment-size", "8M", "--admin-listen", "none"]
        .into_iter()
        .map(OsString::from)
        .collect();
    args.extend(["--shards".into(), SHARDS.to_string().into()]);
    args.extend(["--listen".into(), format!("127.0.0.1:{port}").into(), "--data".into(), data.into()]);
    ServerProcess::start(Launch { args, log, core: None, ready_max: READY_MAX })
}

struct Story {
    published: Published,
    after_kill: Verified,
    stopped: (ExitStatus, Duration),
    restarted: Duration,
    after_stop: Verified,
    took: Duration,
}

fn play(args: &DemoArgs, common: &Common, screen: Screen, workspace: &Workspace) -> Result<(), Failure> {
    let since = Instant::now();
    let records = if args.fast { RECORDS_FAST } else { RECORDS };
    let step = |what: &str, text: &str| -> Result<(), Failure> {
        if !screen.json {
            screen.line(&format!("  {} {text}", screen.paint(Ink::Bold, &format!("{what:<9}"))))?;
        }
        Ok(())
    };
    if !screen.json {
        screen.line("a real server, real clients over loopback TCP, and kill -9 in the middle\n")?;
    }
    let port = free_ports(SHARDS)?;
    let server = start(&workspace.data(), port, &workspace.log())?;
    let target = Target { server: server.address.clone() };
    step(
        "start",
        &format!(
            "{SHARDS} shards on {}, ready in {}",
            workspace.data().display(),
            duration(server.ready_after)
        ),
    )?;
    step("publish", &format!("{} records to {} partitions", thousands(records.into()), traffic::PARTITIONS))?;
    let bar = screen::progress(records.into(), "acknowledged", common);
    let (published, server) =
        link::block_on(traffic::publish(&target, records, server, workspace, port, &bar))?;
    bar.finish_and_clear();
    step(
        "kill -9",
        &format!(
            "after {} acknowledgements, with {} records under way",
            thousands(published.acked_at_kill.into()),
            published.under_way_at_kill
        ),
    )?;
    step(
        "restart",
        &format!(
            "recovered and ready in {}; the clients reconnected by themselves",
            duration(published.recovered_after)
        ),
    )?;
    let bar = screen::progress(records.into(), "read back", common);
    let after_kill = link::block_on(traffic::verify(&target, &published, &bar))?;
    bar.finish_and_clear();
    step("verify", &format!("{} records read back and compared", thousands(after_kill.found.into())))?;

    let stopped = server.stop()?;
    step("SIGTERM", &format!("drained, {} after {}", stopped.0, duration(stopped.1)))?;
    let server = start(&workspace.data(), port, &workspace.log())?;
    let restarted = server.ready_after;
    let target = Target { server: server.address.clone() };
    step("restart", &format!("ready in {}", duration(restarted)))?;
    let bar = screen::progress(records.into(), "read back", common);
    let after_stop = link::block_on(traffic::verify(&target, &published, &bar))?;
    bar.finish_and_clear();
    step("verify", &format!("{} records read back and compared\n", thousands(after_stop.found.into())))?;
    server.stop()?;

    let story = Story { published, after_kill, stopped, restarted, after_stop, took: since.elapsed() };
    conclude(&story, records, screen)
}

fn conclude(story: &Story, records: u32, screen: Screen) -> Result<(), Failure> {
    let claims = claims(story, records);
    let held = claims.iter().all(|claim| claim.held);
    let speed = story.published.speed();
    if screen.json {
        let list = claims
            .iter()
            .map(|claim| json!({"claim": claim.name, "held": claim.held, "figures": claim.figures}))
            .collect::<Vec<_>>();
        screen.object(&json!({
            "held": held,
            "claims": list,
            "records": records,
            "acks_per_s": speed.acks_per_s,
            "ack_p50_us": speed.p50.as_micros() as u64,
            "ack_p99_us": speed.p99.as_micros() as u64,
            "recovery_ms": story.published.recovered_after.as_secs_f64() * 1e3,
            "clean_start_ms": story.restarted.as_secs_f64() * 1e3,
            "seconds": story.took.as_secs_f64(),
        }))?;
    } else {
        let rows = claims.iter().map(|claim| {
            let (ink, word) = if claim.held { (Ink::Green, "held") } else { (Ink::Red, "BROKEN") };
            vec![
                screen.cell(ink, word),
                screen.cell(Ink::Bold, claim.name),
                comfy_table::Cell::new(&claim.figures),
            ]
        });
        screen.table(&["", "claim", "what was seen"], rows.collect())?;
        screen.line(&format!(
            "\n{} acknowledgements/s, p50 {}, p99 {}, each on disk; the whole demo took {}",
            thousands(speed.acks_per_s),
            duration(speed.p50),
            duration(speed.p99),
            duration(story.took)
        ))?;
    }
    if held { Ok(()) } else { Err(Failure::said(EXIT_FAILED)) }
}

fn claims(story: &Story, records: u32) -> Vec<Claim> {
    let Story { published, after_kill, stopped, after_stop, .. } = story;
    let count = |number: u32| thousands(number.into());
    vec![
        Claim {
            name: "the publisher never noticed",
            held: published.acks.len() == records as usize,
            figures: format!(
                "{} of {} acknowledged, across the kill and {} of absence",
                thousands(published.acks.len() as u64),
                count(records),
                duration(published.absence)
            ),
        },
        Claim {
            name: "acknowledged means on disk",
            held: after_kill.lost == 0 && after_kill.elsewhere == 0,
            figures: format!(
                "{} of {} found where they were acknowledged; lost to kill -9: {}",
                count(after_kill.found),
                count(records),
                after_kill.lost + after_kill.elsewhere
            ),
        },
        Claim {
            name: "exactly once",
            held: after_kill.doubled == 0 && after_kill.unknown == 0,
            figures: format!(
                "{} twice; {} sent again after the kill were recognised as stored",
                after_kill.doubled + after_kill.unknown,
                published.recognised
            ),
        },
        Claim {
            name: "in order",
            held: after_kill.misordered == 0,
            figures: format!("{} out of order in {} partitions", after_kill.misordered, traffic::PARTITIONS),
        },
        Claim {
            name: "bytes identical",
            held: after_kill.changed == 0,
            figures: format!("{} changed, {} compared", after_kill.changed, Size(after_kill.bytes)),
        },
        Claim {
            name: "a clean stop",
            held: stopped.0.success() && stopped.1 < Duration::from_secs(5),
            figures: format!("SIGTERM, then {} after {}", stopped.0, duration(stopped.1)),
        },
        Claim {
            name: "and all of it again",
            held: after_stop.holds() && after_stop.found == records,
            figures: format!(
                "{} of {} found after the restart, ready in {}",
                count(after_stop.found),
                count(records),
                duration(story.restarted)
            ),
        },
    ]
}
