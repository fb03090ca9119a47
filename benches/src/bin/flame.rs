//! `flame`: a flame graph from `perf script -F comm,tid,ip,sym --no-inline`, as one SVG without scripts.
//!
//! ```text
//! perf script -F comm,tid,ip,sym --no-inline -i perf.data | flame --title 'batched' > batched.svg
//! perf script … | flame --folded > batched.folded      one line for each stack, for other tools
//! perf script … | flame --top 20                       where the time is spent itself, as text
//! ```
//! The root is at the top; a frame is as wide as its share of the samples, its tooltip says how much that is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, Write as _, stdin, stdout};
use std::process::ExitCode;

const WIDTH: f64 = 1200.0;
const LINE: f64 = 17.0;
const TOP: f64 = 34.0;
/// Of a letter, about.
const LETTER: f64 = 6.6;
/// Narrower than this it is left out.
const NARROW: f64 = 0.4;

fn main() -> ExitCode {
    let (mut title, mut folded, mut top) = ("flame graph".to_owned(), false, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        match flag.as_str() {
            "--folded" => folded = true,
            "--title" => title = arguments.next().unwrap_or_default(),
            "--top" => top = arguments.next().and_then(|n| n.parse::<usize>().ok()),
            _ => {
                eprintln!("usage: flame [--title TEXT | --folded | --top N] < perf-script-output");
                return ExitCode::from(2);
            }
        }
    }
    let stacks = fold(stdin().lock().lines().map_while(Result::ok));
    if stacks.is_empty() {
        eprintln!("error: no samples; was it `perf script -F comm,tid,ip,sym --no-inline`?");
        return ExitCode::FAILURE;
    }
    let text = match (folded, top) {
        (true, _) => stacks.iter().map(|(stack, n)| format!("{} {n}\n", stack.join(";"))).collect(),
        (_, Some(most)) => self_times(&stacks, most),
        _ => svg(&title, &stacks),
    };
    let written = stdout().write_all(text.as_bytes());
    ExitCode::from(u8::from(written.is_err()))
}

/// Samples by stack, the thread's name first and the innermost frame last.
fn fold(lines: impl Iterator<Item = String>) -> BTreeMap<Vec<String>, u64> {
    let mut stacks = BTreeMap::new();
    let mut thread: Option<String> = None;
    let mut frames: Vec<String> = Vec::new();
    for line in lines.chain([String::new()]) {
        if line.trim().is_empty() {
            if let Some(thread) = thread.take() {
                frames.push(thread);
                frames.reverse();
                *stacks.entry(std::mem::take(&mut frames)).or_default() += 1;
            }
        } else if line.starts_with([' ', '\t']) && thread.is_some() {
            let symbol = line.trim().split_once(' ').map_or("", |(_, symbol)| symbol.trim());
            frames.push(tidy(symbol));
        } else {
            // `comm tid`: a name may have spaces, the number is last.
            let name =
                line.trim().rsplit_once(char::is_whitespace).map_or(line.trim(), |(name, _)| name.trim());
            thread = Some(name.to_owned());
            frames.clear();
        }
    }
    stacks
}

/// Without what every instance of a generic adds, and without what separates folded stacks.
fn tidy(symbol: &str) -> String {
    let symbol = symbol.trim_end_matches("([kernel.kallsyms])").trim();
    let mut symbol = symbol.split("+0x").next().unwrap_or(symbol).replace(';', ":");
    // A hash of the old mangling.
    if let Some(at) = symbol.rfind("::h")
        && symbol.len() == at + 19
        && symbol[at + 3..].bytes().all(|c| c.is_ascii_hexdigit())
    {
        symbol.truncate(at);
    }
    if symbol.is_empty() || symbol == "[unknown]" { "(unknown)".to_owned() } else { symbol }
}

fn self_times(stacks: &BTreeMap<Vec<String>, u64>, most: usize) -> String {
    let total: u64 = stacks.values().sum();
    let mut times: BTreeMap<&str, u64> = BTreeMap::new();
    for (stack, n) in stacks {
        if let Some(last) = stack.last() {
            *times.entry(last).or_default() += n;
        }
    }
    let mut times: Vec<_> = times.into_iter().collect();
    times.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let line = |(name, n): &(&str, u64)| format!("{:6.2} %  {name}\n", 100.0 * *n as f64 / total as f64);
    format!("{total} samples\n") + &times.iter().take(most).map(line).collect::<String>()
}

