//! Bisecting a batch around the events that a sink refuses.
//!
//! A permanent error splits a part in two until the refused event is alone. An error of unknown kind counts against an
//! event only if another event of the batch can be stored, both before it and after it. Until one is stored, the next
//! part is taken from elsewhere in the batch, so that many bad events in a row do not hide the good ones. The search is
//! bounded in writes, not in time: over a slow link the same batch would end the same way each time.

use std::collections::VecDeque;
use std::ops::Range;

use crate::batch::Batch;

use super::Outage;

/// The number of tries with a batch whose error is of unknown kind, before it is bisected.
const UNKNOWN_TRIES: u32 = 3;

/// The number of single events from all over a batch that fail with an error of unknown kind before that is taken for
/// an outage.
pub(super) const MAX_SUSPECTS: usize = 16;

/// The result for one part of a batch.
pub(super) enum PartResult {
    Stored,
    /// `certain` unless the error was of unknown kind.
    Refused {
        reason: String,
        certain: bool,
    },
    Unavailable(Outage),
}

/// The state of one batch while it is written.
pub(super) struct Bisection {
    /// Parts to be written, the next one at the back.
    parts: VecDeque<Range<usize>>,
    is_first: bool,
    /// An event that was stored.
    stored: Option<usize>,
    /// Single events that failed with an error of unknown kind.
    suspects: Vec<(usize, String)>,
    /// Takes the next part from the front.
    elsewhere: bool,
    outage: Option<Outage>,
}

impl Bisection {
    pub(super) fn new(events: usize) -> Self {
        Self {
            parts: std::iter::once(0..events).collect(),
            is_first: true,
            stored: None,
            suspects: Vec::new(),
            elsewhere: false,
            outage: None,
        }
    }

    /// Returns the next part to be written, and how often it may fail with an error of unknown kind.
    pub(super) fn next_part(&mut self) -> Option<(Range<usize>, u32)> {
        if self.outage.is_some() {
            return None;
        }
        let part = if self.elsewhere { self.parts.pop_front() } else { self.parts.pop_back() }?;
        // The whole batch has shown already whether the error passes by itself.
        let tries = if std::mem::take(&mut self.is_first) { UNKNOWN_TRIES } else { 1 };
        Some((part, tries))
    }

    /// Takes the result for the last part.
    pub(super) fn record(&mut self, part: Range<usize>, result: PartResult, batch: &mut Batch) {
        self.elsewhere = false;
        match result {
            PartResult::Stored => {
                if self.stored.is_none() {
                    // Perhaps nothing could be stored until now: the suspects get another try.
                    self.parts.extend(self.suspects.drain(..).map(|(index, _)| index..index + 1));
                }
                self.stored = Some(part.start);
            }
            PartResult::Refused { .. } if part.len() > 1 => {
                let middle = part.start + part.len() / 2;
                self.parts.extend([middle..part.end, part.start..middle]);
            }
            PartResult::Refused { reason, certain: true } => batch.reject(part.start, reason),
            PartResult::Refused { reason, certain: false } => {
                self.suspects.push((part.start, reason.clone()));
                self.elsewhere = self.stored.is_none();
                if self.elsewhere && self.suspects.len() == MAX_SUSPECTS {
                    self.outage = Some(Outage::new(reason, None));
                }
            }
            PartResult::Unavailable(outage) => {
                self.parts.push_back(part);
                self.outage = Some(outage);
            }
        }
    }

    /// Returns a stored event whose second write tells whether the sink is still available, if that decides about
    /// suspects.
    pub(super) fn probe(&self) -> Option<usize> {
        self.stored.filter(|_| self.outage.is_none() && !self.suspects.is_empty())
    }

    /// Records the suspects and the unwritten parts in the batch. `available` says whether the probe was stored.
    /// Returns the outage that ended the writing, and the reason for which events failed.
    pub(super) fn finish(self, available: bool, batch: &mut Batch) -> (Option<Outage>, Option<String>) {
        let mut failure = None;
        for (index, reason) in self.suspects {
            if available {
                batch.reject(index, reason);
            } else {
                batch.fail(index..index + 1, reason.as_str());
                failure = Some(reason);
            }
        }
        if let Some(outage) = &self.outage {
            self.parts.into_iter().for_each(|part| batch.fail(part, outage.reason.as_str()));
            failure = Some(outage.reason.clone());
        }
        (self.outage, failure)
    }
}
