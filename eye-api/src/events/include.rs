//! The parameter `include`: further keys in each result.

/// The keys that a result has besides its five.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Include {
    pub(super) id: bool,
    pub(super) received_at: bool,
}

impl Include {
    /// Reads a list with commas, such as `id,received_at`.
    ///
    /// # Errors
    /// A message that names an unknown key.
    pub(super) fn parse(list: &str) -> Result<Self, String> {
        let mut include = Self::default();
        for key in list.split(',') {
            match key.trim() {
                "id" => include.id = true,
                "received_at" => include.received_at = true,
                other => return Err(format!("Unknown key `{other}`. Known keys: id, received_at.")),
            }
        }
        Ok(include)
    }
}
