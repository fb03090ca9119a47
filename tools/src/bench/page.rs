//! `ringmq bench report`: a page of HTML from results, in one file that needs nothing else and never will.

use super::chart::{self, Bar, Curve, Whisker, escape};
use super::latency::{format_rate, format_us};
use super::results::{Run, number, read};
use super::stats::Interval;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Curves in one chart; more would hide each other.
const CURVES_MAX: usize = 8;

const EXAMPLES: &str = "\
Examples:
  ringmq bench report floors.json goals.json runs.jsonl --out report.html
  ringmq bench report results/ --title 'Friday, two cores' --out report.html

It takes what `--out` and `--json` of every bench write, the results of benches/peers and floors, in any mixture.";

/// Write a page with charts from results.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ReportArgs {
    /// Results: files of one or more, or directories of files.
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// The page.
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Its heading.
    #[arg(long, default_value = "RingMQ: measured")]
    title: String,
}

pub(super) fn run(args: &ReportArgs, json: bool) -> Result<(), String> {
    let runs = args.results.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?.concat();
    let page = page(&args.title, &runs);
    std::fs::write(&args.out, &page).map_err(|e| format!("cannot write {}: {e}", args.out.display()))?;
    let out = args.out.display();
    super::print_line(&if json {
        serde_json::json!({"bench": "report", "results": runs.len(), "page": out.to_string()}).to_string()
    } else {
        format!("{out}  {} results, {} KiB", runs.len(), page.len().div_ceil(1024))
    });
    Ok(())
}

const STYLE: &str = "\
:root{--ink:#1b1f24;--soft:#667;--line:#dde;--paper:#fff;--good:#1a7f37;--bad:#cf222e;--unknown:#9a6700;\
--c0:#2f6fde;--c1:#e07b00;--c2:#2a9d68;--c3:#c2417c;--c4:#7a5cc8;--c5:#8a6d3b;--c6:#14889b;--c7:#777}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#9aa3b2;--line:#333a46;--paper:#14171c;\
--good:#4cc76a;--bad:#ff7b72;--unknown:#e3b341;--c0:#6ea3ff;--c1:#ffae57;--c2:#5fd39b;--c3:#f27bb0;--c4:#b39cf5;\
--c5:#cfb27a;--c6:#57c7da;--c7:#aaa}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem auto;\
padding:0 1rem}h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .4rem}p{margin:.3rem 0;color:var(--soft)}\
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;width:100%}th,td{padding:.25rem .6rem;\
border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}th:first-child,td:first-child{text-align:left;\
white-space:normal;min-width:14rem}th{color:var(--soft);font-weight:600}svg{width:100%;height:auto;display:block}\
text{font:12px system-ui,sans-serif;fill:var(--ink)}.end{text-anchor:end}.middle{text-anchor:middle;fill:var(--soft)}\
.figure{fill:var(--soft)}.grid{stroke:var(--line)}.limit{stroke:var(--bad);stroke-width:2;stroke-dasharray:4 3}\
polyline{fill:none;stroke-width:2}.w{stroke-width:3}.reached{fill:var(--good);stroke:var(--good);color:var(--good)}\
.missed{fill:var(--bad);stroke:var(--bad);color:var(--bad)}.not_shown{fill:var(--unknown);stroke:var(--unknown);\
color:var(--unknown)}";

fn page(title: &str, runs: &[Run]) -> String {
    let mut colours = String::new();
    for n in 0..8 {
        let _ = write!(colours, ".c{n}{{fill:var(--c{n})}}.l{n}{{stroke:var(--c{n})}}");
    }
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>{0}</title>\n<style>{STYLE}{colours}</style></head>\
         <body>\n<h1>{0}</h1>\n",
        escape(title)
    );
    machines(&mut out, runs);
    for run in runs.iter().filter(|run| run.is("goals")) {
        goals(&mut out, run);
    }
    loads(&mut out, runs);
    latencies(&mut out, runs);
    peers(&mut out, runs);
    for run in runs.iter().filter(|run| run.value.get("floors").is_some()) {
        floors(&mut out, run);
    }
    instructions(&mut out, runs);
    out += "<p>Written by <code>ringmq bench report</code>. A figure says as much about the machine as about the \
            server; ratios to the floor of the same hour say more.</p>\n</body></html>\n";
    out
}

