//! Bugs that tests plant to prove that the simulator finds them. Without the feature `sim` there are none, and
//! [`Planted::has`] is `false` at compile time.

/// A bug on purpose. Each is one line somewhere in the write path or recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A group counts as durable when its write completes; the flush is left out.
    FlushLeftOut,
    /// A flush counts for writes that completed after it was submitted.
    FlushCoversLaterWrites,
    /// Recovery accepts a group without looking at its payloads.
    PayloadCrcUnchecked,
    /// Recovery cuts the log at the first bad group, whatever lies behind it.
    TruncateOnDoubt,
    /// A segment takes groups before its header is durable.
    HeaderNotAwaited,
    /// A slot is reused before the superblock says that its content is retired.
    RetirementNotAwaited,
    /// A failed flush is tried again and believed.
    FlushRetried,
    /// A short write counts as a whole one.
    ShortWriteIgnored,
    /// A checkpoint's chunks are written before what they reflect is durable.
    CheckpointAheadOfLog,
    /// The producers' windows are left out of checkpoints.
    ProducersForgotten,
    /// The epoch stays as it is at a start.
    EpochNotRaised,
    /// The directory is not synced after a file was made.
    DirectoryNotSynced,
    /// Files are not synced before recovery reads them.
    NoSyncBeforeRead,
    /// Every life of a slot has the same incarnation.
    IncarnationReused,
    /// Consumers see records when they are appended.
    VisibleBeforeDurable,
    /// A failed flush counts as a good one.
    FlushErrorIgnored,
    /// A cold frame is served as the index says, without a look at the frame.
    IndexBelieved,
    /// A payload checksum of zero is taken for the end of the log.
    ZeroCrcIsTheEnd,
    /// A superblock that cannot be read is taken for one that was never written.
    DoubtStartsAfresh,
    /// Topics are left out of checkpoints.
    TopicsForgotten,
    /// The rest of a short write begins where the short one ended, aligned or not.
    ShortWriteUnaligned,
    /// Index entries of frames that are read again after a start are entered twice.
    IndexedTwice,
    /// A start takes a group that an earlier one has cut, once it is whole.
    CutForgotten,
    /// Groups and positions are left out of checkpoints.
    CursorsForgotten,
    /// The BINDs of a transaction and its end are several groups.
    CommitSplit,
    /// A body is handed out as its BIND says, without a look at what stands there.
    BodyUnchecked,
    /// A segment is retired before the bodies that were moved out of it are durable.
    RelocationNotAwaited,
    /// A segment is retired with the bodies in it that BINDs of later segments name.
    BodiesNotMoved,
    /// Halves and delays are left out of checkpoints.
    PendingForgotten,
    /// Where bodies are is left out of checkpoints.
    BodiesForgotten,
    /// How transactions and delays have ended is left out of checkpoints.
    EndsForgotten,
    /// Who asks again how a transaction has ended is told before that is durable.
    EndToldEarly,
    /// A delay becomes visible before its due time.
    DelayEarly,
    /// Halves are in the index of their partition.
    HalvesIndexed,
}

/// Which bug is planted, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planted {
    #[cfg(feature = "sim")]
    bug: Option<Bug>,
}

impl Planted {
    /// Plants a bug.
    #[cfg(feature = "sim")]
    pub fn bug(bug: Bug) -> Self {
        Self { bug: Some(bug) }
    }

    /// Is this one planted?
    #[inline]
    pub fn has(self, bug: Bug) -> bool {
        #[cfg(feature = "sim")]
        return self.bug == Some(bug);
        #[cfg(not(feature = "sim"))]
        {
            let _ = bug;
            false
        }
    }
}
