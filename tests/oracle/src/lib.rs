//! The oracle: a process apart from The Eye and from the tests, which loads The Eye and knows what became of it.
//!
//! Before an event is sent for the first time, its id and the hash of what is to be stored are on the disk, in the
//! ledger; afterwards it says whether the event was acknowledged, refused, or nobody knows. [`verify`] compares the
//! ledger with the rows of the database.
//!
//! A test talks to it by [`Oracle`]. The process is the test's own program started anew, so that nothing has to be built
//! or found besides: the test has an ignored `#[test]` that calls [`serve`].

mod event;
mod ledger;
mod load;
mod oracle;
mod process;
mod send;
mod verify;

pub use event::{REFUSED, Row};
pub use ledger::{Fate, Ledger};
pub use load::{Counts, Load};
pub use oracle::Oracle;
pub use process::{Fresh, serve};
pub use verify::{Verdict, verify};
