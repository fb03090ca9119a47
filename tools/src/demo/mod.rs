//! `ringmq demo`: a real server and real clients. First `kill -9` in the middle, and proof that nothing acknowledged is
//! lost; then the five scenarios, each with what it proves.
//!
//! The server is this binary in a process of its own, on a temporary directory; the clients speak TCP over loopback
//! and reconnect by themselves. Exit code 0 only if every claim held. What a failed demo leaves is kept and named.

mod evidence;
mod scenarios;
mod traffic;

use crate::child::{Launch, ServerProcess, Workspace, free_ports};
use crate::cli::{Common, Target};
use crate::failure::{EXIT_FAILED, Failure};
use crate::link;
use crate::screen::{self, Ink, Screen, duration, thousands};
use evidence::{Published, Verified};
use ringmq_server::units::Size;
use scenarios::{Claim, Report, Stage, Trouble};
use serde_json::json;
use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Shards of the demo's server.
const SHARDS: u16 = 2;
/// A server that is not ready by then is given up.
const READY_MAX: Duration = Duration::from_secs(15);
/// Records of the part with `kill -9`, and of a fast one.
const RECORDS: u32 = 5_000;
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
    /// Small numbers: seconds, for tests.
    #[arg(long)]
    fast: bool,
    /// Keep the data directory, and say where it is.
    #[arg(long)]
    keep: bool,
    /// Make the temporary directory in DIR [default: TMPDIR, or here if that has no O_DIRECT].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
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
    let mut args: Vec<OsString> =
        ["--memory", "128M", "--segment-size", "8M", "--admin-listen", "none", "--check-every", "1s"]
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
}

fn play(args: &DemoArgs, common: &Common, screen: Screen, workspace: &Workspace) -> Result<(), Failure> {
    let since = Instant::now();
    let records = if args.fast { RECORDS_FAST } else { RECORDS };
    let step = |what: &str, text: &str| -> Result<(), Failure> {
        if !screen.json {
            screen.line(&format!("  {} {text}", screen.paint(Ink::Dim, &format!("{what:<9}"))))?;
        }
        Ok(())
    };
    headline(screen, "kill -9", "a real server, real clients over loopback TCP, and kill -9 in the middle")?;
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
    step("verify", &format!("{} records read back and compared", thousands(after_stop.found.into())))?;
    let story = Story { published, after_kill, stopped, restarted, after_stop };
    let claims = claims(&story, records);
    print_claims(&claims, screen)?;

    // The same server, with those records in it.
    let stage = Stage { address: server.address.clone(), tag: String::new(), fast: args.fast, kills: false };
    let mut reports = Vec::new();
    link::block_on(async {
        reports.push(scene("registration", scenarios::registration::play(&stage), screen, common).await?);
        reports.push(scene("order", scenarios::order::play(&stage), screen, common).await?);
        reports.push(scene("status", scenarios::status::play(&stage), screen, common).await?);
        reports.push(scene("flash sale", scenarios::flash_sale::play(&stage), screen, common).await?);
        reports.push(scene("price feed", scenarios::price_feed::play(&stage), screen, common).await?);
        Ok(())
    })?;
    server.stop()?;
    conclude(&story, &claims, &reports, records, since.elapsed(), screen)
}

fn headline(screen: Screen, title: &str, text: &str) -> Result<(), Failure> {
    if screen.json {
        return Ok(());
    }
    Ok(screen.line(&format!("{}  {text}", screen.paint(Ink::Bold, title)))?)
}

/// Plays a scenario and shows it.
async fn scene(
    title: &str,
    part: impl Future<Output = Result<Report, Trouble>>,
    screen: Screen,
    common: &Common,
) -> Result<Report, Failure> {
    let bar = screen::waiting(title, common);
    let report = part.await;
    bar.finish_and_clear();
    let report = report.map_err(|trouble| Failure::failed(format!("{title}: {trouble}")))?;
    if !screen.json {
        screen.line("")?;
        headline(screen, report.title, &report.story)?;
        for line in &report.picture {
            screen.line(&format!("  {}", screen.paint(Ink::Dim, line)))?;
        }
        print_claims(&report.claims, screen)?;
    }
    Ok(report)
}

fn print_claims(claims: &[Claim], screen: Screen) -> Result<(), Failure> {
    if screen.json {
        return Ok(());
    }
    let wide = claims.iter().map(|claim| claim.name.chars().count()).max().unwrap_or(0);
    for claim in claims {
        let (ink, word) = if claim.held { (Ink::Green, "held  ") } else { (Ink::Red, "BROKEN") };
        // A pipe has no width.
        let width = if screen.terminal { usize::from(screen::width()) } else { usize::MAX };
        let room = width.saturating_sub(wide + 12);
        let name = format!("{:<wide$}", claim.name);
        let mut lines = wrapped(&claim.figures, room.max(24)).into_iter();
        let first = lines.next().unwrap_or_default();
        screen.line(&format!("  {}  {name}  {first}", screen.paint(ink, word)))?;
        for line in lines {
            screen.line(&format!("{:indent$}{line}", "", indent = wide + 12))?;
        }
    }
    Ok(())
}

/// Words in lines of at most `wide` letters.
fn wrapped(text: &str, wide: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > wide {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

fn conclude(
    story: &Story,
    claims: &[Claim],
    reports: &[Report],
    records: u32,
    took: Duration,
    screen: Screen,
) -> Result<(), Failure> {
    let all = || claims.iter().chain(reports.iter().flat_map(|report| &report.claims));
    let broken = all().filter(|claim| !claim.held).count();
    let speed = story.published.speed();
    if screen.json {
        let list = |claims: &[Claim]| {
            let claims = claims.iter();
            claims
                .map(|claim| json!({"claim": claim.name, "held": claim.held, "figures": claim.figures}))
                .collect::<Vec<_>>()
        };
        let scenarios = reports.iter().map(
            |report| json!({"scenario": report.title, "story": report.story, "claims": list(&report.claims)}),
        );
        screen.object(&json!({
            "held": broken == 0,
            "claims": list(claims),
            "scenarios": scenarios.collect::<Vec<_>>(),
            "records": records,
            "acks_per_s": speed.acks_per_s,
            "ack_p50_us": speed.p50.as_micros() as u64,
            "ack_p99_us": speed.p99.as_micros() as u64,
            "recovery_ms": story.published.recovered_after.as_secs_f64() * 1e3,
            "clean_start_ms": story.restarted.as_secs_f64() * 1e3,
            "seconds": took.as_secs_f64(),
        }))?;
    } else {
        let verdict = match broken {
            0 => screen.paint(Ink::Green, &format!("all {} claims held", all().count())),
            _ => screen.paint(Ink::Red, &format!("{broken} of {} claims BROKEN", all().count())),
        };
        screen.line(&format!("\n{verdict} in {}", duration(took)))?;
    }
    if broken == 0 { Ok(()) } else { Err(Failure::said(EXIT_FAILED)) }
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