fn machines(out: &mut String, runs: &[Run]) {
    let mut seen: Vec<String> = Vec::new();
    for run in runs {
        let machine = &run.value["machine"];
        if !machine.is_object() {
            continue;
        }
        let text = |name: &str| machine[name].as_str().unwrap_or("?").to_owned();
        let line = format!(
            "Linux {}, {}, {} cores, load {:.2} before the start",
            text("kernel"),
            text("filesystem"),
            machine["cores"],
            number(machine, "load_before").unwrap_or(0.0)
        );
        if !seen.contains(&line) {
            let _ = writeln!(out, "<p>{}</p>", escape(&line));
            seen.push(line);
        }
    }
}

fn heading(out: &mut String, title: &str, about: &str) {
    let _ = writeln!(out, "<h2>{}</h2>\n<p>{}</p>", escape(title), escape(about));
}

fn goals(out: &mut String, run: &Run) {
    let mut whiskers = Vec::new();
    let mut left = Vec::new();
    for row in run.value["rows"].as_array().into_iter().flatten() {
        let name = row["row"].as_str().unwrap_or("?");
        for figure in row["figures"].as_array().into_iter().flatten() {
            let goal = &figure["goal"];
            let found = [("at_least", true), ("at_most", false), ("below", false)];
            let found = found.iter().find_map(|(kind, least)| Some((number(goal, kind)?, *least)));
            let Some((goal, at_least)) = found else { continue };
            let of = |name: &str| number(&figure["ratio"], name).unwrap_or(0.0);
            let share = |value: f64| match at_least {
                true => value / goal.max(1e-12),
                false if value <= 0.0 => f64::INFINITY,
                false => goal / value,
            };
            let (low, high) = (share(of("low")), share(of("high")));
            whiskers.push(Whisker {
                label: format!("{name}: {}", figure["what"].as_str().unwrap_or("?")),
                low: low.min(high),
                median: share(of("median")),
                high: low.max(high),
                figure: format!("{:.3} ({} {goal})", of("median"), if at_least { "≥" } else { "≤" }),
                verdict: figure["verdict"].as_str().unwrap_or("not_shown").to_owned(),
            });
        }
        if let Some(why) = row["skipped"].as_str().or(row["failed"].as_str()) {
            left.push(format!("{name}: {why}"));
        }
    }
    let about = format!(
        "{} pairs of {} s a side. Each figure as a share of its goal with the 95 % interval of its median: wholly right \
         of the line is reached, wholly left is missed.",
        run.value["pairs"], run.value["seconds"]
    );
    heading(out, "Goals", &about);
    *out += &chart::whiskers("Goals", &whiskers);
    for line in left {
        let _ = writeln!(out, "<p>Not measured: {}</p>", escape(&line));
    }
}

/// Percent of a core of all threads of a load generator.
fn load_percent(run: &Run) -> f64 {
    run.number("load_cpu_percent").unwrap_or(0.0) + run.number("subscribers_cpu_percent").unwrap_or(0.0)
}

fn verdict(run: &Run) -> String {
    let verdict = &run.value["verdict"];
    if !verdict.is_object() {
        return String::new();
    }
    let count = |name: &str| verdict[name].as_u64().unwrap_or(0);
    let bad = count("lost") + count("duplicated") + count("out_of_order") + count("invented");
    if bad == 0 { "holds".to_owned() } else { format!("{bad} bad") }
}

