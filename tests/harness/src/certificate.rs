//! Self-signed certificates for servers with TLS.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// A self-signed certificate for 127.0.0.1 and its key, as PEM files that belong to the owner of their folder.
#[derive(Debug)]
pub struct Certificate {
    /// The certificate, for the server and for clients that trust it.
    pub certificate: PathBuf,
    /// The private key, for the server alone.
    pub key: PathBuf,
}

impl Certificate {
    /// Returns the paths of both files in a folder.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") }
    }

    /// Creates both files in a folder.
    ///
    /// # Panics
    /// Panics if a file cannot be written.
    pub fn create(folder: &Path) -> Self {
        let generated =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("an address is a valid name");
        let files = Self::in_folder(folder);
        let owner = fs::metadata(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for (file, pem) in
            [(&files.certificate, generated.cert.pem()), (&files.key, generated.signing_key.serialize_pem())]
        {
            fs::write(file, pem)
                // PostgreSQL rejects a key that others may read.
                .and_then(|()| fs::set_permissions(file, Permissions::from_mode(0o600)))
                .and_then(|()| chown(file, Some(owner.uid()), Some(owner.gid())))
                .unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
        }
        files
    }
}
