//! Cores and CPU time of the calling thread. A load generator that is the bottleneck measures itself, so its own
//! busy share is printed beside every figure.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// Cores that this process may run on, in ascending order.
pub(super) fn allowed_cores() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else { return vec![0] };
    (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
}

/// Keeps the calling thread on one core.
pub(crate) fn pin(core: usize) -> Result<(), String> {
    if core >= CpuSet::MAX_CPU {
        return Err(format!("there is no core {core}"));
    }
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|e| format!("cannot pin a thread to core {core}: {e}"))
}

/// Asks for timer wake-ups to the microsecond; the kernel's default adds up to 50.
pub(super) fn precise_timers() {
    // Refusal only makes an open loop a little late, and its latency counts that lateness.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000));
}

/// CPU time that the calling thread has used.
fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.max(0) as u64, now.tv_nsec.max(0) as u32)
}

/// Measures how busy the calling thread is between two moments.
pub(super) struct Busy {
    wall: Instant,
    cpu: Duration,
}

impl Busy {
    pub(super) fn start() -> Self {
        Self { wall: Instant::now(), cpu: thread_cpu() }
    }

    /// CPU time as per cent of the time that went by.
    pub(super) fn percent(&self) -> f64 {
        let wall = self.wall.elapsed().as_secs_f64();
        if wall > 0.0 { 100.0 * thread_cpu().saturating_sub(self.cpu).as_secs_f64() / wall } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_stays_and_a_busy_one_is_seen_busy() {
        let core = *allowed_cores().last().unwrap();
        let percent = std::thread::spawn(move || {
            pin(core).unwrap();
            assert_eq!(allowed_cores(), [core]);
            let busy = Busy::start();
            let end = Instant::now() + Duration::from_millis(20);
            while Instant::now() < end {}
            busy.percent()
        })
        .join()
        .unwrap();
        assert!(percent > 0.0, "{percent}");
        assert!(pin(usize::MAX).is_err());
    }
}
