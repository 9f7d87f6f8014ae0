//! What a server with TLS shows its clients.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// A certificate for 127.0.0.1 that nobody else has signed, and its key: PEM files of their folder's owner.
#[derive(Debug)]
pub struct Certificate {
    /// For the server, and for clients that are to trust it.
    pub certificate: PathBuf,
    /// For the server alone.
    pub key: PathBuf,
}

impl Certificate {
    /// Where those of a folder are.
    pub(crate) fn of(folder: &Path) -> Self {
        Self { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") }
    }

    /// Makes both in a folder.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn make(folder: &Path) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("an address is a valid name");
        let files = Self::of(folder);
        let owner = fs::metadata(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for (file, pem) in [(&files.certificate, made.cert.pem()), (&files.key, made.signing_key.serialize_pem())] {
            fs::write(file, pem)
                // PostgreSQL takes no key that others may read.
                .and_then(|()| fs::set_permissions(file, Permissions::from_mode(0o600)))
                .and_then(|()| chown(file, Some(owner.uid()), Some(owner.gid())))
                .unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
        }
        files
    }
}
