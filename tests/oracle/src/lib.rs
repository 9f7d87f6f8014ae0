//! The oracle: a separate process that loads The Eye and knows the expected contents of the database.
//!
//! Before the first send of an event, the oracle writes its id and fingerprint to the [`Ledger`] on the disk.
//! Afterwards it writes the outcome: acknowledged, refused or unknown. [`reconcile`] compares the ledger with the rows
//! of the database.
//!
//! A test uses [`Oracle`]. The process is the test program itself, started again for an ignored `#[test]` that calls
//! [`serve`], so that there is no other program to build or to find.

mod event;
mod ledger;
mod load;
mod oracle;
mod process;
mod reconcile;
mod request;

pub use event::{EventRow, REFUSED};
pub use ledger::{Ledger, ReportedOutcome};
pub use load::{LoadCounts, LoadProfile};
pub use oracle::Oracle;
pub use process::{FreshEvent, serve};
pub use reconcile::{Reconciliation, reconcile};