#[derive(Default)]
struct Node {
    samples: u64,
    below: BTreeMap<String, Node>,
}

impl Node {
    fn depth(&self) -> usize {
        1 + self.below.values().map(Node::depth).max().unwrap_or(0)
    }
}

fn svg(title: &str, stacks: &BTreeMap<Vec<String>, u64>) -> String {
    let mut root = Node::default();
    for (stack, n) in stacks {
        root.samples += n;
        let mut node = &mut root;
        for frame in stack {
            node = node.below.entry(frame.clone()).or_default();
            node.samples += n;
        }
    }
    let height = TOP + LINE * root.depth() as f64 + 10.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         font-family=\"monospace\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"20\" font-size=\"14\">{}  ({} samples)</text>\n",
        escape(title),
        root.samples
    );
    draw(&mut out, "all", &root, 0.0, TOP, root.samples);
    out + "</svg>\n"
}

fn draw(out: &mut String, name: &str, node: &Node, x: f64, y: f64, total: u64) {
    let width = WIDTH * node.samples as f64 / total as f64;
    if width < NARROW {
        return;
    }
    let share = 100.0 * node.samples as f64 / total as f64;
    let letters = ((width - 6.0) / LETTER).max(0.0) as usize;
    let mut shown: String = if letters > 2 { name.chars().take(letters).collect() } else { String::new() };
    if !shown.is_empty() && shown.len() < name.len() {
        shown.pop();
        shown.push('…');
    }
    let _ = writeln!(
        out,
        "<g><title>{} ({} samples, {share:.2} %)</title><rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{:.2}\" height=\"{}\" \
         fill=\"{}\"/><text x=\"{:.2}\" y=\"{:.1}\">{}</text></g>",
        escape(name),
        node.samples,
        (width - 0.3).max(0.2),
        LINE - 1.0,
        colour(name),
        x + 3.0,
        y + 12.0,
        escape(&shown)
    );
    let mut at = x;
    for (name, below) in &node.below {
        draw(out, name, below, at, y + LINE, total);
        at += WIDTH * below.samples as f64 / total as f64;
    }
}

/// Ours, the ring's, and everybody else's; the shade tells neighbours apart.
fn colour(name: &str) -> String {
    let shade = name.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 24;
    let (hue, light) = match name {
        name if name.contains("ringmq") => (212, 66),
        name if name.contains("io_uring") || name.starts_with("io_") => (150, 62),
        name if name.contains("tcp") || name.contains("skb") || name.contains("sock") => (36, 66),
        name if name.contains("blk") || name.contains("ext4") || name.contains("virtio") => (280, 74),
        _ => (12, 76),
    };
    format!("hsl({hue},65%,{}%)", light + shade / 2)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "shard-00  812 \n\
        \tffff8001 do_syscall_64+0x10 ([kernel.kallsyms])\n\
        \t5581 ringmq_engine::log::Log<T>::turn::h0123456789abcdef\n\
        \t5580 main\n\
        \n\
        a b 9 \n\
        \t1 [unknown]\n\
        \n\
        shard-00  812 \n\
        \tffff8001 do_syscall_64+0x99\n\
        \t5581 ringmq_engine::log::Log<T>::turn::h0123456789abcdef\n\
        \t5580 main\n";

    #[test]
    fn stacks_are_folded_by_thread_and_drawn() {
        let stacks = fold(SCRIPT.lines().map(str::to_owned));
        let folded: Vec<_> = stacks.iter().map(|(stack, n)| format!("{} {n}", stack.join(";"))).collect();
        let turn = "shard-00;main;ringmq_engine::log::Log<T>::turn;do_syscall_64 2";
        assert_eq!(folded, ["a b;(unknown) 1", turn]);
        assert!(self_times(&stacks, 1).starts_with("3 samples\n 66.67 %  do_syscall_64"));
        let svg = svg("a < b", &stacks);
        assert!(
            svg.contains("a &lt; b  (3 samples)") && svg.contains("Log&lt;T&gt;::turn (2 samples, 66.67 %)")
        );
        assert_eq!(svg.matches("<g>").count(), 1 + 2 + 4);
        assert!(fold(std::iter::empty()).is_empty());
    }
}
