//! How much memory something takes, so that a target can hold it against what its input may claim.

/// Bytes that were ever allocated: what a binary's counting allocator says. It counts what is given back as well, so it
/// is never less than what was held at once.
pub type Meter = fn() -> usize;

/// Bytes that `work` allocates. What libraries written in C allocate is not seen; the fuzzer's limit on resident
/// memory is for that.
pub(crate) fn allocated(meter: Meter, work: impl FnOnce()) -> usize {
    let before = meter();
    work();
    meter() - before
}
