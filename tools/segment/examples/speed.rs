//! How fast a log is checked, against how fast its files can be read at all: `speed DIR [ROUNDS]`.
//!
//! In each round, by turns: every segment file read directly in blocks of the same size, one read after the other by
//! one thread; the same through the reader of the tools, deep; and all of it checked. Medians and the ratio at the end.

use ringmq_segment::directory::Directory;
use ringmq_segment::log::{Step, walk};
use ringmq_segment::source::{CHUNK, Source, Window};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or_else(|| ".".to_owned());
    let rounds: usize = args.next().and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    let source = Source::probe().unwrap_or(Source::Threads);
    let directory = Directory::open(&source, Path::new(&path))?;
    let slots: Vec<_> = directory.shards.iter().flat_map(|shard| shard.log()).collect();
    let (mut plain, mut deep, mut checked) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let rate = |bytes: u64, begun: Instant| bytes as f64 / begun.elapsed().as_secs_f64() / 1e6;
        let (begun, mut bytes) = (Instant::now(), 0);
        for slot in &slots {
            let file = source.open(&slot.path)?;
            let mut position = 0;
            while position < file.len() {
                position += file.read(position, CHUNK)?.len() as u64;
            }
            bytes += position;
        }
        plain.push(rate(bytes, begun));
        let (begun, mut bytes) = (Instant::now(), 0);
        for slot in &slots {
            let file = source.open(&slot.path)?;
            let len = file.len();
            let mut window = Window::new(file, len);
            for position in (0..len).step_by(CHUNK) {
                window.load(position, CHUNK)?;
            }
            bytes += len;
        }
        deep.push(rate(bytes, begun));
        let (begun, mut bytes, mut wrong) = (Instant::now(), 0, 0);
        for shard in &directory.shards {
            walk(&source, shard, None, None, &mut |step| {
                match step {
                    Step::Group(_, view) => {
                        bytes += view.bytes.len() as u64;
                        wrong += view.all_faults().len();
                    }
                    Step::Missing(..) | Step::Joint(..) | Step::Unreadable(..) => wrong += 1,
                    _ => {}
                }
                ControlFlow::Continue(())
            })?;
        }
        checked.push(rate(bytes, begun));
        assert_eq!(wrong, 0, "the log is whole");
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (plain, deep, checked) = (median(&mut plain), median(&mut deep), median(&mut checked));
    println!("direct reads, one after the other  {plain:8.0} MB/s");
    println!("direct reads, deep                 {deep:8.0} MB/s");
    println!("checked                            {checked:8.0} MB/s  {:.2} of the deep ones", checked / deep);
    Ok(())
}