fn loads(out: &mut String, runs: &[Run]) {
    let loads: Vec<&Run> = runs
        .iter()
        .filter(|run| run.number("records_s").is_some() && run.value.get("peer").is_none())
        .collect();
    if loads.is_empty() {
        return;
    }
    heading(
        out,
        "Loads",
        "Latencies count from the intended time of sending where a rate is given. The dashed line is the floor of the \
         first ratio, where it is a rate.",
    );
    let rate = |run: &&Run| run.number("delivered_mb_s").or(run.number("mb_s")).unwrap_or(0.0);
    let limit = |run: &&Run| {
        let ratios = run.value["ratios"].as_array()?;
        ratios.iter().find(|r| r["what"].as_str().is_some_and(|what| what.ends_with("MB/s")))?["floor"]
            .as_f64()
    };
    let bars: Vec<Bar> = loads
        .iter()
        .map(|run| Bar {
            label: run.label(),
            value: rate(run),
            figure: format_rate(rate(run)),
            series: 0,
            limit: limit(run),
        })
        .collect();
    *out += &chart::bars("Bytes per second", &bars);
    *out += "<div class=\"scroll\"><table><tr><th>load</th><th>records/s</th><th>rate</th><th>p50</th><th>p99</th>\
             <th>p99.9</th><th>max</th><th>to the floor</th><th>load's cores</th><th>verified</th></tr>\n";
    for run in &loads {
        let name = if run.number("latency_us.count").is_some() { "latency_us" } else { "end_to_end_us" };
        let us = |at: &str| {
            let found = run.number(&format!("{name}.{at}")).filter(|us| *us > 0.0);
            found.map_or_else(String::new, format_us)
        };
        let ratio = run.value["ratios"].as_array().and_then(|ratios| ratios.first());
        let ratio = ratio.and_then(|ratio| ratio["ratio"].as_f64());
        let bound = if run.value["generator_bound"] == true { " (generator-bound)" } else { "" };
        let cells = [
            run.label(),
            format!("{:.0}", run.number("records_s").unwrap_or(0.0)),
            format_rate(rate(run)),
            us("p50"),
            us("p99"),
            us("p99_9"),
            us("max"),
            ratio.map_or_else(String::new, |ratio| format!("{ratio:.2} ×")),
            format!("{:.0} %{bound}", load_percent(run)),
            verdict(run),
        ];
        row(out, &cells);
    }
    *out += "</table></div>\n";
}

fn row(out: &mut String, cells: &[String]) {
    let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
    let _ = writeln!(out, "<tr>{cells}</tr>");
}

fn latencies(out: &mut String, runs: &[Run]) {
    let curves: Vec<Curve> = runs
        .iter()
        .filter(|run| run.value.get("peer").is_none())
        .filter_map(|run| {
            let points: Vec<(f64, f64)> = run.value["latency_curve"]
                .as_array()?
                .iter()
                .filter_map(|point| Some((point.get(0)?.as_f64()?, point.get(1)?.as_f64()?)))
                .collect();
            (!points.is_empty()).then(|| Curve { label: run.label(), points })
        })
        .collect();
    for chunk in curves.chunks(CURVES_MAX) {
        heading(
            out,
            "Latencies",
            "By percentile; each step to the right has ten times fewer requests above it.",
        );
        *out += &chart::curves("Latencies by percentile", chunk);
    }
}

