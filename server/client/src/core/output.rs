//! Bytes on their way out, as pieces that are written without being joined.

use crate::limits::GATHER_COPY_MAX;
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::IoSlice;

/// A queue of pieces. Small ones are copied together, large ones are kept as they are.
#[derive(Debug, Default)]
pub struct Output {
    pieces: VecDeque<Bytes>,
    tail: Vec<u8>,
    len: usize,
}

impl Output {
    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds `bytes`.
    pub fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        if bytes.len() <= GATHER_COPY_MAX {
            self.tail.extend_from_slice(&bytes);
        } else {
            self.close_tail();
            self.pieces.push_back(bytes);
        }
    }

    /// Adds what `write` appends.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.tail.len();
        write(&mut self.tail);
        self.len += self.tail.len() - before;
    }

    /// Moves all of `other` behind what is here.
    pub fn append(&mut self, other: &mut Self) {
        if other.is_empty() {
            return;
        }
        self.close_tail();
        self.pieces.append(&mut other.pieces);
        self.tail = std::mem::take(&mut other.tail);
        self.len += std::mem::take(&mut other.len);
        self.close_tail();
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(Bytes::from(std::mem::take(&mut self.tail)));
        }
    }
}

impl Buf for Output {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&self.tail, |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        for (slot, piece) in slices.iter_mut().zip(self.pieces.iter().map(|piece| &piece[..]).chain(tail)) {
            *slot = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "{count} bytes of {}", self.len);
        self.len -= count;
        if count > 0 {
            self.close_tail();
        }
        while count > 0 {
            let Some(front) = self.pieces.front_mut() else { return };
            let step = count.min(front.len());
            front.advance(step);
            count -= step;
            if front.is_empty() {
                self.pieces.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_they_came(
            pieces in proptest::collection::vec((0usize..GATHER_COPY_MAX * 2, any::<u8>()), 0..20),
            steps in proptest::collection::vec(1usize..10_000, 1..20),
        ) {
            let (mut one, mut two, mut expected) = (Output::default(), Output::default(), Vec::new());
            for (len, byte) in &pieces {
                two.push(Bytes::from(vec![*byte; *len]));
                two.push_with(|tail| tail.push(!*byte));
                expected.extend(std::iter::repeat_n(*byte, *len));
                expected.push(!*byte);
                one.append(&mut two);
            }
            let mut found = Vec::new();
            for step in steps.iter().cycle() {
                if one.is_empty() {
                    break;
                }
                let mut slices = [IoSlice::new(&[]); 4];
                let filled = one.chunks_vectored(&mut slices);
                let joined: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
                let step = (*step).min(joined.len());
                found.extend_from_slice(&joined[..step]);
                one.advance(step);
            }
            prop_assert_eq!(found, expected);
        }
    }
}
