//! Bugs that tests plant to prove that the simulator finds them. Without the feature `sim` there are none, and
//! [`Planted::has`] is `false` at compile time.

/// A bug on purpose. Each is one line somewhere in what serves consumer groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Acknowledgements and failed deliveries are answered before they are durable.
    AckBeforeDurable,
    /// What is consumed above the watermark is not taken over from the log.
    AcksForgotten,
    /// Failed deliveries are not taken over from the log.
    RetriesForgotten,
    /// A lease that has ended, or was given to somebody else, still acknowledges.
    StaleHandleAcks,
    /// A record is leased although one of its key in front of it is.
    SecondOfKey,
    /// A delivery that has failed is not counted.
    AttemptNotCounted,
    /// A record gets one attempt more than it may have.
    OneAttemptMore,
    /// A lease ends in half its time.
    LeaseEndsEarly,
    /// What has failed for the last time counts as consumed, without a dead letter.
    DeadLetterLeftOut,
    /// A filter leaves out now and then what it should not.
    FilterDrops,
    /// A commit is taken whatever its generation.
    StaleCommitTaken,
    /// A member's commit lowers a position.
    CommitGoesBack,
    /// A commit is answered before it is durable.
    CommitBeforeDurable,
    /// An instance of a broadcast is another one in each life of the server.
    InstanceForgotten,
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
