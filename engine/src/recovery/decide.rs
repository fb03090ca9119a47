//! What to do at a place of the log: a table of labelled rows, every combination in exactly one.
//!
//! | row | found at X                                   | witness | decision                                   |
//! |-----|----------------------------------------------|---------|--------------------------------------------|
//! | W   | a whole group                                | any     | accept                                     |
//! | A   | headers intact, payload bad                  | yes     | accept; those frames answer `Damaged`      |
//! | P   | headers and payloads intact, padding bad     | yes     | accept; reported                           |
//! | B   | a group or frame header bad                  | yes     | refuse the shard                           |
//! | C   | a sector that cannot be read                 | any     | refuse the shard                           |
//! | D   | anything but W and C                         | no      | torn tail: cut at X                        |
//!
//! A *witness* is proof that X had been durable: a later group header that says so, the superblock or a checkpoint.

/// What stands at a place where a group should start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finding {
    /// G1 to G8 hold.
    Whole,
    /// Only padding is wrong (G8).
    PaddingBad,
    /// Headers are intact, a payload is not (G7).
    PayloadBad,
    /// The group's header is intact, a frame's is not (G6).
    FrameHeadersBad,
    /// No valid group of this segment, place and chain (G1 to G5).
    NoGroup,
    /// The medium does not give the bytes.
    Unreadable,
}

/// Row of the table, as operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    /// Whole group.
    W,
    /// Payload damaged, proven durable.
    A,
    /// Padding damaged, proven durable.
    P,
    /// Headers damaged, proven durable.
    B,
    /// Unreadable.
    C,
    /// Torn tail.
    D,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Replay the group and go on.
    Accept,
    /// Replay its headers; the bad frames answer `Damaged`.
    AcceptDamaged,
    /// The log ends here.
    Cut,
    /// This shard does not start.
    Refuse,
}

/// The table.
pub fn decide(finding: Finding, witness: bool) -> (Row, Decision) {
    match (finding, witness) {
        (Finding::Whole, _) => (Row::W, Decision::Accept),
        (Finding::Unreadable, _) => (Row::C, Decision::Refuse),
        (Finding::PayloadBad, true) => (Row::A, Decision::AcceptDamaged),
        (Finding::PaddingBad, true) => (Row::P, Decision::Accept),
        (Finding::FrameHeadersBad | Finding::NoGroup, true) => (Row::B, Decision::Refuse),
        (Finding::PayloadBad | Finding::PaddingBad | Finding::FrameHeadersBad | Finding::NoGroup, false) => {
            (Row::D, Decision::Cut)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_has_its_row() {
        use Finding::{FrameHeadersBad, NoGroup, PaddingBad, PayloadBad, Unreadable, Whole};
        let mut rows = String::new();
        for finding in [Whole, PaddingBad, PayloadBad, FrameHeadersBad, NoGroup, Unreadable] {
            for witness in [false, true] {
                let (row, decision) = decide(finding, witness);
                rows += &format!("{finding:?} {witness} {row:?} {decision:?}\n");
                // What was proven durable is never cut; what is not whole and not proven is never served.
                assert!(!(witness && decision == Decision::Cut));
                assert!(witness || finding == Whole || decision != Decision::Accept);
            }
        }
        assert_eq!(
            rows,
            "Whole false W Accept\nWhole true W Accept\nPaddingBad false D Cut\nPaddingBad true P Accept\n\
             PayloadBad false D Cut\nPayloadBad true A AcceptDamaged\nFrameHeadersBad false D Cut\n\
             FrameHeadersBad true B Refuse\nNoGroup false D Cut\nNoGroup true B Refuse\n\
             Unreadable false C Refuse\nUnreadable true C Refuse\n"
        );
    }
}