/// Peers beside the runs of ours of the same shape.
fn peers(out: &mut String, runs: &[Run]) {
    let peers: Vec<&Run> = runs.iter().filter(|run| run.value.get("peer").is_some()).collect();
    if peers.is_empty() {
        return;
    }
    heading(
        out,
        "Peers on the same work",
        "The same records over the same connections from the same generator on the same disk. “flush” acknowledges what \
         is on disk; “default” is what a peer does when nothing is said. Medians of all runs.",
    );
    let mut shapes: Vec<&str> = Vec::new();
    for run in &peers {
        let shape = run.text("load").unwrap_or("?");
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    let mut names: Vec<String> = Vec::new();
    for shape in shapes {
        let of_shape: Vec<&&Run> =
            peers.iter().filter(|run| run.text("load").unwrap_or("?") == shape).collect();
        let name =
            |run: &Run| format!("{} ({})", run.text("peer").unwrap_or("?"), run.text("mode").unwrap_or("?"));
        for run in &of_shape {
            if !names.contains(&name(run)) {
                names.push(name(run));
            }
        }
        let mut bars = Vec::new();
        for (series, known) in names.iter().enumerate() {
            let runs: Vec<_> = of_shape.iter().filter(|run| name(run) == *known).collect();
            let median = |metric: &str| {
                let values: Vec<f64> = runs.iter().filter_map(|run| run.number(metric)).collect();
                Interval::of(&values).median
            };
            if runs.is_empty() {
                continue;
            }
            let (per_second, p99) = (median("records_s"), median("latency_us.p99"));
            let p99 = if p99 > 0.0 { format!(", p99 {}", format_us(p99)) } else { String::new() };
            bars.push(Bar {
                label: format!("{known}, {} runs", runs.len()),
                value: per_second,
                figure: format!("{per_second:.0}/s{p99}"),
                series,
                limit: None,
            });
        }
        let _ = writeln!(out, "<p><strong>{}</strong></p>", escape(shape));
        *out += &chart::bars(shape, &bars);
    }
}

fn floors(out: &mut String, run: &Run) {
    heading(
        out,
        "The floor",
        "What plain system calls reach here. floor-pipe is one thread that receives over loopback and writes durably, \
         and does nothing else.",
    );
    let mut bars = Vec::new();
    for floor in run.value["floors"].as_array().into_iter().flatten() {
        let what = floor["what"].as_str().unwrap_or("?").replace('_', " ");
        let size = number(floor, "size").unwrap_or(0.0) / 1024.0;
        let depth = number(floor, "in_flight").filter(|depth| *depth > 1.0);
        let depth = depth.map_or_else(String::new, |depth| format!(" × {depth:.0} in flight"));
        let rate = number(floor, "mb_s.median").unwrap_or(0.0);
        let p50 =
            number(floor, "p50_us.median").map_or_else(String::new, |us| format!(", p50 {}", format_us(us)));
        bars.push(Bar {
            label: format!("{what} {size:.0} KiB{depth}"),
            value: rate,
            figure: format!("{}{p50}", format_rate(rate)),
            series: usize::from(what.starts_with("pipe")),
            limit: None,
        });
    }
    *out += &chart::bars("Floors", &bars);
}

/// Instructions of single paths, as `benches/instructions` counts them.
fn instructions(out: &mut String, runs: &[Run]) {
    let bars: Vec<Bar> = runs
        .iter()
        .filter_map(|run| {
            let count = run.number("instructions")?;
            Some(Bar {
                label: run.text("path")?.to_owned(),
                value: count,
                figure: format!("{count:.0}"),
                series: 6,
                limit: run.value.get("budget").and_then(Value::as_f64),
            })
        })
        .collect();
    if !bars.is_empty() {
        heading(
            out,
            "Instructions",
            "Of one frame, record or request, counted; the dashed line is the budget.",
        );
        *out += &chart::bars("Instructions", &bars);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_shows_everything_and_needs_nothing_else() {
        let run = |value: Value| Run { value };
        let latency = json!({"count": 9, "p50": 200.0, "p99": 900.0, "p99_9": 5e3, "max": 6e3});
        let runs = [
            run(json!({"machine": {"kernel": "6.1", "filesystem": "ext4", "cores": 2, "load_before": 0.1},
                "floors": [{"what": "pipe_dsync", "size": 1 << 20, "in_flight": 4, "mb_s": {"median": 2000.0}}]})),
            run(json!({"bench": "produce", "record_size": 1024, "batch": 10, "records_s": 5e4, "mb_s": 51.2,
                "latency_us": latency, "latency_curve": [[0.0, 100.0], [50.0, 200.0], [99.0, 900.0], [100.0, 6e3]],
                "ratios": [{"what": "floor-pipe, MB/s", "ratio": 0.5, "floor": 102.4}], "load_cpu_percent": 95.0,
                "generator_bound": true, "verdict": {"lost": 0, "duplicated": 0, "out_of_order": 0, "invented": 0}})),
            run(
                json!({"bench": "peer", "peer": "redis <x>", "mode": "flush", "load": "one & one", "records_s": 1e4,
                "latency_us": latency}),
            ),
            run(
                json!({"bench": "goals", "pairs": 10, "seconds": 5, "rows": [{"row": "one-in-flight", "figures": [
                {"what": "p50", "goal": {"at_most": 1.2}, "verdict": "missed",
                 "ratio": {"low": 1.3, "median": 1.4, "high": 1.5}}]}, {"row": "start", "skipped": "no room"}]}),
            ),
            run(json!({"bench": "instructions", "path": "frame", "instructions": 900.0, "budget": 950.0})),
        ];
        let page = page("a < b", &runs);
        for part in [
            "a &lt; b",
            "Linux 6.1, ext4",
            "produce 1024 B × 10",
            "generator-bound",
            "0.50 ×",
            "holds",
            "<polyline",
            "redis &lt;x&gt; (flush), 1 runs",
            "one &amp; one",
            "one-in-flight: p50",
            "class=\"missed\"",
            "no room",
            "pipe dsync 1024 KiB × 4 in flight",
            "900 µs",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for foreign in ["<script", "http://", "https://", "<link", "@import", "url("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(!page.contains("NaN") && !page.contains("inf"), "every number is one");
    }
}
