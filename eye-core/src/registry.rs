//! Which plug-ins there are: type name to factory. Registration is explicit.

/// Why a component could not be made. The pipeline adds which one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub String);
